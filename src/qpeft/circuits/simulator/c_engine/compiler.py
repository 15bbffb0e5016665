"""Compiling a circuit and its observables into the bytecode that the compiled kernel runs. No torch.

A segment of rotations about Y is a `ROTATION`; any other run of shared gates on one qubit a `UNITARY`, which the kernel rewrites as
RZ RY RZ. All Z rotations at the ends of segments join the tables of phases around them, so that only rotations about Y touch the
state one qubit at a time. A stage's shared phases are a sum of Walsh terms `weight * angle * (-1)^|mask & j|` of basis state j.

Observables that commute qubit by qubit are read together as strings of Z's after a change of basis; a circuit whose observables
fall into several such groups becomes one program each, and their values add up. Phases after the last rotation change nothing
and are dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qpeft.circuits.ir import Angle, Circuit, Observable, Op, commuting_groups
from qpeft.circuits.simulator.c_engine.stages import QUARTER, DataPhase, Phase, Rotation, StageBuilder, UnsupportedError, X, Y, Z

MAX_QUBITS = 12  # a group's state then takes 256 KiB with 256-bit vectors
ROTATION, UNITARY, PHASE = 0, 1, 2  # bytecode.h
STRINGS, SINGLE, PRODUCT = 0, 1, 2


@dataclass(frozen=True)
class Bytecode:
    """Bytecode for the C entry point (see bytecode.h), and the number of observables it returns."""

    code: npt.NDArray[np.int32]
    numbers: npt.NDArray[np.float64]
    n_observables: int


@dataclass(frozen=True)
class _Segment:
    """Rotations of one qubit; `unitary` is its number among the unitaries, -1 for a `ROTATION` or a `PHASE`."""

    qubit: int
    kind: int
    rotations: tuple[Rotation, ...]
    unitary: int = -1


@dataclass(frozen=True)
class _Layer:
    """A finished stage: permutation, Walsh terms as (angle, mask, weight), data phases and segments."""

    permutation: npt.NDArray[np.int64]
    terms: tuple[tuple[Angle | tuple[int, int], int, float], ...]
    data: tuple[DataPhase, ...]
    segments: tuple[_Segment, ...]


def _prefix(rotations: Sequence[Rotation], q: int, number: Iterator[int]) -> list[_Segment]:
    """A prefix as unitaries and data rotations in rotation (their X axis is gone already)."""
    segments = []
    for axis, run in itertools.groupby(rotations, lambda t: t.axis if t.data else None):
        if axis is None:
            segments.append(_Segment(q, UNITARY, tuple(run), next(number)))
        else:
            segments.append(_Segment(q, ROTATION if axis == Y else PHASE, tuple(run)))
    return segments


def _finish(builder: StageBuilder, number: Iterator[int]) -> list[_Layer]:
    """Stages with the Z rotations around segments moved into the tables; the last layer is what is left for the read-out."""
    stages: list[tuple[list[Phase | npt.NDArray[np.int64]], list[DataPhase], list[_Segment]]] = []
    carried: list[Phase | npt.NDArray[np.int64]] = []
    for stage in builder.stages:
        mono, segments = [*carried, *stage.mono], []
        carried = []
        for q, rotations in sorted(stage.segments.items()):
            where = [k for k, t in enumerate(rotations) if t.axis != Z]
            inner = rotations[where[0] : where[-1] + 1]
            mono += [builder.z(q, t.angle) for t in rotations[: where[0]]]
            carried += [builder.z(q, t.angle) for t in rotations[where[-1] + 1 :]]
            if all(t.axis == X for t in inner):  # RX(t) = RZ(-pi/2) RY(t) RZ(pi/2)
                mono.append(builder.z(q, Angle(shift=QUARTER)))
                carried.append(builder.z(q, Angle(shift=-QUARTER)))
                inner = [Rotation(Y, t.angle, t.data) for t in inner]
            if all(t.axis == Y for t in inner):
                segments.append(_Segment(q, ROTATION, tuple(inner)))
                continue
            unitary = next(number)
            segments.append(_Segment(q, UNITARY, tuple(inner), unitary))
            mono.append(builder.z(q, (unitary, 0)))
            carried.append(builder.z(q, (unitary, 1)))
        if segments or stage.data:
            stages.append((mono, stage.data, segments))
        else:
            carried = mono
    while stages and not stages[-1][2]:  # phases after the last rotation change nothing that is read
        carried = [*stages.pop()[0], *carried]
    layers = []
    for mono, data, segments in (*stages, (carried, [], [])):
        index = np.arange(2**builder.n)
        terms: list[tuple[Angle | tuple[int, int], int, float]] = []
        for item in mono:
            if isinstance(item, Phase):
                terms += [(item.angle, mask, weight) for mask, weight in item.terms]
            else:
                index = index[item]
                terms = [(angle, *_moved(mask, weight, item)) for angle, mask, weight in terms]
        layers.append(_Layer(index, tuple(terms), tuple(data), tuple(segments)))
    return layers


def _moved(mask: int, weight: float, permutation: npt.NDArray[np.int64]) -> tuple[int, float]:
    """The Walsh term `weight * (-1)^|mask & permutation[j]|` as one in j: permutations of one or two qubits are affine in bits."""
    origin = int(permutation[0])
    moved, k = 0, 1
    while k < len(permutation):
        moved |= k if bin(mask & (int(permutation[k]) ^ origin)).count("1") & 1 else 0
        k *= 2
    return moved, -weight if bin(mask & origin).count("1") & 1 else weight


def _sweeps(layer: _Layer, n: int) -> list[tuple[int, int]]:
    """(first bit, number of neighbouring bits) of each pass: at most 2 with the permutation, which comes first, 3 in the others.

    Data phases come between the permutation and the rotations, so nothing rotates with the permutation there.
    """
    bits = sorted(n - 1 - s.qubit for s in layer.segments)
    runs = [[b for _, b in run] for _, run in itertools.groupby(enumerate(bits), lambda kb: kb[1] - kb[0])]
    first = (runs[0][0], min(2, len(runs[0]))) if runs and not layer.data else (0, 0)
    passes = [first]
    for k, run in enumerate(runs):
        start, left = run[0], len(run)
        if k == 0:
            start, left = start + first[1], left - first[1]
        while left:
            count = 3 if left == 3 or left > 4 else min(left, 2)
            passes.append((start, count))
            start, left = start + count, left - count
    return passes


def _write(builder: StageBuilder, strings: Sequence[tuple[int, int, float]], n_observables: int) -> Bytecode:
    """The flat form: see bytecode.h for the order. `strings` are (observable, mask of Z's, coefficient)."""
    n, circuit = builder.n, builder.circuit
    number = itertools.count()
    prefixes = [_prefix(rotations, q, number) for q, rotations in enumerate(builder.prefix)]
    *layers, last = _finish(builder, number)
    gates: list[tuple[Angle, int]] = []
    terms: list[tuple[int, float]] = []
    records: list[tuple[int, ...]] = []
    for segment in itertools.chain(*prefixes, *(layer.segments for layer in layers)):
        first_gate, first_term = len(gates), len(terms)
        gates += [(t.angle, t.axis) for t in segment.rotations if not t.data]
        terms += [(t.angle.index or 0, t.angle.scale) for t in segment.rotations if t.data]
        bit = n - 1 - segment.qubit
        records.append((bit, segment.kind, first_gate, len(gates), first_term, len(terms), segment.unitary))
    known: dict[Angle, int] = {}
    for layer in layers:
        for angle, _, _ in layer.terms:
            if isinstance(angle, Angle) and angle not in known:
                known[angle] = len(gates)
                gates.append((angle, Z))

    def value(angle: Angle | tuple[int, int]) -> int:
        return known[angle] if isinstance(angle, Angle) else len(gates) + 2 * angle[0] + angle[1]

    used = [any(isinstance(a, Angle) and a.index is not None for a, *_ in layer.terms) for layer in layers]
    for k in range(1, len(layers)):  # a unitary needs <Z> behind it, which vanishes behind the last stage
        used[k] |= any(s.unitary >= 0 for s in layers[k - 1].segments)
    sweeps = [_sweeps(layer, n) for layer in layers]
    data = [layer.data for layer in layers]
    way = SINGLE if all(mask & (mask - 1) == 0 for _, mask, _ in strings) else STRINGS
    if not layers:  # a product state, read through its last permutation
        way, inverse = PRODUCT, np.argsort(last.permutation)
        strings = [(k, *_moved(mask, coefficient, inverse)) for k, mask, coefficient in strings]
    counts = (
        *(n, circuit.n_inputs, circuit.n_angles, n_observables, len(gates), next(number), len(records), len(layers), len(terms)),
        *(sum(map(len, data)), sum(len(layer.terms) for layer in layers), sum(map(len, sweeps)), len(strings), way),
    )
    begin_segments = [s + sum(map(len, prefixes)) for s in _begin([layer.segments for layer in layers])]
    code = (
        counts,
        [-1 if a.index is None else a.index - circuit.n_inputs for a, _ in gates],
        [axis for _, axis in gates],
        [index for index, _ in terms],
        records,
        _begin(prefixes),
        begin_segments,
        [(value(angle), mask) for layer in layers for angle, mask, _ in layer.terms],
        _begin([layer.terms for layer in layers]),
        [(p.high, p.low, p.input) for p in itertools.chain(*data)],
        _begin(data),
        list(itertools.chain(*sweeps)),
        _begin(sweeps),
        [*used, False],
        [(k, mask.bit_length() - 1 if way == SINGLE else mask) for k, mask, _ in strings],
        np.concatenate([layer.permutation for layer in (*layers, last)]),
    )
    numbers = (
        [0.0 if a.index is None else a.scale for a, _ in gates],
        [a.shift for a, _ in gates],
        [scale for _, scale in terms],
        [weight for layer in layers for *_, weight in layer.terms],
        [(*p.weights, *(0.0,) * (4 - len(p.weights))) for p in itertools.chain(*data)],
        [coefficient for *_, coefficient in strings],
    )
    return Bytecode(_flat(code, np.int32), _flat(numbers, np.float64), n_observables)


def _flat(parts: Iterable[object], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate([np.asarray(part, dtype=dtype).reshape(-1) for part in parts])


def _begin(lists: Sequence[Sequence[object]]) -> list[int]:
    """Where each list begins when all are joined, and where the last ends."""
    return [0, *itertools.accumulate(map(len, lists))]


def _groups(observables: Sequence[Observable]) -> list[tuple[dict[int, str], list[tuple[int, tuple[int, ...], float]]]]:
    """Pauli strings that agree on every qubit they share: letters by qubit, and (observable, qubits, coefficient) of each.

    The identity, which every group could take, goes to the first.
    """
    found = commuting_groups(observables) or [({}, [])]
    place = {string: number for number, (_, strings) in enumerate(found) for string in strings}
    members: list[list[tuple[int, tuple[int, ...], float]]] = [[] for _ in found]
    for k, observable in enumerate(observables):
        for coefficient, string in observable.terms:
            members[place.get(string, 0)].append((k, tuple(q for q, _ in string), coefficient))
    return [(letters, strings) for (letters, _), strings in zip(found, members, strict=True)]


def compile_bytecode(circuit: Circuit, observables: Sequence[Observable]) -> tuple[Bytecode, ...]:
    """Programs whose values add up to the expectation values.

    Args:
        circuit: the circuit.
        observables: the observables.

    Raises:
        UnsupportedError: too many qubits, or a gate this compiler does not know.
    """
    n = circuit.n_qubits
    if n > MAX_QUBITS:
        raise UnsupportedError(f"{n} qubits, at most {MAX_QUBITS}")
    programs = []
    for letters, strings in _groups(observables):
        change = {"X": (Op("ry", (0,), Angle(shift=-QUARTER)),), "Y": (Op("rx", (0,), Angle(shift=QUARTER)),), "Z": ()}
        ops = [Op(op.gate, (q,), op.angle) for q, letter in sorted(letters.items()) for op in change[letter]]
        builder = StageBuilder(Circuit(n, (*circuit.ops, *ops), circuit.n_inputs, circuit.n_params))
        masks = [(k, sum(1 << (n - 1 - q) for q in qubits), coefficient) for k, qubits, coefficient in strings]
        programs.append(_write(builder, masks, len(observables)))
    return tuple(programs)
