"""Do unitary blocks mend a compressed model, and does anything else of their size? `python -m benchmarks.recovery`.

The claim of arXiv 2605.05914 on SmolLM2-135M with its missing controls: blocks that are not orthogonal, scaling alone, LoRA. About
6,000 parameters each, in the o projections of the last layers. First `python -m benchmarks.compressed_model` and
`python -m benchmarks.recovery_rows`. Lines go to `--out`, and what is there is not done again.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import compressed_model, harness
from benchmarks.frozen_below import FrozenBelow, adapted, fit, last_hidden, trainable
from qpeft.study.plan import TuningSection
from qpeft.study.tuning import best_rate

COMPRESSED = "models/smollm2-135m-compressed"
LAST = 10  # layers that are adapted
STEPS, BATCH, TOKENS = 20, 4, 32
ROWS = {"train": 128, "validation": 24, "test": 48}
SEEDS, TUNING_SEED = range(3), 1000
GRID = TuningSection(search="hill_climb", learning_rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0))
START = 3e-2
CAYLEY = "Cayley blocks of 4"
BLOCKS: dict[str, Any] = {
    "peft_type": "CAYLEY",
    "block_size": 4,
    "target_modules": ["o_proj"],
    "layers_to_transform": [0, 1, 3, 4, 6, 7, 9],
}
EVERY = r".*\.self_attn\.o_proj"
ARMS: dict[str, dict[str, Any]] = {  # layers are numbered from the first of the last ten
    CAYLEY: BLOCKS,
    "blocks of 4, not orthogonal": {**BLOCKS, "transform": "linear"},
    "scaling (IA3)": {"peft_type": "IA3", "target_modules": EVERY, "feedforward_modules": EVERY},
    "LoRA r=1": {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 2,
        "target_modules": ["o_proj"],
        "layers_to_transform": [1, 3, 5, 7, 9],
    },
}


def config_of(arm: str) -> Any:
    """The PEFT configuration of an arm."""
    import peft

    import qpeft

    settings = dict(ARMS[arm])
    kinds = {"CAYLEY": qpeft.CayleyConfig, "LORA": peft.LoraConfig, "IA3": peft.IA3Config}
    return kinds[settings.pop("peft_type")](**settings)


class Recovery:
    """The text, ready for the upper layers of a model.

    Args:
        rows: folder of `benchmarks.recovery_rows`.
        model_name_or_path: the model.
        parts: of the rows.
    """

    def __init__(self, rows: Path, model_name_or_path: str, parts: tuple[str, ...] = tuple(ROWS)) -> None:
        from qpeft.training.model.loading import load_model, load_tokenizer
        from qpeft.training.recipe.config import ModelSection

        section = ModelSection(model_name_or_path=model_name_or_path, dtype="float32", attn_implementation="eager")
        tokenizer, below = load_tokenizer(section), FrozenBelow(load_model(section).eval(), LAST)
        self.ids: dict[str, Tensor] = {}
        self.inputs: dict[str, list[Tensor]] = {}
        for part in parts:
            lines = (rows / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()[: ROWS[part]]
            texts = [json.loads(line)["text"] for line in lines]
            self.ids[part] = torch.tensor([tokenizer.encode(text, add_special_tokens=False)[:TOKENS] for text in texts])
            self.inputs[part] = below.inputs(self.ids[part].tolist(), cache=rows)
        self.upper = below.upper()

    def loss(self, model: Any, part: str, rows: list[int]) -> Tensor:
        """Mean cross-entropy of every token but the first, nats/token."""
        head, hidden, _ = last_hidden(model, [self.inputs[part][i] for i in rows])
        return torch.nn.functional.cross_entropy(head(hidden[:, :-1]).flatten(0, 1), self.ids[part][rows][:, 1:].flatten())

    @torch.no_grad()
    def held_out(self, model: Any, part: str) -> float:
        """Loss on all rows of a part (all have as many tokens)."""
        model.eval()
        batches = [list(range(at, min(at + 24, ROWS[part]))) for at in range(0, ROWS[part], 24)]
        return sum(self.loss(model, part, batch).item() * len(batch) for batch in batches) / ROWS[part]

    def trained(self, arm: str, rate: float, seed: int) -> Any:
        """The upper layers with a trained adapter."""
        model = adapted(self.upper, config_of(arm), seed)
        order = torch.randperm(ROWS["train"], generator=torch.Generator().manual_seed(seed)).tolist()
        fit(model, lambda step: self.loss(model, "train", order[step * BATCH : (step + 1) * BATCH]), STEPS, rate)
        return model


def rate_of(arm: str, losses: dict[tuple[str, float], float]) -> float | None:
    """The learning rate that wins by the tuning losses so far; a missing one counts as failed."""
    return best_rate(GRID, STEPS, lambda rate, step: losses.get((arm, rate)), START)


def work(rows: Path, out: Path) -> None:
    """Every run that `out` does not hold."""
    runs = harness.Runs(out, ("kind", "arm", "rate", "seed"))
    task = functools.cache(lambda: Recovery(rows, COMPRESSED))

    def judged(on: Recovery, model: Any, part: str) -> dict[str, Any]:
        return {"loss": on.held_out(model, part), "parameters": trainable(model)}

    def loss_of(kind: str, arm: str, rate: float, seed: int) -> float:
        part = "validation" if kind == "tuning" else "test"
        return float(runs.result((kind, arm, rate, seed), lambda: judged(task(), task().trained(arm, rate, seed), part))["loss"])

    def before() -> dict[str, Any]:
        original = Recovery(rows, compressed_model.MODEL, ("test",))
        return judged(original, original.upper, "test")

    runs.result(("compressed", "", 0.0, 0), lambda: judged(task(), task().upper, "test"))
    runs.result(("before compression", "", 0.0, 0), before)
    rates = {arm: harness.climbed(GRID, STEPS, START, functools.partial(loss_of, "tuning", arm, seed=TUNING_SEED)) for arm in ARMS}
    for seed, arm in itertools.product(SEEDS, ARMS):
        loss_of("test", arm, rates[arm], seed)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path("data/recovery-text"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/recovery.jsonl"))
    arguments = parser.parse_args(given)
    work(arguments.rows, arguments.out)


if __name__ == "__main__":
    main()
