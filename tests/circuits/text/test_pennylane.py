"""Circuits from and to PennyLane: round trips, state vectors, templates, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

pytest.importorskip("pennylane")

import pennylane as qml

from qpeft import expectations
from qpeft.circuits import ansatz
from qpeft.circuits.ir import Angle, Circuit
from qpeft.errors import CircuitError
from tests import reference, strategies


def state_of(function: object, n: int, *arguments: object) -> np.ndarray:
    @qml.qnode(qml.device("default.qubit", wires=n))
    def node() -> object:
        function(*arguments)  # type: ignore[operator]
        return qml.state()

    return np.asarray(node())


@settings(deadline=None, max_examples=40)
@given(strategies.bound_circuits(max_ops=8))
def test_states_agree_and_circuits_come_back(case: tuple[Circuit, list[float]]) -> None:
    circuit, params = case
    x, w = params[: circuit.n_inputs], params[circuit.n_inputs :]
    function = circuit.to_pennylane()
    assert reference.fidelity(reference.state(circuit, params), state_of(function, circuit.n_qubits, x, w)) == pytest.approx(1)

    def called(*arguments: np.ndarray) -> None:
        parts = iter(arguments)
        function(next(parts) if circuit.n_inputs else (), next(parts) if circuit.n_angles else ())

    again = Circuit.from_pennylane(called, circuit.n_inputs, circuit.n_angles, wires=range(circuit.n_qubits))
    assert [(op.gate, op.qubits) for op in again.ops] == [(op.gate, op.qubits) for op in circuit.ops]
    assert reference.fidelity(reference.state(again, params), reference.state(circuit, params)) == pytest.approx(1, abs=1e-10)


def test_a_round_trip_is_exact_for_plain_angles() -> None:
    circuit = ansatz.qtha(3, 2)
    assert Circuit.from_pennylane(circuit.to_pennylane(), inputs=3, angles=24) == circuit


def ansatz_of_a_user(x: np.ndarray, w: np.ndarray) -> None:
    qml.AngleEmbedding(2 * x, wires=range(3), rotation="Y")
    qml.StronglyEntanglingLayers(w, wires=range(3))
    qml.Barrier(wires=range(3))
    qml.IsingXX(x[0] + w[0, 0, 0] / 2 + 0.1, wires=[0, 2])
    qml.adjoint(qml.S)(wires=1)
    qml.ctrl(qml.RX, control=0)(w[1, 2, 2], wires=1)


def test_templates_and_shapes_against_pennylanes_own_values() -> None:
    circuit = Circuit.from_pennylane(ansatz_of_a_user, inputs=3, angles=(2, 3, 3))
    assert (circuit.n_qubits, circuit.n_inputs, circuit.n_angles) == (3, 3, 18)
    assert any(op.gate == "rxx" and op.angle == Angle(0, 1.0, 0.1) for op in circuit.ops)
    x = torch.randn(3, dtype=torch.float64)
    w = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)

    @qml.qnode(qml.device("default.qubit", wires=3), interface="torch", diff_method="backprop")
    def node(x: torch.Tensor, w: torch.Tensor) -> list[object]:
        ansatz_of_a_user(x, w)  # type: ignore[arg-type]
        return [qml.expval(qml.PauliZ(k)) for k in range(3)]

    theirs, ours = torch.stack(node(x, w)), expectations(circuit, x, w.flatten())
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    for mine, other in zip(torch.autograd.grad(ours.sum(), w), torch.autograd.grad(theirs.sum(), w), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=0)
    assert Circuit.from_pennylane(node, inputs=3, angles=(2, 3, 3)) == circuit  # a QNode, measurements left out


def test_wires_of_other_names_keep_their_order() -> None:
    def function(x: np.ndarray) -> None:
        qml.RY(x[0], wires="b")
        qml.CNOT(wires=["b", "a"])

    assert [op.qubits for op in Circuit.from_pennylane(function, inputs=1).ops] == [(0,), (0, 1)]
    assert [op.qubits for op in Circuit.from_pennylane(function, inputs=1, wires=["a", "b", "c"]).ops] == [(1,), (1, 0)]
    with pytest.raises(CircuitError, match="wires that are not named"):
        Circuit.from_pennylane(function, inputs=1, wires=["a"])


def test_refusals() -> None:
    def product(x: np.ndarray, w: np.ndarray) -> None:
        qml.RY(x[0] * w[0], wires=0)

    def curve(x: np.ndarray) -> None:
        qml.RY(np.sin(x[0]), wires=0)

    def depends(x: np.ndarray) -> None:
        (qml.RY if x[0] > 0.5 else qml.RX)(x[0], wires=0)

    def measured(x: np.ndarray) -> None:
        qml.RY(x[0], wires=0)
        qml.measure(0)

    with pytest.raises(CircuitError, match=r"sum of scale.*u = x \* w"):
        Circuit.from_pennylane(product, inputs=1, angles=1)
    with pytest.raises(CircuitError, match="sum of scale"):
        Circuit.from_pennylane(curve, inputs=1)
    with pytest.raises(CircuitError, match="depends on the parameters"):
        Circuit.from_pennylane(depends, inputs=1)
    with pytest.raises(CircuitError, match="not a unitary gate"):
        Circuit.from_pennylane(measured, inputs=1)
    with pytest.raises(CircuitError, match="wrong length"):
        ansatz.qtha(2, 1).to_pennylane()([0.1], [0.2])
