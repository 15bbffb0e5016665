"""The light cone of an observable: the gates, qubits and inputs that its expectation value can depend on.

The observable is carried backward through the circuit. A gate that acts on none of its qubits, or that commutes with it, leaves
it as it is and is not part of the cone. A diagonal gate commutes with an observable that is diagonal (I or Z) on every qubit of
the gate; next to a qubit that is not, it spreads the observable to its other qubits, where it stays diagonal. QTHA's circuit with
one layer gives cones of five qubits whatever its width.

Noise that acts on single qubits or as Pauli errors on the qubits of a gate does not widen a cone. What a chip adds beyond that
(amplitude damping inside a routed SWAP, crosstalk) is not in it: `Surrogate.error` measures what is missed.
"""

from __future__ import annotations

from dataclasses import dataclass

from qpeft.circuits.ir import Angle, Circuit, Observable, Op

DIAGONAL, GENERAL = "diagonal", "general"


@dataclass(frozen=True)
class LightCone:
    """The part of a circuit that an observable sees, as a circuit of its own.

    Attributes:
        circuit: the gates of the cone; its inputs are `inputs`, in that order, and its angles those that the cone's gates use.
        observable: the observable on the cone's qubits.
        qubits: for each qubit of the cone, its index in the whole circuit, ascending.
        inputs: for each input of the cone, its index in the whole circuit, ascending.
        angles: for each angle of the cone, its index among the angles of the whole circuit, ascending.
    """

    circuit: Circuit
    observable: Observable
    qubits: tuple[int, ...]
    inputs: tuple[int, ...]
    angles: tuple[int, ...]


def light_cone(circuit: Circuit, observable: Observable) -> LightCone:
    """The light cone of `observable` at the end of `circuit`; see the module's text for the rule.

    The cone may be larger than the true dependence (it looks at kinds of gates, not at angles), never smaller.
    """
    kinds: dict[int, str] = {}
    for _, word in observable.terms:
        for qubit, pauli in word:
            kinds[qubit] = GENERAL if pauli != "Z" or kinds.get(qubit) == GENERAL else DIAGONAL
    seen: list[Op] = []
    for op in reversed(circuit.ops):
        if _spread(op, kinds):
            seen.append(op)
    seen.reverse()
    qubits = tuple(sorted(kinds)) or (0,)
    used = sorted({op.angle.index for op in seen if op.angle is not None and op.angle.index is not None and op.angle.scale})
    inputs = tuple(index for index in used if index < circuit.n_inputs)
    angles = tuple(index - circuit.n_inputs for index in used if index >= circuit.n_inputs)
    qubit_of = {qubit: place for place, qubit in enumerate(qubits)}
    index_of = {index: place for place, index in enumerate(used)}
    ops = tuple(Op(op.gate, tuple(qubit_of[q] for q in op.qubits), _renumbered(op.angle, index_of)) for op in seen)
    terms = tuple((value, tuple((qubit_of[q], pauli) for q, pauli in word)) for value, word in observable.terms)
    return LightCone(Circuit(len(qubits), ops, len(inputs), len(used)), Observable(terms), qubits, inputs, angles)


def _spread(op: Op, kinds: dict[int, str]) -> bool:
    """Carry the observable, diagonal or general on each qubit of `kinds`, back through a gate; whether the gate matters to it."""
    touched = [qubit for qubit in op.qubits if qubit in kinds]
    if not touched:
        return False
    if op.spec.diagonal:
        if all(kinds[qubit] == DIAGONAL for qubit in touched):
            return False
        for qubit in op.qubits:
            kinds.setdefault(qubit, DIAGONAL)
        return True
    if op.gate == "cx":
        control, target = op.qubits
        if target not in kinds and kinds[control] == DIAGONAL:
            return False
        if kinds.get(control) == GENERAL:
            kinds[target] = GENERAL
        else:  # the gate is diagonal on its control
            kinds[control] = DIAGONAL
        return True
    for qubit in op.qubits:
        kinds[qubit] = GENERAL
    return True


def _renumbered(angle: Angle | None, index_of: dict[int, int]) -> Angle | None:
    if angle is None or angle.index is None:
        return angle
    return Angle(index_of[angle.index], angle.scale, angle.shift) if angle.scale else Angle(shift=angle.shift)
