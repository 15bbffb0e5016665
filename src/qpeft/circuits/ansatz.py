"""Functions that return a Circuit. Each docstring gives the order of gates and of angles."""

from __future__ import annotations

from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import CircuitError


def qtha(n_qubits: int, n_layers: int, *, entangling: bool = True) -> Circuit:
    """The circuit of quantum tensor hybrid adaptation (arXiv 2503.12790): `n` inputs, `4 n L` angles.

    Each of the L layers: `RY(u_i)` on every qubit (the same inputs in every layer); `CRZ(theta1[k,i])` with control i and
    target i+1 mod n; `RY(phi1[k,i])`; `CRZ(theta2[k,i])` with control i and target i-1 mod n; `RY(phi2[k,i])`.
    Angles are ordered `[k, (theta1, phi1, theta2, phi2), i]`, row-major. With `entangling=False` the CRZ gates are left out
    and their angles with them (`2 n L` remain, ordered `[k, (phi1, phi2), i]`). With one qubit a CRZ has no target and is
    left out likewise.
    """
    if n_qubits < 1 or n_layers < 1:
        raise CircuitError("the circuit needs at least one qubit and one layer", value=(n_qubits, n_layers))
    entangling = entangling and n_qubits > 1
    ops: list[Op] = []
    index = n_qubits
    for _ in range(n_layers):
        ops += [Op("ry", (i,), Angle(i)) for i in range(n_qubits)]
        for step in (1, -1):
            if entangling:
                ops += [Op("crz", (i, (i + step) % n_qubits), Angle(index + i)) for i in range(n_qubits)]
                index += n_qubits
            ops += [Op("ry", (i,), Angle(index + i)) for i in range(n_qubits)]
            index += n_qubits
    return Circuit(n_qubits, tuple(ops), n_inputs=n_qubits, n_params=index)


def hardware_efficient(n_qubits: int, n_layers: int) -> Circuit:
    """RY encoding once, then per layer RX, RY, RZ on every qubit and a CNOT ring: `n` inputs, `3 n L` angles.

    Angles are ordered `[k, i, (RX, RY, RZ)]`, row-major. The ring is CNOT(i, i+1 mod n) for i = 0..n-1; two qubits have the
    single CNOT(0, 1) and one qubit has none.
    """
    if n_qubits < 1 or n_layers < 1:
        raise CircuitError("the circuit needs at least one qubit and one layer", value=(n_qubits, n_layers))
    ops = [Op("ry", (i,), Angle(i)) for i in range(n_qubits)]
    index = n_qubits
    for _ in range(n_layers):
        for i in range(n_qubits):
            for gate in ("rx", "ry", "rz"):
                ops.append(Op(gate, (i,), Angle(index)))
                index += 1
        ring = n_qubits if n_qubits > 2 else n_qubits - 1
        ops += [Op("cx", (i, (i + 1) % n_qubits)) for i in range(ring)]
    return Circuit(n_qubits, tuple(ops), n_inputs=n_qubits, n_params=index)
