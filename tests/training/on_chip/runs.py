"""Short runs whose circuits are executed by a backend, and what a test compares of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from qpeft.records import RunRecord
from qpeft.training.loop.run import train
from qpeft.training.recipe.config import load_recipe

SHARED = ["adapter.n_layers=1", "adapter.share_circuit=model", "training.save_steps=100", "training.logging_steps=1"]


def settings(steps: int, *more: str, **backend: Any) -> list[str]:
    chosen = [f"backend={json.dumps(backend)}"] if backend else []
    return [*SHARED, f"training.max_steps={steps}", "training.eval_strategy=no", *chosen, *more]


def run(recipe: Path, folder: Path, steps: int, *more: str, **backend: Any) -> RunRecord:
    return train(load_recipe(recipe, settings(steps, *more, **backend)), folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_equal_weights(a: Path, b: Path, atol: float = 0.0) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=atol)


def losses(record: RunRecord) -> list[float]:
    return [point.loss for point in record.train_curve] + [record.metrics["loss"]]
