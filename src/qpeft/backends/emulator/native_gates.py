"""Circuits in the gates a chip has, angles still symbolic.

The native gates are RPhi(theta, phi) = RZ(phi) RX(theta) RZ(-phi), a pulse, and CZ, a pulse on two qubits. RZ is a change of
frame: no pulse, no time, no error. In the circuit's own gate table that is `rx` and `ry` (RPhi at phi = 0 and pi/2), `rz` and
`cz`; a general RPhi is written `rz(-phi) rx(theta) rz(phi)`, in the order of time. Every gate of the table has a sequence of
native gates equal to it up to a global phase, its angle an affine function of the gate's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qpeft.circuits.ir import Angle, Circuit, Op

PULSES = frozenset({"rx", "ry"})
NATIVE = frozenset({"rz", "cz"}) | PULSES

Step = tuple[str, tuple[int, ...], float, float]  # gate, places among the gate's qubits, scale and shift of its angle

_HALF = math.pi / 2


def _rotation(gate: str, place: int, shift: float, scale: float = 0.0) -> Step:
    return (gate, (place,), scale, shift)


_CZ: Step = ("cz", (0, 1), 0.0, 0.0)


def _around(first: Sequence[Step], inner: Sequence[Step]) -> tuple[Step, ...]:
    """`first`, then `inner`, then `first` undone."""
    undone = [(gate, places, -scale, -shift) for gate, places, scale, shift in reversed(first)]
    return (*first, *inner, *undone)


_CX = _around([_rotation("ry", 1, -_HALF)], [_CZ])
_CX_BACK = tuple((gate, tuple(1 - place for place in places), scale, shift) for gate, places, scale, shift in _CX)


def _controlled(axis: str) -> tuple[Step, ...]:
    """`exp(-i t/4 (A - Z A))` for an axis A across Z: half the angle, and half of it back between two CZs."""
    return (_rotation(axis, 1, 0.0, 0.5), _CZ, _rotation(axis, 1, 0.0, -0.5), _CZ)


def _coupled(first: Sequence[Step], axis: str, scale: float = 1.0) -> tuple[Step, ...]:
    """`exp(-i scale t/2 B A)`: CZ turns A on qubit 1 into Z A; `first` makes of Z, or of A, what is wanted."""
    return _around(first, [_CZ, _rotation(axis, 1, 0.0, scale), _CZ])


_CRZ = (_rotation("rz", 1, 0.0, 0.5), *_coupled([_rotation("ry", 1, _HALF)], "rx", -0.5))

DECOMPOSITION: dict[str, tuple[Step, ...]] = {
    "id": (),
    "x": (_rotation("rx", 0, math.pi),),
    "y": (_rotation("ry", 0, math.pi),),
    "z": (_rotation("rz", 0, math.pi),),
    "h": (_rotation("rz", 0, math.pi), _rotation("ry", 0, _HALF)),
    "s": (_rotation("rz", 0, _HALF),),
    "sdg": (_rotation("rz", 0, -_HALF),),
    "t": (_rotation("rz", 0, _HALF / 2),),
    "tdg": (_rotation("rz", 0, -_HALF / 2),),
    "sx": (_rotation("rx", 0, _HALF),),
    "sxdg": (_rotation("rx", 0, -_HALF),),
    "cx": _CX,
    "cy": _around([_rotation("rx", 1, _HALF)], [_CZ]),
    "cz": (_CZ,),
    "ch": _around([_rotation("ry", 1, -_HALF / 2)], [_CZ]),
    "swap": (*_CX, *_CX_BACK, *_CX),
    "rx": (_rotation("rx", 0, 0.0, 1.0),),
    "ry": (_rotation("ry", 0, 0.0, 1.0),),
    "rz": (_rotation("rz", 0, 0.0, 1.0),),
    "p": (_rotation("rz", 0, 0.0, 1.0),),
    "crx": _controlled("rx"),
    "cry": _controlled("ry"),
    "crz": _CRZ,
    "cp": (_rotation("rz", 0, 0.0, 0.5), *_CRZ),
    "rxx": _coupled([_rotation("ry", 0, -_HALF)], "rx"),
    "ryy": _coupled([_rotation("rx", 0, _HALF)], "ry"),
    "rzz": _coupled([_rotation("ry", 1, _HALF)], "rx"),
}


def to_native(circuit: Circuit) -> Circuit:
    """The circuit in native gates, equal to it up to a global phase for every vector of parameters.

    Turns that meet on a qubit about one axis are joined where their angles add to an affine function of one parameter, and
    what turns by nothing is left out.
    """
    ops: list[Op] = []
    last: dict[int, int] = {}  # qubit -> place in ops of the last gate on it

    def rotate(gate: str, qubit: int, angle: Angle) -> None:
        before = ops[last[qubit]] if qubit in last else None
        if before is not None and before.gate == gate and before.angle is not None and (joined := _sum(before.angle, angle)):
            ops[last[qubit]] = Op(gate, (qubit,), joined)
        elif angle != Angle():
            last[qubit] = len(ops)
            ops.append(Op(gate, (qubit,), angle))

    for op in circuit.ops:
        for gate, places, scale, shift in DECOMPOSITION[op.gate]:
            qubits = tuple(op.qubits[place] for place in places)
            if gate == "cz":
                last.update(dict.fromkeys(qubits, len(ops)))
                ops.append(Op(gate, qubits))
            elif scale and op.angle is not None:
                angle = op.angle
                index = angle.index
                rotate(
                    gate, qubits[0], Angle(index, scale * angle.scale if index is not None else 1.0, scale * angle.shift + shift)
                )
            else:
                rotate(gate, qubits[0], Angle(shift=shift))
    kept = tuple(op for op in ops if op.angle != Angle())
    return Circuit(circuit.n_qubits, kept, circuit.n_inputs, circuit.n_params)


def _sum(a: Angle, b: Angle) -> Angle | None:
    """The angle `a + b`, or None when it depends on two parameters."""
    if a.index is not None and b.index is not None and a.index != b.index:
        return None
    scale = (a.scale if a.index is not None else 0.0) + (b.scale if b.index is not None else 0.0)
    if scale == 0.0:
        return Angle(shift=a.shift + b.shift)
    return Angle(a.index if a.index is not None else b.index, scale, a.shift + b.shift)
