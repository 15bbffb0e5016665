"""Circuit <-> PennyLane quantum functions (extra `pennylane`). Wire k is qubit k; both write qubit 0 leftmost.

States agree up to a global phase.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from qpeft.circuits.ir import GATES, PRODUCT_HINT, Angle, Circuit, Op
from qpeft.errors import CircuitError, MissingDependencyError

Shape = int | Sequence[int]

FIXED = {
    "id": "Identity", "x": "PauliX", "y": "PauliY", "z": "PauliZ", "h": "Hadamard", "s": "S", "t": "T", "sx": "SX", "cx": "CNOT",
    "cy": "CY", "cz": "CZ", "ch": "CH", "swap": "SWAP",
}  # fmt: skip
ADJOINT = {"sdg": "S", "tdg": "T", "sxdg": "SX"}
ROTATIONS = {
    "rx": "RX", "ry": "RY", "rz": "RZ", "p": "PhaseShift", "crx": "CRX", "cry": "CRY", "crz": "CRZ", "cp": "ControlledPhaseShift",
    "rxx": "IsingXX", "ryy": "IsingYY", "rzz": "IsingZZ",
}  # fmt: skip
_NAMES = {
    **{theirs: ours for ours, theirs in {**FIXED, **ROTATIONS}.items()},
    **{f"Adjoint({theirs})": ours for ours, theirs in ADJOINT.items()},
}
_LEFT_OUT = ("Barrier", "GlobalPhase", "Snapshot", "WireCut")
MAX_DEPTH = 32  # of decompositions of gates in one another
TOLERANCE = 1e-9  # radians: how far an angle may be from a linear function of the parameters


def _pennylane() -> Any:
    try:
        import pennylane
    except ImportError as error:
        raise MissingDependencyError("pennylane", "pennylane", "a conversion from or to PennyLane") from error
    return pennylane


def operators(circuit: Circuit, params: Any) -> list[Any]:
    """PennyLane's operators of the circuit on wires 0 to n - 1; `params` are inputs, then angles, numbers or traced, radians."""
    qml, out = _pennylane(), []
    for op in circuit.ops:
        if op.angle is not None:
            index = op.angle.index
            value = op.angle.shift if index is None else op.angle.scale * params[index] + op.angle.shift
            out.append(getattr(qml, ROTATIONS[op.gate])(value, wires=op.qubits))
        elif op.gate in FIXED:
            out.append(getattr(qml, FIXED[op.gate])(wires=op.qubits))
        else:
            out.append(qml.adjoint(getattr(qml, ADJOINT[op.gate])(wires=op.qubits)))
    return out


def to_pennylane(circuit: Circuit) -> Callable[..., None]:
    """A quantum function `(inputs, angles)` that applies the circuit to wires 0 to n - 1, to be used inside a QNode.

    `inputs (n_inputs,)` and `angles (n_angles,)` in radians; either may be left out where the circuit has none.

    Raises:
        MissingDependencyError: no PennyLane.
    """
    _pennylane()

    def quantum_function(inputs: Any = (), angles: Any = ()) -> None:
        if len(inputs) != circuit.n_inputs or len(angles) != circuit.n_angles:
            raise CircuitError(
                "inputs and angles of the wrong length",
                value=(len(inputs), len(angles)),
                bound=(circuit.n_inputs, circuit.n_angles),
            )
        operators(circuit, [*inputs, *angles])

    return quantum_function


