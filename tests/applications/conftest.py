"""A made-up clinic's table, prepared as a user's own data, and a finished run of a tiny model on it."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest

from qpeft.applications.prepare import own_data, prepare
from qpeft.training.loop.run import train
from qpeft.training.recipe.config import load_recipe
from tests.training.conftest import tiny_model  # noqa: F401  (fixture)

COLUMNS = ("patient", "visit_age", "smoker", "Glucose", "note", "ill")


def clinic_rows(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows in which high glucose, or smoking above 60, means ill; two visits of each patient, some glucose values missing."""
    rng = random.Random(seed)
    rows = []
    for index in range(n):
        age, smoker, glucose = rng.randint(20, 80), rng.choice(["y", "n"]), rng.randint(60, 200)
        ill = "yes" if glucose > 130 or (smoker == "y" and age > 60) else "no"
        missing = index % 10 == 0
        values = (f"p{index // 2}", age, smoker, "" if missing else glucose, f"seen by doctor {index}", ill)
        rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    return rows


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared folder."""
    folder = tmp_path_factory.mktemp("clinic")
    file = write_csv(folder / "clinic.csv", clinic_rows(120))
    data = own_data(file, "ill", positive="yes", drop=("note",), group="patient", groups=("smoker", "visit_age"))
    prepare(data, folder / "prepared")
    return folder / "prepared"


@pytest.fixture(scope="session")
def run(clinic: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("run")
    recipe = folder / "clinic.yaml"
    recipe.write_text(
        f"""
name: clinic
model: {{model_name_or_path: {tiny_model}, dtype: float32}}
adapter: {{peft_type: QTHA, r: 2, hidden_size: 8, bond_dim: 2, target_modules: [q_proj, v_proj]}}
data: {{train: {clinic}/train.jsonl, eval: {clinic}/validation.jsonl, max_length: 512, max_eval_rows: 2}}
training: {{max_steps: 6, per_device_train_batch_size: 4, learning_rate: 3.0e-2, disable_tqdm: true, save_strategy: "no"}}
"""
    )
    train(load_recipe(recipe), folder / "run")
    return folder / "run"
