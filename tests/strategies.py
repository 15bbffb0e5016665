"""Hypothesis strategies for circuits."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from qpeft.circuits.ir import GATES, Angle, Circuit, Op

finite = st.floats(allow_nan=False, allow_infinity=False)
radians = st.floats(-2 * math.pi, 2 * math.pi)


@st.composite
def circuits(draw: st.DrawFn, max_qubits: int = 4, max_ops: int = 12, numbers: st.SearchStrategy[float] = radians) -> Circuit:
    """Valid circuits over all gates, with inputs, angles, unused parameters and constants; `numbers` are scales and shifts."""
    n_qubits = draw(st.integers(1, max_qubits))
    n_inputs = draw(st.integers(0, 2))
    n_params = n_inputs + draw(st.integers(0, 3))
    names = [name for name, spec in GATES.items() if spec.n_qubits <= n_qubits]
    indices = st.none() | st.integers(0, n_params - 1) if n_params else st.none()
    ops = []
    for _ in range(draw(st.integers(0, max_ops))):
        name = draw(st.sampled_from(names))
        qubits = tuple(draw(st.permutations(range(n_qubits)))[: GATES[name].n_qubits])
        angle = (
            Angle(draw(indices), draw(st.just(1.0) | numbers), draw(st.just(0.0) | numbers)) if GATES[name].parametrised else None
        )
        ops.append(Op(name, qubits, angle))
    return Circuit(n_qubits, tuple(ops), n_inputs, n_params)


@st.composite
def bound_circuits(draw: st.DrawFn, max_qubits: int = 4, max_ops: int = 12) -> tuple[Circuit, list[float]]:
    """A circuit and a parameter vector for it, all numbers of moderate size."""
    circuit = draw(circuits(max_qubits, max_ops))
    return circuit, draw(st.lists(radians, min_size=circuit.n_params, max_size=circuit.n_params))
