"""Compiling a circuit for a batch of samples: a short list of steps on the whole register. No torch.

Every gate of the table is one of three kinds, or becomes one by a fixed change of basis on its qubits (`diagonal_basis`):

    local   a single-qubit gate whose angle is shared by all samples
    phase   diagonal, angle shared           data    diagonal, angle an input, different for every sample
    perm    permutes basis states

so an upload `RY(u)` is a phase `exp(i u)` between two fixed gates. A step holds gates of one kind that apply together; gates
on different qubits commute, so each moves to the earliest step that can take it. The leading steps that act on single qubits
are the *prefix*: up to there the state is a product of one-qubit states. Up to `DENSE_QUBITS` qubits all steps between two
uploads make one *dense* step, a 2^n x 2^n matrix built once and applied to all samples; above, a local step is a Kronecker
product of blocks of at most `BLOCK_QUBITS` qubits.

Where only expectation values are wanted, what cannot change them is left out: diagonal gates that act on qubits still in
`|0>`, and, if every observable is made of Z, diagonal gates at the end. Permutations at the end move into the observables.
"""

from __future__ import annotations

import cmath
import functools
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qpeft.circuits.ir import GATES, Angle, Circuit, GateSpec, Observable
from qpeft.errors import CircuitError

DENSE_QUBITS = 6
BLOCK_QUBITS = 5

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ComplexArray = npt.NDArray[np.complex128]


@dataclass(frozen=True, eq=False)
class CompiledGate:
    """`parts[0] + cos(frequency t) parts[1] + sin(frequency t) parts[2]` on qubits; t is the angle, fixed gates have none."""

    kind: str
    qubits: tuple[int, ...]
    parts: ComplexArray  # (3, d, d)
    frequency: float
    angle: Angle | None

    @functools.cached_property
    def diagonal(self) -> bool:
        """Whether the matrix is diagonal at every angle."""
        return not bool((self.parts * (1 - np.eye(self.parts.shape[1]))).any())

    @functools.cached_property
    def real(self) -> bool:
        """Whether the matrix is real at every angle."""
        return not self.parts.imag.any()

    @property
    def trainable(self) -> bool:
        """Whether the angle depends on a parameter of the circuit."""
        return self.angle is not None and self.angle.index is not None

    def matrix(self, angle: float) -> ComplexArray:
        """The gate's matrix `(d, d)` at `angle` in radians; a fixed gate's is the same at every angle."""
        c, s = math.cos(self.frequency * angle), math.sin(self.frequency * angle)
        out: ComplexArray = self.parts[0] + c * self.parts[1] + s * self.parts[2]
        return out

    def phases(self) -> tuple[FloatArray, FloatArray]:
        """For each basis state of the qubits, the phase of a diagonal gate per radian of its angle, and at angle zero."""
        at_zero, at_one = (np.array([cmath.phase(v) for v in np.diagonal(self.matrix(t))]) for t in (0.0, 1.0))
        return (at_one - at_zero, at_zero) if self.angle is not None else (np.zeros_like(at_zero), at_zero)

    def key(self) -> tuple[object, ...]:
        """A hashable value, equal for gates with the same qubits, matrix and angle."""
        return (self.qubits, self.parts.tobytes(), self.frequency, self.angle)


@dataclass(frozen=True, eq=False)
class Step:
    """Gates that apply together; a dense step holds steps instead. `blocks`, of a local step, are runs of neighbouring qubits."""

    kind: str
    gates: tuple[CompiledGate, ...] = ()
    steps: tuple[Step, ...] = ()
    blocks: tuple[tuple[int, ...], ...] = ()

    def on(self, qubit: int) -> list[CompiledGate]:
        """Gates of a local step on a qubit, in order."""
        return [gate for gate in self.gates if gate.qubits == (qubit,)]

    @functools.cached_property
    def key(self) -> tuple[object, ...]:
        """A hashable value, equal for steps of the same kind and gates; the steps of a dense step are not compared."""
        return (self.kind, tuple(gate.key() for gate in self.gates))


@dataclass(frozen=True, eq=False)
class Evolution:
    """A compiled evolution: a prefix of one-qubit gates, then steps on the register."""

    n_qubits: int
    prefix: tuple[Step, ...]
    steps: tuple[Step, ...]
    folded: IntArray | None  # new[b] = old[folded[b]]: permutations left to the observables


@dataclass(frozen=True)
class Readout:
    """Observables that flip the same bits: `O_k = sum_b (real + i imag)[k, b] |b><flip[b]|`."""

    flip: IntArray
    real: FloatArray
    imag: FloatArray


