"""Applications, end to end and resumable: `python -m benchmarks.applications reuters-r8 pima-diabetes`.

For each seed and each recipe of recipes/applications: prepare the data if they are not there, train every arm that is not trained
yet, judge every run that is not judged yet, and write results (JSON Lines), the results part of docs/applications.md and its
picture. After a crash the same command continues; a result that is in the file is not recomputed. Without a name
the page is made from the results alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from pathlib import Path
from typing import Any

from benchmarks import applications_page

RECIPES = Path("recipes/applications")
RESULTS, PAGE, PICTURE = (
    Path("docs/benchmarks/applications.jsonl"),
    Path("docs/applications.md"),
    Path("docs/images/applications.png"),
)
UNRELATED, UNRELATED_ROWS = Path("recipes/data/alpaca-demo/test.jsonl"), 40

# The arms are the same for every task. Learning rates: the best of four for each arm on validation rows of the news topics
# (recipes/studies/applications.yaml).
_ON = {"target_modules": ["q_proj", "v_proj"]}
_QTHA = {"peft_type": "QTHA", "r": 8, "hidden_size": 32, "bond_dim": 4, "n_layers": 1, **_ON}
_BLOCKS = {"peft_type": "CAYLEY", "block_size": 4, "target_modules": ["o_proj", "down_proj"]}
ARMS: list[dict[str, Any]] = [
    {"label": "QTHA r=8", "adapter": _QTHA, "training": {"learning_rate": 5e-4}},
    {"label": "QTHA r=8 without its circuit", "adapter": {**_QTHA, "qnn": "none"}, "training": {"learning_rate": 3e-3}},
    {"label": "LoRA r=1", "adapter": {"peft_type": "LORA", "r": 1, "lora_alpha": 2, **_ON}, "training": {"learning_rate": 1e-3}},
    {"label": "LoRA r=8", "adapter": {"peft_type": "LORA", "r": 8, "lora_alpha": 16, **_ON}, "training": {"learning_rate": 3e-3}},
    {"label": "Cayley blocks of 4, o and down", "adapter": _BLOCKS, "training": {"learning_rate": 1e-2}},
]
_TEXT = {"training": {"max_steps": 100, "per_device_train_batch_size": 4}, "data": {"max_length": 96, "max_train_rows": 640}}
_WORDS = {**_TEXT, "data": {"max_length": 192, "max_train_rows": 640, "system": None}, "rows": 64}  # answers are written out
_TABLE = {"max_steps": 64, "per_device_train_batch_size": 8}
TASKS: dict[str, dict[str, Any]] = {
    "reuters-r8": _TEXT,
    "icd10-chapter": _TEXT,
    "pima-diabetes": {"training": _TABLE, "data": {"max_length": 192}},
    "german-credit": {"training": _TABLE, "data": {"max_length": 288}},
    "word-problems": _WORDS,
    "alpaca-demo": _WORDS,
}
SHORT = {"warmup_steps": 4, "eval_strategy": "no", "save_steps": 20, "lr_scheduler_type": "cosine"}


def work(name: str, arm: dict[str, Any], seed: int, arguments: argparse.Namespace) -> None:
    """Prepare, train and judge one arm of one recipe with one seed, unless its result is known."""
    from qpeft.applications.data_sets import DATA_SETS
    from qpeft.applications.preparation.prepare import prepare
    from qpeft.applications.scoring.evaluate_task import evaluate_task
    from qpeft.study.compare import compare, runs
    from qpeft.training.recipe.config import load_recipe

    data = Path("data") / name
    if name in DATA_SETS and not data.exists():
        prepare(DATA_SETS[name], data)
    sections = {"training": {**SHORT, **TASKS[name]["training"]}, "data": {"system": "Answer briefly.", **TASKS[name]["data"]}}
    settings = [f"{part}.{key}={json.dumps(value)}" for part, values in sections.items() for key, value in values.items()]
    settings += [
        "data.eval=null",
        "model.dtype=bfloat16",
        "model.attn_implementation=eager",  # a sixth faster than sdpa on a CPU, the same to rounding
        *arguments.set,
        f"compare.seeds=[{seed}]",
        f"compare.arms={json.dumps([arm])}",
    ]
    config = load_recipe(RECIPES / f"{name}.yaml", settings)
    called = arguments.called or config.model.model_name_or_path
    if (name, called, arm["label"], seed) in {(r["task"], r["model"], r["label"], r["seed"]) for r in read()}:
        return
    folder = arguments.out / name / re.sub(r"\W+", "-", arm["label"]) / f"seed-{seed}"
    compare(config, folder)
    [(_, run)] = runs(config, folder)
    text = None if name == UNRELATED.parent.name else str(unrelated(arguments.out))
    base = arguments.out / name / "base.json"
    limit = min(arguments.limit, TASKS[name].get("rows", arguments.limit))
    found = evaluate_task(run, limit=limit, batch_size=16, unrelated=text, base=base)
    found |= {"model": called, "training": config.resolved()["training"] | {"max_length": config.data.max_length}}
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(found, sort_keys=True) + "\n")


def unrelated(folder: Path) -> Path:
    """The first rows of the text on which forgetting is measured."""
    file = folder / UNRELATED.name
    file.write_text("".join(UNRELATED.read_text(encoding="utf-8").splitlines(keepends=True)[:UNRELATED_ROWS]), encoding="utf-8")
    return file


def read(root: Path = Path()) -> list[dict[str, Any]]:
    """The results that are known."""
    file = root / RESULTS
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help=f"of {', '.join(TASKS)}; none makes the page alone")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="*", help="labels of the arms to run; default all")
    parser.add_argument("--set", action="append", default=[], help="override a value of the recipes, as for qpeft compare")
    parser.add_argument("--called", help="what the results call the model, where --set names a folder")
    parser.add_argument("--limit", type=int, default=128, help="judge on the first test rows alone")
    parser.add_argument("--out", type=Path, default=Path("runs/applications"))
    arguments = parser.parse_args(given)
    if unknown := [name for name in arguments.recipes if name not in TASKS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(TASKS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seeds):
        for name, arm in itertools.product(arguments.recipes, ARMS):
            if arguments.arms is None or arm["label"] in arguments.arms:
                work(name, arm, seed, arguments)
    applications_page.write(read(), PAGE, PICTURE)
    print(PAGE)


if __name__ == "__main__":
    main()
