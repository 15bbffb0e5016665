"""A finished run of a tiny model on the made-up clinic's rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpeft.training.loop.run import train
from qpeft.training.recipe.config import load_recipe


@pytest.fixture(scope="session")
def run(clinic: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
