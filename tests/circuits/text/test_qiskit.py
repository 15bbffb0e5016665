"""Circuits from and to Qiskit: round trips, state vectors, vectors of more than ten parameters, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

pytest.importorskip("qiskit")

from qiskit import QuantumCircuit, qasm3
from qiskit.circuit import Parameter, ParameterVector
from qiskit.circuit.library import EfficientSU2, ZZFeatureMap
from qiskit.quantum_info import Statevector

from qpeft.circuits import ansatz
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import CircuitError
from tests import reference, strategies


def state_of(circuit: QuantumCircuit) -> np.ndarray:
    """Qiskit's state in our order of qubits."""
    return reference.reverse_qubits(Statevector(circuit).data)


def assert_same_state(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert reference.fidelity(ours, theirs) == pytest.approx(1, abs=1e-10)


@settings(deadline=None, max_examples=60)
@given(strategies.bound_circuits())
def test_states_agree_and_circuits_come_back(case: tuple[Circuit, list[float]]) -> None:
    circuit, params = case
    assert_same_state(reference.state(circuit, params), state_of(circuit.to_qiskit(params)))
    free = circuit.to_qiskit()
    used = {op.angle.index for op in circuit.ops if op.angle is not None and op.angle.index is not None and op.angle.scale}
    x, w = ParameterVector("in", circuit.n_inputs), ParameterVector("theta", circuit.n_angles)
    again = Circuit.from_qiskit(free, list(x), list(w))
    assert (again.n_inputs, again.n_params) == (circuit.n_inputs, circuit.n_params)
    assert_same_state(reference.state(again, params), reference.state(circuit, params))
    if all(op.angle is None or op.angle.index in used or op.angle.index is None for op in circuit.ops):
        assert [(op.gate, op.qubits) for op in again.ops] == [(op.gate, op.qubits) for op in circuit.ops]


def test_vectors_of_more_than_ten_are_in_order_by_every_way() -> None:
    circuit = ansatz.qtha(12, 1)
    free = circuit.to_qiskit()
    assert Circuit.from_qiskit(free) == circuit
    assert Circuit.from_qiskit(free, inputs="in") == circuit
    assert Circuit.from_qasm(qasm3.dumps(free)) == circuit


def test_inputs_and_angles_by_vectors_parameters_and_names() -> None:
    x, w, gain = ParameterVector("x", 11), ParameterVector("w", 3), Parameter("gain")
    qc = QuantumCircuit(2)
    for k in range(11):
        qc.ry(2 * x[k] + 0.5, k % 2)
    qc.crz(w[2] - gain, 0, 1)
    want = [Angle(k, 2.0, 0.5) for k in range(11)]
    circuit = Circuit.from_qiskit(qc, inputs=x, angles=[*w, gain])
    assert (circuit.n_inputs, circuit.n_params) == (11, 15)  # w[0] and w[1] are not used, and keep their places
    assert [op.angle for op in circuit.ops] == [*want, Angle(13), Angle(14, -1.0)]
    assert Circuit.from_qiskit(qc, inputs="x").n_params == 13  # of the others only those that are used
    assert Circuit.from_qiskit(qc, inputs=["gain", "x"]).ops[0].angle == Angle(1, 2.0, 0.5)
    for arguments, message in (
        ({"inputs": x, "angles": w}, "neither inputs nor angles.*gain"),
        ({"inputs": ["y"]}, "no parameter of this name.*'y'"),
        ({}, "data or trained angles"),
        ({"inputs": x, "angles": ["x", "w", "gain"]}, "an input and an angle"),
    ):
        with pytest.raises(CircuitError, match=message):
            Circuit.from_qiskit(qc, **arguments)


def test_a_product_is_refused_with_the_rewriting() -> None:
    x, w = Parameter("x"), Parameter("w")
    qc = QuantumCircuit(1)
    qc.ry(x * w, 0)
    with pytest.raises(CircuitError, match=r"sum of scale.*u = x \* w"):
        Circuit.from_qiskit(qc, inputs=x)
    rewritten = QuantumCircuit(1)
    u = Parameter("u")
    rewritten.ry(u, 0)
    circuit = Circuit.from_qiskit(rewritten, inputs=u)
    data, weight = torch.tensor([[0.3], [0.8]], dtype=torch.float64), torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    from qpeft import expectations

    z = expectations(circuit, data * weight, torch.zeros(0, dtype=torch.float64))
    torch.testing.assert_close(z[:, 0], (data[:, 0] * weight).cos())
    (slope,) = torch.autograd.grad(z.sum(), weight)
    torch.testing.assert_close(slope, -(data * (data * weight).sin()).sum())


def test_gates_of_other_names_are_replaced_by_their_definitions() -> None:
    t = Parameter("t")
    qc = QuantumCircuit(3)
    qc.u(0.1, t, 0.3, 0)
    qc.ccx(0, 1, 2)
    qc.iswap(0, 2)
    qc.rzx(t, 1, 2)
    qc.cu(0.1, 0.2, 0.3, 0.4, 2, 0)
    qc.cx(0, 1, ctrl_state=0)
    qc.barrier()
    qc.cswap(0, 1, 2)
    qc.measure_all()
    circuit = Circuit.from_qiskit(qc, inputs=t)
    bound = qc.remove_final_measurements(inplace=False).assign_parameters({t: 0.7})
    assert_same_state(reference.state(circuit, [0.7]), state_of(bound))


@pytest.mark.filterwarnings("ignore:The class")
def test_library_circuits() -> None:
    features, layers = ZZFeatureMap(3, reps=1, parameter_prefix="x"), EfficientSU2(3, reps=1)
    qc = layers.compose(features, front=True)
    with pytest.raises(CircuitError, match="sum of scale"):  # its angles hold products of two data
        Circuit.from_qiskit(qc, inputs="x")
    circuit = Circuit.from_qiskit(layers, angles="θ")
    values = np.random.default_rng(0).normal(size=circuit.n_angles)
    assert_same_state(reference.state(circuit, values.tolist()), state_of(layers.assign_parameters(values)))


def test_what_is_no_circuit_of_gates_is_refused() -> None:
    reset = QuantumCircuit(1)
    reset.reset(0)
    late = QuantumCircuit(1, 1)
    late.measure(0, 0)
    late.x(0)
    for qc, message in ((reset, "not a unitary gate.*reset"), (late, "after the measurement"), ("qc", "not a Qiskit circuit")):
        with pytest.raises(CircuitError, match=message):
            Circuit.from_qiskit(qc)
    with pytest.raises(CircuitError, match="wrong number"):
        Circuit(1, (Op("ry", (0,), Angle(0)),), 1, 1).to_qiskit([])
