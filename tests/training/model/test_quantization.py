"""Adapters train on a base of 4 and of 8 bits, on the CPU, through the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qpeft.training.loop.loaded_run import load_run
from qpeft.training.loop.run import train
from qpeft.training.model import loading
from qpeft.training.recipe.config import load_recipe

pytest.importorskip("bitsandbytes")
LORA = "adapter={peft_type: LORA, r: 2, target_modules: [q_proj, v_proj]}"


@pytest.mark.parametrize("settings", [["adapter.dropout=0.0"], [LORA]])
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_base_trains(recipe: Path, tmp_path: Path, bits: str, settings: list[str]) -> None:
    plain = train(load_recipe(recipe, [*settings, "training.max_steps=6"]), tmp_path / "plain")
    record = train(load_recipe(recipe, [*settings, f"model.quantization={bits}", "training.max_steps=6"]), tmp_path / "run")
    assert record.base_parameters == plain.base_parameters
    assert record.trainable_parameters == plain.trainable_parameters
    assert record.metrics["loss"] < record.metrics_before["loss"]
    assert record.metrics_before["loss"] == pytest.approx(plain.metrics_before["loss"], rel=0.02)
    _, model, _ = load_run(tmp_path / "run")
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[bits] in kinds
    assert all(p.dtype == torch.float32 for name, p in model.named_parameters() if "lora_" in name)


def test_layers_that_bitsandbytes_cannot_pack_are_left() -> None:
    """On processors with AVX-512 BF16 the test above fails without this."""
    from bitsandbytes.nn import Linear4bit

    layers = torch.nn.Sequential(Linear4bit(24, 32), Linear4bit(64, 8), Linear4bit(64, 32))
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True
    loading._leave_odd_layers_unpacked(layers)
    assert [layer.support_avx512bf16_for_cpu for layer in layers] == [False, False, True]


def test_gradient_checkpointing_and_accumulation_change_nothing(recipe: Path, tmp_path: Path) -> None:
    settings = ["adapter.dropout=0.0", "training.max_steps=3", "training.logging_steps=1"]
    plain = train(load_recipe(recipe, settings), tmp_path / "plain")
    saved = train(load_recipe(recipe, [*settings, "training.gradient_checkpointing=true"]), tmp_path / "saved")
    whole = [*settings, "training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=1"]
    together = train(load_recipe(recipe, whole), tmp_path / "together")
    for other in (saved, together):
        assert [p.loss for p in other.train_curve] == pytest.approx([p.loss for p in plain.train_curve], rel=1e-5)