def from_pennylane(function: Any, inputs: Shape = 0, angles: Shape = 0, *, wires: Sequence[Any] | None = None) -> Circuit:
    """Read a quantum function or QNode by calling it at as many points as it has parameters, and three more.

    Gates that our table lacks, templates among them, are replaced by their decompositions. Measurements at the end, barriers and
    global phases are left out. An angle may be a sum of `scale * parameter` and a constant.

    Args:
        function: called as `function(x, w)`, `function(x)` or `function(w)`: arrays of the shapes given, no argument for a zero.
        inputs: the shape of the data; read row by row.
        angles: the shape of the trained parameters, likewise.
        wires: the order of the qubits; default whole numbers ascending, from 0, or else as the function uses them.

    Raises:
        CircuitError: gates that depend on the values of parameters, an angle that is not linear in them, or an operation that is
            no unitary gate.
        MissingDependencyError: no PennyLane.
    """
    import numpy as np

    qml = _pennylane()
    shapes = [(shape,) if isinstance(shape, int) else tuple(shape) for shape in (inputs, angles)]
    sizes = [math.prod(shape) for shape in shapes]
    n_params = sum(sizes)
    inner = getattr(function, "func", function)

    def traced(params: Any) -> list[tuple[str, tuple[Any, ...], float | None]]:
        parts = np.split(np.asarray(params, dtype=np.float64), [sizes[0]])
        arguments = [part.reshape(shape) for part, shape, size in zip(parts, shapes, sizes, strict=True) if size]
        script = qml.tape.make_qscript(inner)(*arguments)
        return [gate for op in script.operations for gate in _gates(op, MAX_DEPTH)]

    zero = traced(np.zeros(n_params))
    slopes = np.zeros((len(zero), n_params))
    for k in range(n_params):
        ends = [_same_gates(zero, traced(sign * np.eye(n_params)[k])) for sign in (1.0, -1.0)]
        slopes[:, k] = [float(f"{(a - b) / 2:.15g}") for a, b in zip(*ends, strict=True)]
    shifts = np.array([angle or 0.0 for *_, angle in zero])
    for seed in range(2 if n_params else 0):  # at points of no special place a product or a curve shows
        point = np.random.default_rng(seed).uniform(-3, 3, n_params)
        if np.abs(slopes @ point + shifts - _same_gates(zero, traced(point))).max(initial=0.0) > TOLERANCE:
            raise CircuitError("an angle must be a sum of scale * parameter and a constant", hint=PRODUCT_HINT)
    used = list(dict.fromkeys(wire for _, own, _ in zero for wire in own))
    if wires is None:
        whole = all(isinstance(wire, int) for wire in used)
        wires = range(max(used, default=0) + 1) if whole else used
    place = {wire: k for k, wire in enumerate(wires)}
    if missing := [wire for wire in used if wire not in place]:
        raise CircuitError("wires that are not named", value=missing[:8], bound=list(wires)[:8])
    ops: list[Op] = []
    for (name, own, angle), row in zip(zero, slopes, strict=True):
        qubits = tuple(place[wire] for wire in own)
        if angle is None:
            ops.append(Op(name, qubits))
            continue
        terms = [(k, float(scale)) for k, scale in enumerate(row) if scale]
        first = Angle(terms[0][0], terms[0][1], angle) if terms else Angle(shift=angle)
        ops += [Op(name, qubits, each) for each in (first, *(Angle(k, scale) for k, scale in terms[1:]))]
    return Circuit(max(len(place), 1), tuple(ops), sizes[0], n_params)


def _same_gates(zero: Sequence[tuple[str, Any, float | None]], other: Sequence[tuple[str, Any, float | None]]) -> list[float]:
    """The angles of `other`, which must have the gates of `zero`."""
    if [gate[:2] for gate in zero] != [gate[:2] for gate in other]:
        raise CircuitError(
            "which gates there are depends on the parameters", hint="write a circuit whose gates are always the same"
        )
    return [angle or 0.0 for *_, angle in other]


def _gates(op: Any, depth: int) -> Iterator[tuple[str, tuple[Any, ...], float | None]]:
    """Gates of our table that make an operator: name, wires, angle."""
    name = _NAMES.get(op.name)
    if name is not None:
        yield name, tuple(op.wires), float(op.parameters[0]) if GATES[name].parametrised else None
        return
    if op.name in _LEFT_OUT:
        return
    if depth == 0 or not getattr(op, "has_decomposition", False):
        raise CircuitError("not a unitary gate that can be read", value=op.name, hint="leave out measurements within the circuit")
    parts: Iterable[Any] = op.decomposition()
    for part in parts:
        yield from _gates(part, depth - 1)
