"""States and columns of circuits without inputs: against plain numpy, PennyLane and numerical derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.circuits.simulator.statevector import amplitudes, columns
from qpeft.circuits.simulator.torch_engine.compiler import DENSE_QUBITS, compile_circuit
from qpeft.errors import CircuitError
from tests import reference
from tests.foreign import pennylane_gate
from tests.strategies import circuits

MIXED = ("ry", "cz", "rx", "cx", "crz", "p", "swap", "rzz", "h", "cry")


def mixed(n_qubits: int, n_ops: int = 24, seed: int = 0) -> Circuit:
    """Gates of every kind on random qubits, two of them sharing an angle."""
    draw = np.random.default_rng(seed)
    ops, index = [], 0
    for position in range(n_ops):
        op = MIXED[position % len(MIXED)]
        width = 2 if op in ("cz", "cx", "crz", "swap", "rzz", "cry") else 1
        if width > n_qubits:
            continue
        angle = None
        if op not in ("cz", "cx", "swap", "h"):
            angle = Angle(max(0, index - (position == 5)), 1.5 if position % 4 == 0 else 1.0, 0.25 * (position % 3))
            index += 1
        ops.append(Op(op, tuple(int(q) for q in draw.permutation(n_qubits)[:width]), angle))
    return Circuit(n_qubits, tuple(ops), n_params=index)


def some_angles(circuit: Circuit) -> torch.Tensor:
    return torch.randn(circuit.n_angles, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def unitary(circuit: Circuit, params: list[float]) -> np.ndarray:
    """Column by column: the circuit after X gates that make the basis state."""
    n, out = circuit.n_qubits, []
    for basis in range(2**n):
        flips = tuple(Op("x", (q,)) for q in range(n) if basis >> (n - 1 - q) & 1)
        out.append(reference.state(Circuit(n, flips + circuit.ops, n_params=circuit.n_params), params))
    return np.stack(out, axis=1)


@given(circuits(), st.data())
@settings(max_examples=60, deadline=None)
def test_columns_equal_plain_numpy(circuit: Circuit, data: st.DataObject) -> None:
    circuit = Circuit(circuit.n_qubits, circuit.ops, 0, circuit.n_params)  # inputs become angles
    params = data.draw(st.lists(st.floats(-6, 6), min_size=circuit.n_params, max_size=circuit.n_params))
    k = data.draw(st.integers(1, 2**circuit.n_qubits))
    angles = torch.tensor(params, dtype=torch.float64)
    re, im = columns(circuit, angles, k)
    np.testing.assert_allclose(re.numpy() + 1j * im.numpy(), unitary(circuit, params)[:, :k], atol=1e-11)


@pytest.mark.parametrize("n_qubits", [1, 3, DENSE_QUBITS, DENSE_QUBITS + 1, 9])
def test_amplitudes_equal_pennylane(n_qubits: int) -> None:
    qml = pytest.importorskip("pennylane")
    circuit = mixed(n_qubits)
    angles = some_angles(circuit)

    @qml.qnode(qml.device("default.qubit", wires=n_qubits))
    def state() -> object:
        for op in circuit.ops:
            pennylane_gate(op.gate, 0.0 if op.angle is None else op.angle.value(angles.tolist()), op.qubits)
        return qml.state()

    re, im = amplitudes(circuit, angles)
    np.testing.assert_allclose(re.numpy() + 1j * im.numpy(), state(), atol=1e-12)


@pytest.mark.parametrize(("n_qubits", "k"), [(1, 2), (3, 1), (3, 5), (DENSE_QUBITS + 1, 3)])
def test_gradients(n_qubits: int, k: int) -> None:
    circuit = mixed(n_qubits, 24 if n_qubits < 6 else 7)
    mix = torch.randn(6, 2 * 2**n_qubits * k, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert torch.autograd.gradcheck(
        lambda a: mix @ torch.stack(columns(circuit, a, k)).flatten(), some_angles(circuit).requires_grad_()
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.15, of its own check
def test_the_operator_keeps_its_rules() -> None:
    circuit = mixed(2, 10)
    key, angles = compile_circuit(circuit).key, some_angles(circuit).requires_grad_()
    torch.library.opcheck(torch.ops.qpeft.columns.default, (angles, key, 3))


@pytest.mark.parametrize("n_qubits", [4, 8])
def test_columns_are_orthonormal_in_single_precision_under_autocast(n_qubits: int) -> None:
    circuit = mixed(n_qubits)
    with torch.autocast("cpu", torch.bfloat16):
        re, im = columns(circuit, some_angles(circuit).bfloat16(), 2**n_qubits)
    assert re.dtype == im.dtype == torch.float32
    u = torch.complex(re.double(), im.double())
    torch.testing.assert_close(u.mH @ u, torch.eye(2**n_qubits, dtype=u.dtype), rtol=0, atol=1e-5)


def test_no_gates_is_the_identity() -> None:
    re, im = columns(Circuit(3, ()), torch.zeros(0), 5)
    torch.testing.assert_close(re, torch.eye(8)[:, :5])
    assert im.abs().max() == 0


@pytest.mark.parametrize(
    ("circuit", "n_angles", "k", "message"),
    [
        (Circuit(2, (), n_inputs=1, n_params=1), 0, 1, "inputs"),
        (Circuit(2, (), n_params=2), 3, 1, r"\(3,\).*\(2,\)"),
        (Circuit(2, ()), 0, 0, r"columns.*1\.\.4"),
        (Circuit(2, ()), 0, 5, r"columns.*1\.\.4"),
    ],
)
def test_refusals(circuit: Circuit, n_angles: int, k: int, message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        columns(circuit, torch.zeros(n_angles), k)
