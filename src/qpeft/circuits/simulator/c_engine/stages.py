"""A circuit as stages of three kinds of primitive, exact up to a global phase. No torch.

Every gate is written as rotations of one qubit, diagonal gates on one or two qubits, and permutations of basis states. These fall
into *stages*, each of which is

    1. `mono`: permutations and diagonal gates that all samples share,
    2. `data`: diagonal gates whose angle is an input,
    3. `segments`: on each of some qubits, a run of rotations, either about Y alone (then inputs may be among the angles) or of
       shared angles alone.

What a qubit sees before its first two-qubit gate is its *prefix*: together the prefixes prepare a product state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qpeft.circuits.ir import GATES, Angle, Circuit, GateSpec, Op

X, Y, Z = 0, 1, 2

# Gates that are neither a rotation, nor diagonal, nor a permutation: (gate, positions of its qubits, angle), in order; an angle of
# None is the gate's own.
QUARTER = math.pi / 2
_DECOMPOSED: dict[str, tuple[tuple[str, tuple[int, ...], float | None], ...]] = {
    "y": (("z", (0,), 0), ("x", (0,), 0)),
    "h": (("z", (0,), 0), ("ry", (0,), QUARTER)),
    "sx": (("rx", (0,), QUARTER),),
    "sxdg": (("rx", (0,), -QUARTER),),
    "cy": (("sdg", (1,), 0), ("cx", (0, 1), 0), ("s", (1,), 0)),
    "ch": (("ry", (1,), -QUARTER / 2), ("cz", (0, 1), 0), ("ry", (1,), QUARTER / 2)),
    "crx": (("ry", (1,), -QUARTER), ("crz", (0, 1), None), ("ry", (1,), QUARTER)),
    "cry": (("rx", (1,), QUARTER), ("crz", (0, 1), None), ("rx", (1,), -QUARTER)),
    "rxx": (
        *(("ry", (q,), -QUARTER) for q in (0, 1)),
        ("rzz", (0, 1), None),
        *(("ry", (q,), QUARTER) for q in (0, 1)),
    ),
    "ryy": (
        *(("rx", (q,), QUARTER) for q in (0, 1)),
        ("rzz", (0, 1), None),
        *(("rx", (q,), -QUARTER) for q in (0, 1)),
    ),
}
_ROTATIONS = {"rx": X, "ry": Y}


class UnsupportedError(Exception):
    """A circuit that the kernel does not take; the message says why."""


@dataclass(frozen=True)
class Rotation:
    """A rotation of one qubit; `data` when its angle is an input."""

    axis: int
    angle: Angle
    data: bool = False


@dataclass(frozen=True)
class Phase:
    """A diagonal of shared phases: `(mask, weight)` Walsh terms that multiply an angle, or a unitary's leading/trailing one."""

    terms: tuple[tuple[int, float], ...]
    angle: Angle | tuple[int, int]


@dataclass(frozen=True)
class DataPhase:
    """A diagonal gate with an input for angle: phases `weights[v] * input` by the value v of its bits (high, low)."""

    high: int
    low: int
    input: int
    weights: tuple[float, ...]


@dataclass
class Stage:
    """Primitives applied in the order `mono`, `data`, `segments`.

    Attributes:
        mono: in order, shared diagonal gates (`Phase`), and permutations as `(2^n,)` int64 with `new[j] = old[index[j]]`.
        data: diagonal gates whose angle is an input.
        segments: by qubit, its run of rotations in order.
    """

    mono: list[Phase | npt.NDArray[np.int64]] = field(default_factory=list)
    data: list[DataPhase] = field(default_factory=list)
    segments: dict[int, list[Rotation]] = field(default_factory=dict)  # by qubit


def _lower(op: Op) -> Iterable[Op]:
    """The op in rotations, diagonal gates and permutations."""
    if op.gate == "id":
        return
    if op.gate in _DECOMPOSED:
        for gate, positions, angle in _DECOMPOSED[op.gate]:
            own = op.angle if angle is None else Angle(shift=angle)
            yield Op(gate, tuple(op.qubits[p] for p in positions), own if GATES[gate].parametrised else None)
    elif op.gate in _ROTATIONS or op.spec.diagonal or op.spec.permutation:
        yield op
    else:
        raise UnsupportedError(f"gate {op.gate}")


def _exponents(spec: GateSpec) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A diagonal gate's phases: `slope * angle + offset` for each basis state."""

    def phases(angle: float) -> npt.NDArray[np.float64]:
        return np.array([math.atan2(complex(row[i]).imag, complex(row[i]).real) for i, row in enumerate(spec.matrix(angle))])

    offset = phases(0.0)
    return (phases(1.0) - offset if spec.parametrised else np.zeros_like(offset)), offset


def _walsh(phases: npt.NDArray[np.float64], bits: Sequence[int]) -> tuple[tuple[int, float], ...]:
    """Phases by the value of `bits` (first most significant) as Walsh terms; the constant, a global phase, is dropped."""
    terms = []
    for mask in range(1, len(phases)):
        signs = np.array([(-1) ** bin(mask & v).count("1") for v in range(len(phases))])
        weight = float(signs @ phases) / len(phases)
        if weight:
            terms.append((sum(1 << b for k, b in enumerate(reversed(bits)) if mask >> k & 1), weight))
    return tuple(terms)


