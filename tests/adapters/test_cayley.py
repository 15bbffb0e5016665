"""The Cayley unitary adapter against block-diagonal matrices written out."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import qpeft
from qpeft.adapters.methods.cayley import CayleyConfig, CayleyUnitary
from qpeft.errors import AdapterError
from qpeft.testing import SLOW, check_adapter
from tests.adapters.compare_controls import assert_differ_in_one_part

DOUBLE = torch.float64
SIZES = [(576, 192), (31, 17), (257, 5), (2, 3), (3, 2), (6, 1)]  # a single input has no rotation


def build(d_in: int = 11, d_out: int = 3, **settings: Any) -> CayleyUnitary:
    return CayleyUnitary(d_in, d_out, CayleyConfig(**{"init_weights": False, **settings}), {}).to(DOUBLE)


def block(angles: Tensor, size: int, transform: str) -> np.ndarray:
    a, index = np.zeros((size, size)), 0
    for row in range(size):
        for column in range(row):
            a[row, column], a[column, row] = angles[index].item(), -angles[index].item()
            index += 1
    eye = np.eye(size)
    return (eye - a) @ np.linalg.inv(eye + a) if transform == "cayley" else eye - 2 * a


def test_contract() -> None:
    check_adapter(qpeft.CayleyConfig, sizes=SIZES, skip=SLOW)
    check_adapter(partial(qpeft.CayleyConfig, transform="linear", block_size=7), sizes=SIZES, only=["merges_when_linear"])


@pytest.mark.slow
def test_contract_compiled() -> None:
    check_adapter(qpeft.CayleyConfig, only=SLOW)


@pytest.mark.parametrize("transform", ["cayley", "linear"])
@pytest.mark.parametrize("block_size", [2, 3, 4, 16])
@pytest.mark.parametrize("d_in", [2, 4, 9, 11, 12])
def test_blocks_written_out(d_in: int, block_size: int, transform: str) -> None:
    delta = build(d_in, block_size=block_size, transform=transform)
    want, start, index = np.eye(d_in), 0, 0
    while start < d_in:
        size = min(block_size, d_in - start)
        count = size * (size - 1) // 2
        want[start : start + size, start : start + size] = block(delta.angles[index : index + count], size, transform)
        start, index = start + size, index + count
    assert index == len(delta.angles), "every angle turns something"
    np.testing.assert_allclose(delta.weight().detach().numpy() + np.eye(d_in), want, atol=1e-12)
    if transform == "cayley":
        np.testing.assert_allclose(want @ want.T, np.eye(d_in), atol=1e-12)


def test_published_parameters() -> None:
    """Six a block; the paper's 6,000 on an 8B model is one layer of 4096 inputs."""
    assert len(CayleyUnitary(4096, 8, CayleyConfig(), {}).angles) == 6 * 4096 // 4 == 6144


def test_starts_at_the_identity() -> None:
    delta = build(init_weights=True)
    assert delta(torch.randn(4, 11, dtype=DOUBLE)).abs().max() == 0


def test_the_control_differs_in_the_transform_alone() -> None:
    method, other = assert_differ_in_one_part(build, {}, {"transform": "linear"})
    u, first_order = (delta.weight() + torch.eye(11, dtype=DOUBLE) for delta in (method, other))
    torch.testing.assert_close(u @ u.T, torch.eye(11, dtype=DOUBLE))
    assert (first_order @ first_order.T - torch.eye(11, dtype=DOUBLE)).abs().max() > 1e-2
    with torch.no_grad():
        for delta in (method, other):
            delta.angles.mul_(1e-4)
    torch.testing.assert_close(method.weight(), other.weight(), rtol=0, atol=1e-7)  # equal to first order


def test_gradients() -> None:
    delta = build(6)
    x = torch.randn(2, 6, dtype=DOUBLE, requires_grad=True)
    angles = delta.angles.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, a: torch.func.functional_call(delta, {"angles": a}, (x,)), (x, angles))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 1}, "has no rotation.*block_size >= 2"),
        ({"block_size": 2.0}, "whole number"),
        ({"transform": "exp"}, "unknown transform"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        qpeft.CayleyConfig(**settings)


def test_one_input_cannot_be_turned() -> None:
    with pytest.raises(AdapterError, match=r"one input.*1 -> 3.*exclude_modules"):
        build(1)


def test_it_is_orthogonal_fine_tuning() -> None:
    """PEFT's OFT, an independent implementation, turns a layer's input by the same map: its weights are these angles."""
    peft = pytest.importorskip("peft")
    layer = torch.nn.Linear(12, 5, dtype=DOUBLE)
    config = peft.OFTConfig(r=0, oft_block_size=4, use_cayley_neumann=False, init_weights=False, target_modules=["0"])
    plain = layer.weight.detach().clone(), layer.bias.detach().clone()
    model = peft.get_peft_model(torch.nn.Sequential(layer), config).to(DOUBLE)
    (entries,) = (p for p in model.parameters() if p.requires_grad)
    torch.nn.init.normal_(entries)
    above = torch.zeros(3, 4, 4, dtype=DOUBLE)
    above[:, *torch.triu_indices(4, 4, 1)] = entries.detach()
    ours = build(12, 5)
    ours.angles.data = above.mT[:, *torch.tril_indices(4, 4, -1)].flatten()
    assert sum(p.numel() for p in ours.parameters()) == entries.numel()
    x = torch.randn(7, 12, dtype=DOUBLE)
    torch.testing.assert_close(model(x), torch.nn.functional.linear(x + ours(x), *plain))
