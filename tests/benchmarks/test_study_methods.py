"""Methods that are studied and not shipped pass the contract of those that are."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from benchmarks.study import methods
from peft import get_peft_model
from torch import nn

from qpeft.adapters.peft import config_class
from qpeft.testing import check_adapter
from qpeft.testing.adapter_rules import SLOW

SIZES = ((6, 4), (13, 29), (32, 8), (17, 17))  # a 1 x 1 weight near zero gives scaled frames near zero


@pytest.mark.parametrize("settings", [{}, {"frames": "plain"}, {"frames": "random"}, {"qubits": 3}, {"qubits": 2, "path": False}])
def test_the_contract_holds(settings: dict[str, object]) -> None:
    methods.enter()
    dead = r"qnn\.angles" if settings.get("qubits") else None  # of RZ in the last layer
    drawn = settings.get("frames") == "random" or settings.get("qubits")
    skip = SLOW if drawn else {*SLOW, "same_seed_same_adapter"}  # nothing is drawn, so that two seeds make one adapter
    check_adapter(partial(config_class("LORA_XS"), r=4, **settings), dead=dead, skip=skip, sizes=SIZES)


def test_frames_are_the_largest_singular_vectors() -> None:
    methods.enter()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 7))
    weight = model[0].weight.detach().clone()
    adapted = get_peft_model(model, config_class("LORA_XS")(r=3, target_modules=["0"]))
    delta = adapted.base_model.model[0].deltas["default"]
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == 9
    best = (delta.up @ delta.down).detach()  # the best approximation of rank 3
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close((weight - best).norm(), values[3:].norm())
    x = torch.randn(5, 12)
    torch.testing.assert_close(adapted(x), nn.functional.linear(x, weight, adapted.base_model.model[0].get_base_layer().bias))
