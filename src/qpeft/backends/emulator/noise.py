"""Noise model: schedule of a native circuit, and the parameters of its noise.

The model (docs/emulator.md derives it). Turns about x and y and CZ are pulses of the chip's times; a turn about z takes no time
and has no error. Gates start as soon as their qubits are free; circuit parts that no gate joins end together, with the
measurement of all qubits. A qubit before its first gate is in |0>, which does not decay. A pulse is its ideal unitary, then
depolarisation of its qubits, `rho -> keep rho + (1 - keep) I/d`, then decay for its duration; a waiting qubit decays.
Decay for a time t is `exp(-t/T1)` on Z with the rest towards |0>, and `exp(-t/T2)` on X and Y. A measured bit is flipped with
probability `p(1|0)` or `p(0|1)`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from qpeft.backends.emulator.chip import Chip
from qpeft.backends.emulator.native_gates import NATIVE, PULSES
from qpeft.circuits.ir import Angle, Circuit
from qpeft.errors import BackendError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class IdealRotation:
    """The ideal rotation of one qubit about x, y or z by the schedule's angle number `slot`."""

    qubit: int
    axis: str
    slot: int


@dataclass(frozen=True)
class Decay:
    """T1 and T2 for a time; `pulse` when a turn's pulse ends here, whose depolarisation comes first."""

    qubit: int
    ns: float
    pulse: bool


@dataclass(frozen=True)
class CZPulse:
    """CZ with its depolarisation on the qubits of pair number `pair`; the decay follows as its own steps."""

    qubits: tuple[int, int]
    pair: int


Step = IdealRotation | Decay | CZPulse


@dataclass(frozen=True)
class NoiseSchedule:
    """A native circuit in the order of time but for its angles, with what happens between its gates.

    `pairs` are those that take a CZ (lower qubit first), `duration_ns` is the time from the first gate to the measurement.
    Circuits of equal schedules can run as one batch.
    """

    n_qubits: int
    steps: tuple[Step, ...]
    pairs: tuple[tuple[int, int], ...]
    duration_ns: float

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.n_qubits, self.steps))


def check_native(circuit: Circuit) -> None:
    """Refuse a circuit with gates that are not native, naming the first."""
    for position, op in enumerate(circuit.ops):
        if op.gate not in NATIVE:
            raise BackendError(
                f"op {position}: {op.gate} is not a native gate of the chip",
                bound=", ".join(sorted(NATIVE)),
                hint="qpeft.backends.emulator.native_gates.to_native, or a backend with native=False",
            )


def components(n_qubits: int, pairs: Iterable[Sequence[int]]) -> list[list[int]]:
    """Qubits joined by pairs, directly or through others; each component sorted, components in order of their first qubit.

    Args:
        n_qubits: number of qubits.
        pairs: pairs of qubits that are joined.
    """
    root = list(range(n_qubits))

    def find(q: int) -> int:
        while root[q] != q:
            root[q] = root[root[q]]
            q = root[q]
        return q

    for a, b in pairs:
        low, high = sorted((find(a), find(b)))
        root[high] = low
    groups: dict[int, list[int]] = {}
    for q in range(n_qubits):
        groups.setdefault(find(q), []).append(q)
    return list(groups.values())


def schedule(circuit: Circuit, rphi_ns: float, cz_ns: float) -> tuple[NoiseSchedule, tuple[Angle, ...]]:
    """When each gate of a native circuit happens, as soon as possible, and how long each qubit waits.

    Args:
        circuit: in native gates.
        rphi_ns: time of a one-qubit pulse, nanoseconds.
        cz_ns: time of a CZ, nanoseconds.

    Returns:
        The schedule, and the angle of each of its rotations.

    Raises:
        BackendError: a gate that is not native.
    """
    check_native(circuit)
    free = [0.0] * circuit.n_qubits
    used = [False] * circuit.n_qubits
    steps: list[Step] = []
    angles: list[Angle] = []
    pairs: dict[tuple[int, int], int] = {}

    def wait(qubit: int, until: float) -> None:
        if used[qubit] and until > free[qubit]:
            steps.append(Decay(qubit, until - free[qubit], pulse=False))
        free[qubit] = until
        used[qubit] = True

    for op in circuit.ops:
        if op.gate == "cz":
            a, b = sorted(op.qubits)
            start = max(free[a], free[b])
            for qubit in (a, b):
                wait(qubit, start)
                free[qubit] = start + cz_ns
            steps.append(CZPulse((a, b), pairs.setdefault((a, b), len(pairs))))
            steps += [Decay(qubit, cz_ns, pulse=False) for qubit in (a, b)]
        elif op.angle is not None:
            (qubit,) = op.qubits
            used[qubit] = True
            steps.append(IdealRotation(qubit, op.gate[1], len(angles)))
            angles.append(op.angle)
            if op.gate in PULSES:
                steps.append(Decay(qubit, rphi_ns, pulse=True))
                free[qubit] += rphi_ns
    for group in components(circuit.n_qubits, pairs):
        end = max(free[qubit] for qubit in group)
        for qubit in group:
            wait(qubit, end)
    return NoiseSchedule(circuit.n_qubits, tuple(steps), tuple(pairs), max(free)), tuple(angles)


