"""Circuit families: functions that return a Circuit. Each docstring gives the order of gates and of angles.

`FAMILIES` holds them by name. Another package adds one by an entry point of the group `qpeft.circuits`: a function
`(n_qubits, n_layers) -> Circuit`.
"""

from __future__ import annotations

from collections.abc import Callable

from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import CircuitError
from qpeft.plugins import Registry


def qtha(n_qubits: int, n_layers: int, *, entangling: bool = True) -> Circuit:
    """The circuit of quantum tensor hybrid adaptation (arXiv 2503.12790): `n` inputs, `4 n L` angles.

    Each of the L layers: `RY(u_i)` on every qubit (the same inputs in every layer); `CRZ(theta1[k,i])` with control i and
    target i+1 mod n; `RY(phi1[k,i])`; `CRZ(theta2[k,i])` with control i and target i-1 mod n; `RY(phi2[k,i])`.
    Angles are ordered `[k, (theta1, phi1, theta2, phi2), i]`, row-major.

    Args:
        n_qubits: n, at least 1. With one qubit a CRZ has no target and is left out.
        n_layers: L, at least 1.
        entangling: False leaves out the CRZ gates and their angles: `2 n L` angles remain, ordered `[k, (phi1, phi2), i]`.

    Raises:
        CircuitError: no qubit or no layer.
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

    Args:
        n_qubits: n, at least 1.
        n_layers: L, at least 1.

    Raises:
        CircuitError: no qubit or no layer.
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


def ry_cnot(n_qubits: int, n_layers: int, *, entangling: bool = True) -> Circuit:
    """Per layer an RY on every qubit, then CNOT(i, i+1) for i = 0..n-2: no inputs, `n L` angles ordered `[k, i]`.

    The state it prepares is real.

    Args:
        n_qubits: n, at least 1.
        n_layers: L, at least 1.
        entangling: False leaves out the CNOTs, and the state is a product.

    Raises:
        CircuitError: no qubit or no layer.
    """
    if n_qubits < 1 or n_layers < 1:
        raise CircuitError("the circuit needs at least one qubit and one layer", value=(n_qubits, n_layers))
    ops: list[Op] = []
    for k in range(n_layers):
        ops += [Op("ry", (i,), Angle(k * n_qubits + i)) for i in range(n_qubits)]
        ops += [Op("cx", (i, i + 1)) for i in range(n_qubits - 1 if entangling else 0)]
    return Circuit(n_qubits, tuple(ops), n_params=n_qubits * n_layers)


def simplified_two_design(n_qubits: int, n_layers: int, *, entangling: bool = True) -> Circuit:
    """The simplified two-design (arXiv 2001.00550): no inputs, `(2 L + 1) n - 2 L` angles, a real unitary.

    An RY on every qubit, then L layers of two halves: CZ(i, i+1) and an RY on both qubits, for the pairs (0,1), (2,3).. in the
    first half and (1,2), (3,4).. in the second. Angles are in the order of the gates: the first n, then two for each pair.

    Args:
        n_qubits: n, at least 1.
        n_layers: L, at least 1.
        entangling: False leaves out the CZ gates. The number of angles stays, and the unitary is a product.

    Raises:
        CircuitError: no qubit or no layer.
    """
    if n_qubits < 1 or n_layers < 1:
        raise CircuitError("the circuit needs at least one qubit and one layer", value=(n_qubits, n_layers))
    ops = [Op("ry", (i,), Angle(i)) for i in range(n_qubits)]
    index = n_qubits
    for _ in range(n_layers):
        for i in (*range(0, n_qubits - 1, 2), *range(1, n_qubits - 1, 2)):
            if entangling:
                ops.append(Op("cz", (i, i + 1)))
            ops += [Op("ry", (i,), Angle(index)), Op("ry", (i + 1,), Angle(index + 1))]
            index += 2
    return Circuit(n_qubits, tuple(ops), n_params=index)


FAMILIES: Registry[Callable[[int, int], Circuit]] = Registry(
    "qpeft.circuits", {family.__name__: family for family in (qtha, hardware_efficient, ry_cnot, simplified_two_design)}
)