class StageBuilder:
    """Puts primitives into stages, each into the earliest that can take it."""

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self.n = circuit.n_qubits
        self.prefix: list[list[Rotation]] = [[] for _ in range(self.n)]
        self.alone = [True] * self.n
        self.frontier = [0] * self.n  # 3 * stage + part of the last primitive on each qubit
        self.stages: list[Stage] = []
        for op in circuit.ops:
            for primitive in _lower(op):
                self._add(primitive)

    def _bit(self, qubit: int) -> int:
        return self.n - 1 - qubit

    def _place(self, qubits: Sequence[int], part: int, latest_part: int) -> Stage:
        """The earliest stage whose `part` comes after everything on `qubits`, parts up to `latest_part` counting as before."""
        latest = max(self.frontier[q] for q in qubits)
        stage = latest // 3 + (latest % 3 > latest_part)
        for q in qubits:
            self.frontier[q] = max(self.frontier[q], 3 * stage + part)
        self.stages += [Stage() for _ in range(stage + 1 - len(self.stages))]
        return self.stages[stage]

    def _add(self, op: Op) -> None:
        data = self.circuit.is_input(op)
        if len(op.qubits) == 1:
            self._single(op, data)
            return
        for q in op.qubits:
            self.alone[q] = False
        if op.spec.permutation:
            self._place(op.qubits, 0, 0).mono.append(self._permutation(op))
            return
        slope, offset = _exponents(op.spec)
        bits = [self._bit(q) for q in op.qubits]
        if data:
            assert op.angle is not None
            assert op.angle.index is not None  # an input has one
            self._place(op.qubits, 0, 1).mono.append(Phase(_walsh(slope * op.angle.shift + offset, bits), Angle(shift=1.0)))
            weights = tuple((slope - slope[0]) * op.angle.scale)
            self._place(op.qubits, 1, 1).data.append(DataPhase(bits[0], bits[1], op.angle.index, weights))
            return
        stage = self._place(op.qubits, 0, 1)
        if op.angle is not None:
            stage.mono.append(Phase(_walsh(slope, bits), op.angle))
        stage.mono.append(Phase(_walsh(offset, bits), Angle(shift=1.0)))

    def _single(self, op: Op, data: bool) -> None:
        (q,) = op.qubits
        if op.spec.permutation:
            if self.alone[q]:
                self._rotate(q, Rotation(X, Angle(shift=math.pi)))
            else:
                self._place((q,), 0, 0).mono.append(self._permutation(op))
            return
        if op.gate in _ROTATIONS:
            assert op.angle is not None
            axis, angle = _ROTATIONS[op.gate], op.angle
            offset = 0.0
        else:
            slopes, offsets = _exponents(op.spec)
            slope, offset = float(slopes[1] - slopes[0]), float(offsets[1] - offsets[0])
            own = op.angle or Angle()
            axis, angle = Z, Angle(own.index, slope * own.scale, slope * own.shift)
        if not data:
            self._rotate(q, Rotation(axis, Angle(angle.index, angle.scale, angle.shift + offset)))
            return
        around = QUARTER if axis == X else 0.0  # RX(t) = RZ(-pi/2) RY(t) RZ(pi/2)
        if shift := angle.shift + offset:
            self._rotate(q, Rotation(axis, Angle(shift=shift)))
        if around:
            self._rotate(q, Rotation(Z, Angle(shift=around)))
        self._rotate(q, Rotation(Z if axis == Z else Y, Angle(angle.index, angle.scale), data=True))
        if around:
            self._rotate(q, Rotation(Z, Angle(shift=-around)))

    def _rotate(self, q: int, rotation: Rotation) -> None:
        if self.alone[q]:
            self.prefix[q].append(rotation)
            return
        latest = self.frontier[q]
        segment = self.stages[latest // 3].segments[q] if latest % 3 == 2 else None
        if segment is not None and (
            all(t.axis == Y for t in (*segment, rotation)) or not any(t.data for t in (*segment, rotation))
        ):
            segment.append(rotation)
        elif rotation.axis == Z and rotation.data:
            assert rotation.angle.index is not None
            weights = (0.0, rotation.angle.scale)
            self._place((q,), 1, 1).data.append(DataPhase(self._bit(q), -1, rotation.angle.index, weights))
        elif rotation.axis == Z:
            self._place((q,), 0, 1).mono.append(self.z(q, rotation.angle))
        else:
            self._place((q,), 2, 1).segments.setdefault(q, []).append(rotation)

    def z(self, q: int, angle: Angle | tuple[int, int]) -> Phase:
        """RZ(angle) as a Walsh term.

        Args:
            q: the qubit.
            angle: the rotation's angle, radians, or the leading or trailing angle of a unitary.
        """
        return Phase(((1 << self._bit(q), -0.5),), angle)

    def _permutation(self, op: Op) -> npt.NDArray[np.int64]:
        """`index` such that the gate is `new[j] = old[index[j]]`."""
        basis = np.arange(2**self.n)
        bits = [self._bit(q) for q in op.qubits]
        local = np.zeros_like(basis)
        for b in bits:
            local = 2 * local + ((basis >> b) & 1)
        change = local ^ np.array([row.index(1) for row in op.spec.constant])[local]
        for k, b in enumerate(reversed(bits)):
            basis = basis ^ (((change >> k) & 1) << b)
        return basis
