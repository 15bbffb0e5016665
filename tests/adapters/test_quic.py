"""QuIC against minors taken one by one, and against the circuit that keeps the number of ones."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import qpeft
from qpeft.adapters.layers.orthogonal import givens, givens_schedule
from qpeft.adapters.methods.quic import QuIC, QuICConfig, largest_rotation
from qpeft.errors import AdapterError
from qpeft.testing import SLOW, check_adapter
from tests.adapters.compare_controls import assert_differ_in_one_part

DOUBLE = torch.float64
SIZES = [(896, 128), (192, 576), (31, 17), (5, 257), (3, 2), (2, 3), (1, 6)]  # a single output has no rotation


def build(d_in: int = 3, d_out: int = 23, **settings: Any) -> QuIC:
    return QuIC(d_in, d_out, QuICConfig(**{"init_weights": False, "n_blocks": 2, **settings}), {}).to(DOUBLE)


def compound(a: np.ndarray, k: int) -> np.ndarray:
    """The k x k minors of a, index sets in lexicographic order."""
    sets = [list(s) for s in itertools.combinations(range(len(a)), k)]
    return np.array([[np.linalg.det(a[np.ix_(rows, columns)]) for columns in sets] for rows in sets])


def direct_sum(d_out: int, blocks: list[list[np.ndarray]], size: int) -> np.ndarray:
    q = np.eye(d_out)
    for b, parts in enumerate(blocks):
        start = b * size
        for part in parts:
            q[start : start + len(part), start : start + len(part)] = part
            start += len(part)
    return q


def test_contract() -> None:
    check_adapter(qpeft.QuICConfig, sizes=SIZES, skip=SLOW)
    only = ["starts_as_no_op", "merges_when_linear", "takes_any_size_and_shape"]
    for settings in ({"max_order": 3, "rotation": "cayley", "n_blocks": 1}, {"structure": "tied", "block_share": True}):
        check_adapter(partial(qpeft.QuICConfig, **settings), sizes=SIZES, only=only)


@pytest.mark.slow
def test_contract_compiled() -> None:
    check_adapter(partial(qpeft.QuICConfig, n_blocks=2), only=SLOW)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("rotation", ["givens", "cayley"])
@pytest.mark.parametrize(
    ("d_out", "n_blocks", "max_order", "n"), [(23, 2, 1, 11), (23, 2, 2, 4), (33, 2, 3, 4), (64, 1, 4, 6), (7, 9, 2, 2)]
)
def test_minors_written_out(d_out: int, n_blocks: int, max_order: int, n: int, rotation: str, share: bool) -> None:
    delta = build(3, d_out, n_blocks=n_blocks, max_order=max_order, rotation=rotation, block_share=share)
    assert delta.n == n
    rotations = delta.rotation_minus_identity().detach().numpy() + np.eye(n)
    blocks = [[compound(a, k) for k in range(1, min(max_order, n - 1) + 1)] for a in rotations]
    want = direct_sum(d_out, blocks, delta.block)
    np.testing.assert_allclose(delta.weight().detach().numpy() + np.eye(d_out), want, atol=1e-12)
    np.testing.assert_allclose(want @ want.T, np.eye(d_out), atol=1e-12)
    assert delta.angles.numel() == n * (n - 1) // 2 * (1 if share else delta.blocks)


def test_the_largest_rotation_fits_and_the_next_does_not() -> None:
    for max_order in (1, 2, 3, 4):
        for block in range(2, 400):
            n = largest_rotation(block, max_order)
            sizes = [sum(math.comb(m, k) for k in range(1, min(max_order, m - 1) + 1)) for m in (n, n + 1)]
            assert sizes[0] <= block < sizes[1]


def test_angles_are_those_of_a_circuit_that_keeps_the_number_of_ones() -> None:
    """On the states with k ones, the circuit of fermionic single excitations acts as the compound of order k."""
    n = 4
    delta = build(3, 14, n_blocks=1, max_order=3)
    assert delta.n == n
    unitary = np.eye(2**n, dtype=complex)
    for partner in givens_schedule(n)[0].tolist():
        for i, j in ((i, j) for i, j in enumerate(partner) if i < j):
            angle = delta.angles[0, j * (j - 1) // 2 + i].item()
            gate = qml.FermionicSingleExcitation(2 * angle, wires=range(i, j + 1))
            unitary = qml.matrix(gate, wire_order=range(n)) @ unitary
    a = givens(delta.angles[0], *givens_schedule(n)).detach().numpy()
    for k in (1, 2, 3):
        states = [sum(1 << (n - 1 - q) for q in ones) for ones in itertools.combinations(range(n), k)]
        np.testing.assert_allclose(unitary[np.ix_(states, states)], compound(a, k), atol=1e-12)


def test_order_one_is_a_rotation_in_blocks() -> None:
    delta = build(3, 12, n_blocks=3, max_order=1)
    blocks = delta.weight() + torch.eye(12, dtype=DOUBLE)
    torch.testing.assert_close(blocks, torch.block_diag(*(delta.rotation_minus_identity() + torch.eye(4, dtype=DOUBLE))))


@pytest.mark.parametrize("rotation", ["givens", "cayley"])
@pytest.mark.parametrize("max_order", [1, 2, 3])
def test_starts_at_the_identity(max_order: int, rotation: str) -> None:
    delta = build(init_weights=True, max_order=max_order, rotation=rotation)
    with torch.autocast("cpu", torch.bfloat16):
        assert delta.float()(torch.randn(4, 23)).abs().max() == 0


def test_the_control_differs_in_the_compounds_alone() -> None:
    method, other = assert_differ_in_one_part(partial(build, 3, 20, n_blocks=1), {}, {"structure": "tied"})
    assert isinstance(other, QuIC)
    n = other.n
    a = other.rotation_minus_identity()[0].detach().numpy() + np.eye(n)
    want = direct_sum(20, [[a] * (1 + math.comb(n, 2) // n)], 20)
    np.testing.assert_allclose(other.weight().detach().numpy() + np.eye(20), want, atol=1e-12)
    torch.testing.assert_close(method.weight()[:n], other.weight()[:n])  # order one is common to both


def test_gradients() -> None:
    delta = build(3, 8, n_blocks=1, max_order=2)
    x = torch.randn(2, 8, dtype=DOUBLE, requires_grad=True)
    angles = delta.angles.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, a: torch.func.functional_call(delta, {"angles": a}, (x,)), (x, angles))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_blocks": 0}, "n_blocks must be"),
        ({"max_order": 0}, "max_order must be"),
        ({"rotation": "qr"}, "unknown rotation"),
        ({"structure": "free"}, "unknown structure.*compound, tied"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        qpeft.QuICConfig(**settings)


def test_one_output_cannot_be_turned() -> None:
    with pytest.raises(AdapterError, match=r"one output.*3 -> 1.*exclude_modules"):
        build(3, 1)
