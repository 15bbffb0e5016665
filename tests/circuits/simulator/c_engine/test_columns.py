"""Columns of real circuits: every variant of the kernel against the torch engine, which test_statevector.py holds to numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qpeft.circuits import ansatz
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.circuits.simulator.c_engine import columns as kernel
from qpeft.circuits.simulator.statevector import columns
from qpeft.circuits.simulator.torch_engine.compiler import compile_circuit
from tests.circuits.simulator.c_engine.sanitized import drive

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}  # of the largest number
REAL = ("ry", "h", "x", "z", "cz", "cx", "swap", "ry", "ry")


def real_circuit(n: int, gates: int, seed: int) -> Circuit:
    """Real gates on random qubits; angles shared, scaled, shifted and constant, one of them unused."""
    draw = np.random.default_rng(seed)
    ops = []
    for _ in range(gates):
        name = str(draw.choice(REAL))
        width = 2 if name in ("cz", "cx", "swap") else 1
        if width > n:
            continue
        angle = None
        if name == "ry":
            bound = None if draw.random() < 0.1 else int(draw.integers(5))
            angle = Angle(bound, float(draw.choice([1.0, -2.0])), float(draw.choice([0.0, 0.4])))
        ops.append(Op(name, tuple(int(q) for q in draw.permutation(n)[:width]), angle))
    return Circuit(n, tuple(ops), n_params=6)


def both(circuit: Circuit, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Columns `(2, 2^n, k)`, and the gradient of their inner product with random numbers."""
    random = torch.Generator().manual_seed(k)
    angles = torch.randn(circuit.n_angles, dtype=torch.float64, generator=random).to(dtype).requires_grad_()
    found = torch.stack(columns(circuit, angles, k))
    grad = torch.randn(found.shape, dtype=torch.float64, generator=random)
    return found.detach(), torch.autograd.grad(found, angles, grad.to(dtype))[0]


def same(circuit: Circuit, k: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel.takes(compile_circuit(circuit))
    found = both(circuit, k, dtype)
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "takes", lambda *_: False)
        expected = both(circuit, k, torch.float64)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one.double(), other, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n", range(1, 10))
def test_random_real_circuits(variant: str, n: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, k in enumerate((1, min(3, 2**n), 2**n if n < 6 else 17)):
        same(real_circuit(n, 12 * n, seed), k, dtype, monkeypatch)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("circuit", "k"),
    [
        (ansatz.ry_cnot(13, 6), 1),
        (ansatz.ry_cnot(7, 40, entangling=False), 2),
        (ansatz.simplified_two_design(10, 32), 8),
        (ansatz.simplified_two_design(5, 3), 32),
        (ansatz.ry_cnot(kernel.MAX_QUBITS, 2), 1),
    ],
    ids=["13 qubits", "product", "two-design", "dense", "largest"],
)
def test_the_adapters_circuits(variant: str, circuit: Circuit, k: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    same(circuit, k, dtype, monkeypatch)


def test_a_circuit_without_gates(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    same(Circuit(3, (), n_params=2), 5, torch.float32, monkeypatch)


@pytest.mark.parametrize(
    "op",
    [Op("rx", (0,), Angle(0)), Op("s", (1,)), Op("crz", (0, 1), Angle(0)), Op("rz", (0,), Angle(shift=1.0))],
    ids=lambda op: op.gate,
)
def test_other_circuits_are_left_to_torch(op: Op) -> None:
    circuit = Circuit(2, (Op("ry", (0,), Angle(0)), op), n_params=1)
    assert not kernel.takes(compile_circuit(circuit))
    assert not kernel.takes(compile_circuit(ansatz.ry_cnot(kernel.MAX_QUBITS + 1, 1)))


def test_angles_and_gradients_need_not_be_contiguous(variant: str) -> None:
    circuit = ansatz.ry_cnot(5, 2)
    both = torch.randn(circuit.n_angles, 2, requires_grad=True)
    (found,) = torch.autograd.grad(columns(circuit, both[:, 1], 4)[0].t().expand(3, -1, -1).sum(), both)
    dense = both.detach()[:, 1].clone().requires_grad_()
    (expected,) = torch.autograd.grad((3 * columns(circuit, dense, 4)[0]).sum(), dense)
    torch.testing.assert_close(found[:, 1], expected)
    assert not found[:, 0].any()


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """The C code alone, both types, under the address and undefined-behaviour sanitizers."""
    said = drive(tmp_path, "columns_driver.c", "entry.c", "threads.c", "lanes.c", "columns.c")
    assert said.endswith("columns\n")
