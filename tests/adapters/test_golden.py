"""Adapters that earlier versions saved still load, and give the outputs they gave (tests/golden/make_adapters.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

import qpeft.adapters.peft  # noqa: F401  (makes the methods known)

FOLDER = Path(__file__).parent.parent / "golden" / "adapters"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/adapter_config.json"))


def test_every_golden_adapter_is_held() -> None:
    assert set(NAMES) == set(load_file(FOLDER / "outputs.safetensors"))
    assert len(NAMES) >= 25


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_adapter_loads(name: str, low_memory: bool) -> None:
    base = load_file(FOLDER / "base.safetensors")
    inputs = base.pop("inputs")
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12))
    model.load_state_dict(base)
    with torch.no_grad():
        plain = model(inputs)
        adapted = PeftModel.from_pretrained(model, FOLDER / name, low_cpu_mem_usage=low_memory).eval()
        outputs = adapted(inputs)
    torch.testing.assert_close(outputs, load_file(FOLDER / "outputs.safetensors")[name], rtol=1e-5, atol=1e-5)
    assert (outputs - plain).abs().max() > 1e-2
    saved = load_file(FOLDER / name / "adapter_model.safetensors")
    held = get_peft_model_state_dict(adapted)
    assert held.keys() == saved.keys()
    for key, tensor in saved.items():
        torch.testing.assert_close(held[key], tensor, rtol=0, atol=0)