@dataclass(frozen=True, eq=False)
class SimulatedCircuit:
    """A circuit with its observables, compiled for the simulator; `compiled_from_key` makes an equal one from `key`, JSON."""

    circuit: Circuit
    observables: tuple[Observable, ...]
    key: str

    def __deepcopy__(self, memo: object) -> SimulatedCircuit:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return compiled_from_key, (self.key,)

    @functools.cached_property
    def evolution(self) -> Evolution:
        """The steps whose final state has the observables' expectation values."""
        only_z = all(pauli == "Z" for o in self.observables for _, string in o.terms for _, pauli in string)
        return _evolution(self.circuit, values_only=True, only_z=only_z)

    @functools.cached_property
    def unitary(self) -> Evolution:
        """The steps of the circuit's unitary: no prefix, nothing left out."""
        return _evolution(self.circuit, values_only=False, only_z=False)

    @functools.cached_property
    def readouts(self) -> tuple[Readout, ...]:
        """Observables by the bits they flip, on the evolution's final state; those of Z alone share one readout that flips none."""
        n = self.circuit.n_qubits
        basis = np.arange(2**n)
        groups: dict[int, ComplexArray] = {0: np.zeros((len(self.observables), 2**n), dtype=np.complex128)}
        for k, observable in enumerate(self.observables):
            for coefficient, string in observable.terms:
                mask, phase = 0, np.full(2**n, coefficient, dtype=np.complex128)
                for qubit, pauli in string:
                    bit = 1 << (n - 1 - qubit)
                    ones = (basis & bit) > 0
                    mask |= bit if pauli != "Z" else 0
                    if pauli == "Z":
                        phase = np.where(ones, -phase, phase)
                    elif pauli == "Y":  # row 1 of Y is (i, 0), row 0 is (0, -i)
                        phase = np.where(ones, 1j * phase, -1j * phase)
                groups.setdefault(mask, np.zeros((len(self.observables), 2**n), dtype=np.complex128))[k] += phase
        used = [(mask, weights) for mask, weights in groups.items() if weights.any()] or [(0, groups[0])]
        if self.evolution.folded is not None:
            used = [(mask, weights[:, np.argsort(self.evolution.folded)]) for mask, weights in used]
        return tuple(Readout(basis ^ mask, weights.real.copy(), weights.imag.copy()) for mask, weights in used)


def local_value(n_qubits: int, qubits: Sequence[int]) -> IntArray:
    """For every basis state of the register, the value of some qubits read as a binary number.

    Args:
        n_qubits: number of qubits of the register.
        qubits: the qubits, the most significant first.

    Returns:
        `(2^n,)`.
    """
    basis = np.arange(2**n_qubits)
    value = np.zeros_like(basis)
    for qubit in qubits:
        value = 2 * value + ((basis >> (n_qubits - 1 - qubit)) & 1)
    return value


def permutation(gates: Sequence[CompiledGate], n_qubits: int) -> IntArray:
    """`index` such that applying the gates in order is `new[b] = old[index[b]]`.

    Args:
        gates: gates that permute basis states.
        n_qubits: number of qubits of the register.
    """
    basis = np.arange(2**n_qubits)
    index = basis
    for gate in gates:
        source = gate.parts[0].real.argmax(axis=1)  # new[i] = old[source[i]]
        local = local_value(n_qubits, gate.qubits)
        change, shift = local ^ source[local], np.zeros_like(basis)
        for position, qubit in enumerate(reversed(gate.qubits)):
            shift |= ((change >> position) & 1) << (n_qubits - 1 - qubit)
        index = index[basis ^ shift]
    return index


def _parts(spec: GateSpec) -> ComplexArray:
    zero = np.zeros((2**spec.n_qubits,) * 2)
    return np.array([part if part is not None else zero for part in (spec.constant, spec.cosine, spec.sine)], dtype=np.complex128)


def _matrix(name: str, angle: float = 0.0) -> ComplexArray:
    return np.array(GATES[name].matrix(angle), dtype=np.complex128)


# Fixed gates, in the order they apply, that map the eigenbasis of Z into that of Z, X, Y and H
_TO_BASIS: dict[str, tuple[ComplexArray, ...]] = {
    "Z": (),
    "X": (_matrix("h"),),
    "Y": (_matrix("h"), _matrix("s")),
    "H": (_matrix("ry", math.pi / 4),),
}


