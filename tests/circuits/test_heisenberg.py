"""Observables carried back to the inputs, against the recorded state-vector simulator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qpeft.circuits import ansatz
from qpeft.circuits.ir import GATES, Angle, Circuit, Observable, Op
from qpeft.circuits.simulator import heisenberg
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.simulator.torch_engine.compiler import Plan, compile_circuit
from qpeft.circuits.surrogate import polynomial

DOUBLE = torch.float64
ENTANGLING = [s.name for s in GATES.values() if s.n_qubits == 2 and not s.parametrised]  # CH too: a CZ between fixed gates


def covered_circuit(n: int, seed: int) -> Circuit:
    """Fixed gates, an upload of any input at any rate on most qubits, then any gates on one qubit and Clifford gates on two."""
    rng = np.random.default_rng(seed)
    single = [s for s in GATES.values() if s.n_qubits == 1]
    uploads = [s.name for s in single if s.parametrised]

    def angle(index: int | None) -> Angle:
        return Angle(index, float(rng.choice([1.0, -0.5, 2.0])), float(rng.choice([0.0, 0.3])))

    ops = []
    for q in range(n):
        ops += [Op("h", (q,)), Op("ry", (q,), Angle(shift=0.7))]
        if q != 1:
            ops.append(Op(str(rng.choice(uploads)), (q,), angle(int(rng.integers(3)))))
    for _ in range(6 * n):
        if n > 1 and rng.random() < 0.4:
            ops.append(Op(str(rng.choice(ENTANGLING)), tuple(int(q) for q in rng.choice(n, 2, replace=False))))
        else:
            spec = single[rng.integers(len(single))]
            shared = angle(None if rng.random() < 0.2 else 3 + int(rng.integers(4))) if spec.parametrised else None
            ops.append(Op(spec.name, (int(rng.integers(n)),), shared))
    return Circuit(n, tuple(ops), 3, 7)


def words(n: int, seed: int) -> tuple[Observable, ...]:
    rng = np.random.default_rng(seed)
    drawn = ["".join(rng.choice(list("IXYZ"), n)) for _ in range(3)]
    mixed = Observable((*Observable.pauli(drawn[0], 0.5).terms, *Observable.pauli(drawn[1], -2.0).terms, (0.25, ())))
    return (Observable.pauli(drawn[2]), mixed, Observable.z(n - 1))


def compare(plan: Plan, dtype: torch.dtype, batch: int, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(batch)
    shapes = ((batch, len(plan.observables)), (batch, plan.circuit.n_inputs), (plan.circuit.n_angles,))
    grad, inputs, angles = (torch.randn(shape, dtype=DOUBLE, generator=generator) for shape in shapes)
    x, a = inputs.clone().requires_grad_(), angles.clone().requires_grad_()
    out = Simulator("autograd").compile(plan.circuit, plan.observables)(x, a)
    used = out + 0 * (x.sum() + a.sum())
    want = [out.detach(), *torch.autograd.grad(used, (x, a), grad)]
    kit = heisenberg.kit(plan, inputs.device, dtype)
    given = [t.to(dtype) for t in (grad, inputs, angles)]
    found: list[Tensor] = [kit.values(*given[1:]), *kit.gradients(*given)]
    for ours, theirs in zip(found, want, strict=True):
        assert ours.dtype == dtype
        scale = max(1.0, float(theirs.abs().max())) if theirs.numel() else 1.0
        torch.testing.assert_close(ours.to(DOUBLE), theirs, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_any_covered_circuit(n: int, seed: int) -> None:
    plan = compile_circuit(covered_circuit(n, 10 * n + seed), words(n, seed))
    assert heisenberg.covers(plan)
    compare(plan, DOUBLE, 7, 1e-11)


@pytest.mark.parametrize(("n", "layers"), [(1, 1), (2, 2), (3, 1), (4, 1), (4, 2), (5, 3), (6, 2)])
def test_the_hardware_efficient_circuit_in_both_types(n: int, layers: int) -> None:
    plan = compile_circuit(ansatz.hardware_efficient(n, layers))
    assert heisenberg.covers(plan)
    compare(plan, DOUBLE, 50, 1e-12)
    compare(plan, torch.float32, 50, 2e-6)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polynomial, "CHUNK_BYTES", 1)  # 32 samples, the least
    compare(compile_circuit(ansatz.hardware_efficient(3, 2)), DOUBLE, 75, 1e-12)


def test_no_samples() -> None:
    plan = compile_circuit(ansatz.hardware_efficient(3, 2))
    kit = heisenberg.kit(plan, torch.device("cpu"), torch.float32)
    by_inputs, by_angles = kit.gradients(torch.zeros(0, 3), torch.zeros(0, 3), torch.randn(18))
    assert kit.values(torch.zeros(0, 3), torch.randn(18)).shape == by_inputs.shape == (0, 3)
    assert torch.equal(by_angles, torch.zeros(18))


@pytest.mark.parametrize("name", [s.name for s in GATES.values() if s.n_qubits == 1])
def test_a_gate_on_bloch_vectors(name: str) -> None:
    spec = GATES[name]
    zero = np.zeros((2, 2))
    parts = np.array([zero if p is None else p for p in (spec.constant, spec.cosine, spec.sine)], dtype=np.complex128)
    gate = heisenberg.Gate("local", (0,), parts, spec.frequency, Angle(0) if spec.parametrised else None)
    lifted = heisenberg.lifted(gate)
    for angle in (0.0, 0.4, -2.9, 7.0):
        np.testing.assert_allclose(lifted.matrix(angle), heisenberg.transfer(gate.matrix(angle)), atol=1e-12)


@pytest.mark.parametrize(
    ("why", "circuit"),
    [
        ("entangling gates with angles", ansatz.qtha(3, 1)),
        ("data after entangling gates", Circuit(2, (Op("h", (0,)), Op("cx", (0, 1)), Op("ry", (0,), Angle(0))), 1, 1)),
        ("a trainable gate before the data", Circuit(1, (Op("rx", (0,), Angle(1)), Op("ry", (0,), Angle(0))), 1, 2)),
        ("two inputs on a qubit", Circuit(1, (Op("rx", (0,), Angle(0)), Op("ry", (0,), Angle(1))), 2, 2)),
        ("no inputs", Circuit(1, (Op("ry", (0,), Angle(0)),), 0, 1)),
        (
            "an entangling gate that is no Clifford gate",
            Circuit(2, (Op("ry", (0,), Angle(0)), Op("h", (1,)), Op("cp", (0, 1), Angle(shift=0.4)), Op("h", (1,))), 1, 1),
        ),
        ("too many qubits", ansatz.hardware_efficient(7, 1)),
    ],
)
def test_what_is_not_covered(why: str, circuit: Circuit) -> None:
    assert not heisenberg.covers(compile_circuit(circuit)), why


def test_it_is_chosen_for_many_samples_alone() -> None:
    plan = compile_circuit(ansatz.hardware_efficient(6, 8))
    assert heisenberg.worth(plan, 1 << 14)
    assert not heisenberg.worth(plan, 1)