@dataclass(frozen=True)
class NoiseParameters:
    """The noise of a schedule's qubits, as float64 arrays with a leading axis of placements (1, or one for each row of a batch).

    `t1_ns`, `t2_ns` and `keep_1q` are `(placements, qubits)`, `keep_cz` `(placements, pairs)`; `confusion[p, q, m, s]` is the
    probability to read m where qubit q was s.
    """

    t1_ns: FloatArray
    t2_ns: FloatArray
    keep_1q: FloatArray
    keep_cz: FloatArray
    confusion: FloatArray

    @classmethod
    def of(cls, chip: Chip, physical: Sequence[int], pairs: Sequence[tuple[int, int]]) -> NoiseParameters:
        """The calibration of one placement.

        Args:
            chip: the chip.
            physical: the chip's qubit for each of the circuit's.
            pairs: the circuit's pairs of qubits that take a CZ.
        """
        qubits = [chip.qubits[q] for q in physical]
        t1 = np.array([q.t1_us for q in qubits], dtype=np.float64) * 1e3
        t2 = np.array([q.t2_us for q in qubits], dtype=np.float64) * 1e3
        times = chip.native_gates

        def trace(ns: float) -> FloatArray:  # of one qubit's decay during a gate whose error includes it
            return _decay_trace(ns if chip.gate_errors_include_decay else 0.0, t1, t2)

        keep_1q = depolarising_keep(np.array([q.error_1q for q in qubits], dtype=np.float64), trace(times.rphi.time_ns), 2)
        errors = np.array([chip.neighbours[physical[a]][physical[b]] for a, b in pairs], dtype=np.float64)
        during = trace(times.cz.time_ns)
        both = np.array([during[a] * during[b] for a, b in pairs], dtype=np.float64)
        keep_cz = depolarising_keep(errors, both, 4)
        confusion = np.array([[[1 - q.p1_given_0, q.p0_given_1], [q.p1_given_0, 1 - q.p0_given_1]] for q in qubits])  # type: ignore[operator]
        return cls(t1[None], t2[None], keep_1q[None], keep_cz[None], confusion[None])

    @classmethod
    def stack(cls, members: Sequence[NoiseParameters]) -> NoiseParameters:
        """Placements one after the other."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(member, name) for member in members]) for name in names})

    def repeat(self, rows: int) -> NoiseParameters:
        """Every placement `rows` times in succession."""
        return NoiseParameters(**{field.name: getattr(self, field.name).repeat(rows, axis=0) for field in fields(self)})


def _decay_trace(ns: float, t1_ns: FloatArray, t2_ns: FloatArray) -> FloatArray:
    """Trace of one qubit's decay in the Pauli basis: `1 + 2 exp(-t/T2) + exp(-t/T1)`."""
    return np.asarray(1 + 2 * np.exp(-ns / t2_ns) + np.exp(-ns / t1_ns))


def depolarising_keep(error: FloatArray, decay_trace: FloatArray, dimension: int) -> FloatArray:
    """`keep` of the depolarisation that makes a gate's average infidelity equal to `error`, elementwise.

    A channel on dimension d with trace `tr` in the Pauli basis (`d^2` is none) has average fidelity `F = (tr/d + 1)/(d + 1)`;
    depolarisation multiplies all of the trace but its leading 1. Without decay this is `keep = 1 - error d/(d - 1)`. Where the
    decay alone exceeds `error` there is nothing to add: 1.

    Args:
        error: average infidelity of the gate, 0 to 1.
        decay_trace: trace of the decay during the gate, in the Pauli basis.
        dimension: d, 2 for one qubit and 4 for two.
    """
    wanted = dimension * ((dimension + 1) * (1 - error) - 1)
    rest = np.maximum(decay_trace - 1, np.finfo(np.float64).tiny)  # zero where decay leaves nothing to keep or lose
    with np.errstate(over="ignore"):  # infinite where next to nothing is left: 1
        return np.asarray(np.clip((wanted - 1) / rest, 0.0, 1.0))