@functools.cache
def diagonal_basis(spec: GateSpec) -> tuple[tuple[str, ...], ComplexArray]:
    """A basis for each qubit, a key of `_TO_BASIS`, in which the gate is diagonal for every angle, and its parts there."""
    parts = _parts(spec)
    for letters in itertools.product(_TO_BASIS, repeat=spec.n_qubits):
        change: ComplexArray = np.eye(1, dtype=np.complex128)
        for letter in letters:
            one = np.eye(2, dtype=np.complex128)
            for matrix in _TO_BASIS[letter]:
                one = matrix @ one
            change = np.asarray(np.kron(change, one))
        rotated = change.conj().T @ parts @ change
        diagonal = rotated * np.eye(2**spec.n_qubits)
        if np.abs(rotated - diagonal).max() < 1e-12:
            return letters, diagonal
    raise CircuitError(f"gate {spec.name} is diagonal in no product of the bases {', '.join(_TO_BASIS)}")


def _fixed(matrix: ComplexArray, qubit: int) -> CompiledGate:
    return CompiledGate("local", (qubit,), np.stack([matrix, 0 * matrix, 0 * matrix]), 1.0, None)


def _commuting_neighbours(circuit: Circuit) -> set[int]:
    """Positions of single-qubit gates next to an upload whose basis they share: they become phases next to it."""
    chosen: set[int] = set()
    for q in range(circuit.n_qubits):
        line = [i for i, op in enumerate(circuit.ops) if q in op.qubits and op.gate != "id"]
        for order in (line, line[::-1]):
            basis = None
            for i in order:
                op = circuit.ops[i]
                if op.spec.n_qubits > 1:
                    basis = None
                    continue
                own = diagonal_basis(op.spec)[0] if op.spec.parametrised else None
                if circuit.is_input(op):
                    basis = own
                elif own is None or own != basis:
                    basis = None
                else:
                    chosen.add(i)
    return chosen


def _gates(circuit: Circuit, dense: bool) -> list[CompiledGate]:
    """The circuit as gates of the kinds above; fixed gates that undo each other are gone."""
    out: list[CompiledGate] = []
    line: list[list[int]] = [[] for _ in range(circuit.n_qubits)]
    gone: set[int] = set()

    def add(gate: CompiledGate) -> None:
        own = line[gate.qubits[0]]
        if gate.kind == "local" and gate.angle is None and own:
            before = out[own[-1]]
            if before.kind == "local" and before.angle is None and np.allclose(gate.parts[0] @ before.parts[0], np.eye(2)):
                gone.add(own.pop())
                return
        for q in gate.qubits:
            line[q].append(len(out))
        out.append(gate)

    neighbours = set() if dense else _commuting_neighbours(circuit)
    for position, op in enumerate(circuit.ops):
        data, spec = circuit.is_input(op), op.spec
        if op.gate == "id":
            continue
        if spec.n_qubits > 1 and spec.permutation:
            add(CompiledGate("perm", op.qubits, _parts(spec), 1.0, None))
        elif spec.n_qubits == 1 and not data and position not in neighbours:
            add(CompiledGate("local", op.qubits, _parts(spec), spec.frequency, op.angle))
        else:
            letters, parts = diagonal_basis(spec)
            for qubit, letter in zip(op.qubits, letters, strict=True):
                for matrix in reversed(_TO_BASIS[letter]):
                    add(_fixed(matrix.conj().T, qubit))
            kind = "data" if data else "local" if spec.n_qubits == 1 else "phase"
            add(CompiledGate(kind, op.qubits, parts, spec.frequency, op.angle))
            for qubit, letter in zip(op.qubits, letters, strict=True):
                for matrix in _TO_BASIS[letter]:
                    add(_fixed(matrix, qubit))
    return [gate for position, gate in enumerate(out) if position not in gone]


def _without_head(gates: list[CompiledGate], n_qubits: int) -> list[CompiledGate]:
    """Without gates that leave `|0...0>` as it is, to a global phase."""
    fresh, retained = set(range(n_qubits)), []
    for gate in gates:
        if (gate.diagonal or gate.kind == "perm") and fresh.issuperset(gate.qubits):
            continue
        fresh.difference_update(gate.qubits)
        retained.append(gate)
    return retained


def _without_tail(gates: list[CompiledGate], n_qubits: int) -> tuple[list[CompiledGate], IntArray | None]:
    """Without diagonal gates and permutations at the end; the second result is the permutation taken out."""
    blocked: set[int] = set()
    retained, moved = [], []
    for gate in reversed(gates):
        free = blocked.isdisjoint(gate.qubits)
        if free and gate.kind == "perm":
            moved.append(gate)
        elif not (free and gate.diagonal):
            blocked.update(gate.qubits)
            retained.append(gate)
    return retained[::-1], permutation(moved[::-1], n_qubits) if moved else None


