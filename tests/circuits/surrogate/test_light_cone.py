"""Light cones against brute force: what lies outside a cone does not change the value, and the cone alone gives it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.circuits import ansatz
from qpeft.circuits.ir import GATES, Angle, Circuit, Observable, Op
from qpeft.circuits.simulator.simulate import expectations
from qpeft.circuits.surrogate.light_cone import light_cone


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    """Up to five qubits, any gates; two of six parameters are inputs."""
    n = draw(st.integers(2, 5))
    ops = []
    for _ in range(draw(st.integers(1, 14))):
        spec = GATES[draw(st.sampled_from([name for name, spec in GATES.items() if spec.n_qubits <= 2]))]
        qubits = tuple(draw(st.permutations(range(n)))[: spec.n_qubits])
        angle = Angle(draw(st.integers(0, 5)), draw(st.sampled_from([1.0, 0.5, -2.0])), 0.1) if spec.parametrised else None
        ops.append(Op(spec.name, qubits, angle))
    return Circuit(n, tuple(ops), 2, 6)


@settings(max_examples=80, deadline=None)
@given(circuits(), st.text("IXYZ", min_size=2, max_size=2))
def test_the_cone_alone_gives_the_value(circuit: Circuit, pauli: str) -> None:
    observable = Observable.pauli(pauli + "I" * (circuit.n_qubits - 2))
    cone = light_cone(circuit, observable)
    rng = np.random.default_rng(0)
    inputs, angles = torch.as_tensor(rng.uniform(-3, 3, (5, 2))), torch.as_tensor(rng.uniform(-3, 3, 4))
    whole = expectations(circuit, inputs, angles, [observable])
    part = expectations(cone.circuit, inputs[:, list(cone.inputs)], angles[list(cone.angles)], [cone.observable])
    assert (whole - part).abs().max() < 1e-12


@pytest.mark.parametrize("n_qubits", [6, 8, 16, 24])
def test_one_layer_of_qtha_depends_on_five_inputs_at_any_width(n_qubits: int) -> None:
    for k in range(n_qubits):
        cone = light_cone(ansatz.qtha(n_qubits, 1), Observable.z(k))
        assert sorted((q - k) % n_qubits for q in cone.inputs) == sorted({0, 1, 2, n_qubits - 2, n_qubits - 1})
        assert cone.circuit.n_qubits == 5


def test_diagonal_gates_at_the_end_are_not_part_of_a_cone() -> None:
    ops = (Op("h", (0,)), Op("crz", (0, 1), Angle(0)), Op("cz", (1, 2)), Op("rz", (2,), Angle(1)))
    cone = light_cone(Circuit(3, ops, 1, 2), Observable.z(0))
    assert (cone.qubits, cone.inputs, cone.angles, [op.gate for op in cone.circuit.ops]) == ((0,), (), (), ["h"])
    assert light_cone(Circuit(3, ops, 1, 2), Observable.pauli("XII")).inputs == (0,)