def _split_runs(gates: list[CompiledGate], n_qubits: int, product: bool) -> list[CompiledGate]:
    """Diagonal single-qubit gates as phases where that leaves a real matrix, at half the cost of a complex one, or none."""
    out = list(gates)
    for q in range(n_qubits):
        mine = [i for i, gate in enumerate(gates) if q in gate.qubits]
        if product:  # as long as the qubit has met no other, its gates are part of the prefix
            mine = mine[next((k for k, i in enumerate(mine) if len(gates[i].qubits) > 1), len(mine)) :]
        for kind, run in itertools.groupby(mine, key=lambda i: gates[i].kind):
            members = list(run)
            if kind != "local":
                continue
            not_diagonal = [gates[i] for i in members if not gates[i].diagonal]
            if all(gate.real for gate in not_diagonal):
                for i in members:
                    if gates[i].diagonal and not (not_diagonal and gates[i].real):
                        out[i] = replace(gates[i], kind="phase")
    return out


def _steps(gates: list[CompiledGate]) -> list[Step]:
    """Group gates of one kind, each in the earliest group that can take it."""
    groups: list[tuple[str, list[CompiledGate]]] = []
    last: dict[int, int] = {}
    for gate in gates:
        latest = max((last[q] for q in gate.qubits if q in last), default=0)
        position = next((p for p in range(latest, len(groups)) if groups[p][0] == gate.kind), len(groups))
        if position == len(groups):
            groups.append((gate.kind, []))
        groups[position][1].append(gate)
        last.update(dict.fromkeys(gate.qubits, position))
    return [Step(kind, tuple(members)) for kind, members in groups]


def _evolution(circuit: Circuit, *, values_only: bool, only_z: bool) -> Evolution:
    n, folded = circuit.n_qubits, None
    gates = _gates(circuit, n <= DENSE_QUBITS)
    if values_only:
        gates = _without_head(gates, n)
    if only_z:
        gates, folded = _without_tail(gates, n)
    if n > DENSE_QUBITS:
        gates = _split_runs(gates, n, values_only)
    steps = _steps(gates)
    cut = 0
    while values_only and cut < len(steps) and steps[cut].kind in ("local", "data") and _single(steps[cut]):
        cut += 1
    prefix, rest = steps[:cut], steps[cut:]
    if n > DENSE_QUBITS:
        parts = [tuple(int(q) for q in part) for part in np.array_split(np.arange(n), -(-n // BLOCK_QUBITS))]
        rest = [
            replace(step, blocks=tuple(b for b in parts if any(g.qubits[0] in b for g in step.gates)))
            if step.kind == "local"
            else step
            for step in rest
        ]
    else:
        merged: list[Step] = []
        for data, run in itertools.groupby(rest, key=lambda step: step.kind == "data"):
            members = tuple(run)
            merged += members if data else (Step("dense", steps=members),)
        rest = merged
    return Evolution(n, tuple(prefix), tuple(rest), folded)


def _single(step: Step) -> bool:
    return all(len(gate.qubits) == 1 for gate in step.gates)


@functools.lru_cache(maxsize=512)
def compile_circuit(circuit: Circuit, observables: tuple[Observable, ...] | None = None) -> SimulatedCircuit:
    """Compile once per circuit and observables (cached). The default observables are `<Z_k>` of every qubit."""
    if observables is None:
        observables = tuple(Observable.z(k) for k in range(circuit.n_qubits))
    if not observables:
        raise CircuitError("at least one observable is needed")
    for observable in observables:
        for _, string in observable.terms:
            if string and string[-1][0] >= circuit.n_qubits:
                raise CircuitError("an observable names a qubit that is not there", value=string[-1][0], bound=circuit.n_qubits - 1)
    strings = [[[c, [list(p) for p in string]] for c, string in o.terms] for o in observables]
    key = json.dumps({"circuit": circuit.to_dict(), "observables": strings}, separators=(",", ":"))
    return SimulatedCircuit(circuit, observables, key)


@functools.lru_cache(maxsize=512)
def compiled_from_key(key: str) -> SimulatedCircuit:
    """The compiled circuit that a key stands for."""
    data = json.loads(key)
    observables = tuple(
        Observable(tuple((c, tuple((q, p) for q, p in string)) for c, string in terms)) for terms in data["observables"]
    )
    return compile_circuit(Circuit.from_dict(data["circuit"]), observables)
