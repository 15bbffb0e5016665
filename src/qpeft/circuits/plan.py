"""Compiling a circuit for a batch: which gates depend on data, and how the others fuse. No torch.

A plan is a list of elements applied in order. A *data* element holds gates whose angle is an input, different for every
sample, on disjoint qubits. Everything else is the same unitary for the whole batch:

    block   a unitary on some qubits, itself a product of factors: `local` (single-qubit gates on disjoint qubits), `phase`
            (diagonal gates), `perm` (gates that permute basis states) and `pair` (any other two-qubit gate)
    phase   diagonal gates on the whole register
    perm    permutations of the whole register

Up to `DENSE_QUBITS` qubits all gates between two data elements make one block on the whole register, a 2^n x 2^n matrix built
once and applied to all samples. Above, single-qubit gates make Kronecker blocks of at most `BLOCK_QUBITS` qubits and the
others apply as they are. Gates on different qubits commute, so each gate moves to the earliest element that can take it.
Which gate is diagonal or a permutation is read off the gate table.
"""

from __future__ import annotations

import cmath
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qpeft.circuits.ir import Circuit, Observable, Op
from qpeft.errors import CircuitError

DENSE_QUBITS = 6
BLOCK_QUBITS = 4

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Factor:
    """Gates of one kind (`local`, `phase`, `perm`, `pair`, `data`) that apply together. `register` is the qubits it lives on."""

    kind: str
    ops: tuple[Op, ...]
    register: tuple[int, ...]


@dataclass(frozen=True)
class Element:
    """One thing an evolution applies: kind `data`, `block`, `phase` or `perm`. All but blocks hold one factor."""

    kind: str
    qubits: tuple[int, ...]
    factors: tuple[Factor, ...]


@dataclass(frozen=True)
class Readout:
    """Observables that flip the same bits: `O_k = sum_b (real + i imag)[k, b] |b><flip[b]|`."""

    flip: IntArray
    real: FloatArray
    imag: FloatArray


@dataclass(frozen=True, eq=False)
class Plan:
    """A compiled circuit with its observables. `key` is self-contained JSON from which `plan_from_key` makes an equal plan."""

    circuit: Circuit
    observables: tuple[Observable, ...]
    elements: tuple[Element, ...]
    key: str

    def __deepcopy__(self, memo: object) -> Plan:
        return self

    @functools.cached_property
    def readouts(self) -> tuple[Readout, ...]:
        """Observables by the bits they flip; those made of Z alone share one readout that flips none."""
        n = self.circuit.n_qubits
        basis = np.arange(2**n)
        groups: dict[int, npt.NDArray[np.complex128]] = {0: np.zeros((len(self.observables), 2**n), dtype=np.complex128)}
        for k, observable in enumerate(self.observables):
            for coefficient, word in observable.terms:
                mask, phase = 0, np.full(2**n, coefficient, dtype=np.complex128)
                for qubit, pauli in word:
                    bit = 1 << (n - 1 - qubit)
                    ones = (basis & bit) > 0
                    mask |= bit if pauli != "Z" else 0
                    if pauli == "Z":
                        phase = np.where(ones, -phase, phase)
                    elif pauli == "Y":  # row 1 of Y is (i, 0), row 0 is (0, -i)
                        phase = np.where(ones, 1j * phase, -1j * phase)
                groups.setdefault(mask, np.zeros((len(self.observables), 2**n), dtype=np.complex128))[k] += phase
        used = [(mask, weights) for mask, weights in groups.items() if weights.any()] or [(0, groups[0])]
        return tuple(Readout(basis ^ mask, weights.real.copy(), weights.imag.copy()) for mask, weights in used)


def local_value(register: Sequence[int], qubits: Sequence[int]) -> IntArray:
    """For every basis state of `register`, the value of `qubits` read as a binary number, first qubit most significant."""
    basis = np.arange(2 ** len(register))
    value = np.zeros_like(basis)
    for qubit in qubits:
        value = 2 * value + ((basis >> (len(register) - 1 - register.index(qubit))) & 1)
    return value


def phase_weights(factor: Factor) -> tuple[FloatArray, FloatArray]:
    """Exponents of diagonal gates: `weights[g, b]` multiplies gate g's angle, `offset[b]` is the phase with all angles zero."""
    size = 2 ** len(factor.register)
    weights, offset = np.zeros((len(factor.ops), size)), np.zeros(size)
    for g, op in enumerate(factor.ops):
        where = local_value(factor.register, op.qubits)
        at_zero = np.array([cmath.phase(row[i]) for i, row in enumerate(op.spec.matrix(0.0))])
        at_one = np.array([cmath.phase(row[i]) for i, row in enumerate(op.spec.matrix(1.0))])
        weights[g] = (at_one - at_zero)[where] if op.spec.parametrised else 0.0
        offset += at_zero[where]
    return weights, offset


def permutation(factor: Factor) -> IntArray:
    """`index` such that applying the gates in order is `new[b] = old[index[b]]`."""
    register = factor.register
    basis = np.arange(2 ** len(register))
    index = basis
    for op in factor.ops:
        source = np.array([row.index(1) for row in op.spec.constant])  # new[i] = old[source[i]]
        local = local_value(register, op.qubits)
        change, shift = local ^ source[local], np.zeros_like(basis)
        for position, qubit in enumerate(reversed(op.qubits)):
            shift |= ((change >> position) & 1) << (len(register) - 1 - register.index(qubit))
        index = index[basis ^ shift]
    return index


def _kind(op: Op) -> str:
    if op.spec.diagonal:
        return "phase"
    if op.spec.n_qubits == 1:
        return "local"
    return "perm" if op.spec.permutation else "pair"


def _layers(ops: Sequence[Op], kind: Callable[[Op], str], joins: Callable[[str, str, bool], bool]) -> list[tuple[str, list[Op]]]:
    """Group ops of one kind, each op in the earliest group that can take it.

    `joins(group_kind, op_kind, shares)` says whether an op may join a group, `shares` being true when the group is the last
    one to touch one of the op's qubits.
    """
    groups: list[tuple[str, list[Op]]] = []
    last: dict[int, int] = {}
    for op in ops:
        op_kind = kind(op)
        latest = max((last[q] for q in op.qubits if q in last), default=-1)
        for position in range(max(latest, 0), len(groups)):
            if joins(groups[position][0], op_kind, position == latest):
                break
        else:
            position = len(groups)
            groups.append((op_kind, []))
        groups[position][1].append(op)
        for q in op.qubits:
            last[q] = position
    return groups


def _block_factors(ops: Sequence[Op], register: tuple[int, ...]) -> tuple[Factor, ...]:
    """Factors of a block: a local factor holds at most one gate a qubit, diagonals and permutations collect, pairs stand alone."""
    groups = _layers(ops, _kind, lambda group, op, shares: group == op != "pair" and not (shares and op == "local"))
    return tuple(Factor(kind, tuple(members), register) for kind, members in groups)


def _register_elements(ops: Sequence[Op], n_qubits: int) -> list[Element]:
    """Elements of a fixed step on a register too large for one block."""
    register = tuple(range(n_qubits))
    elements: list[Element] = []

    def single(op: Op) -> str:
        return "local" if op.spec.n_qubits == 1 else _kind(op)

    for kind, members in _layers(ops, single, lambda group, op, shares: group == op != "pair"):
        if kind == "local":
            for part in np.array_split(np.arange(n_qubits), -(-n_qubits // BLOCK_QUBITS)):
                qubits = tuple(int(q) for q in part)
                if inside := [op for op in members if op.qubits[0] in qubits]:
                    elements.append(Element("block", qubits, _block_factors(inside, qubits)))
        elif kind == "pair":
            elements += [Element("block", op.qubits, (Factor("pair", (op,), op.qubits),)) for op in members]
        else:
            elements.append(Element(kind, register, (Factor(kind, tuple(members), register),)))
    return elements


def _elements(circuit: Circuit) -> list[Element]:
    n = circuit.n_qubits
    register = tuple(range(n))
    steps: list[list[Op]] = []  # data gates at even positions, fixed gates at odd ones
    last = [0] * n
    for op in circuit.ops:
        if op.gate == "id":
            continue
        step = max(last[q] for q in op.qubits)
        if (step % 2 == 0) != circuit.is_input(op):
            step += 1
        while len(steps) <= step:
            steps.append([])
        steps[step].append(op)
        for q in op.qubits:
            last[q] = step
    elements: list[Element] = []
    for position, ops in enumerate(steps):
        if position % 2 == 0:
            for _, members in _layers(ops, lambda op: "data", lambda group, op, shares: not shares):
                elements.append(Element("data", register, (Factor("data", tuple(members), register),)))
        elif ops and n <= DENSE_QUBITS:
            elements.append(Element("block", register, _block_factors(ops, register)))
        elif ops:
            elements += _register_elements(ops, n)
    return elements


@functools.lru_cache(maxsize=512)
def compile_circuit(circuit: Circuit, observables: tuple[Observable, ...] | None = None) -> Plan:
    """Compile once per circuit and observables (cached). The default observables are `<Z_k>` of every qubit."""
    if observables is None:
        observables = tuple(Observable.z(k) for k in range(circuit.n_qubits))
    if not observables:
        raise CircuitError("at least one observable is needed")
    for observable in observables:
        for _, word in observable.terms:
            if word and word[-1][0] >= circuit.n_qubits:
                raise CircuitError("an observable names a qubit that is not there", value=word[-1][0], bound=circuit.n_qubits - 1)
    words = [[[c, [list(p) for p in word]] for c, word in o.terms] for o in observables]
    key = json.dumps({"circuit": circuit.to_dict(), "observables": words}, separators=(",", ":"))
    return Plan(circuit, observables, tuple(_elements(circuit)), key)


@functools.lru_cache(maxsize=512)
def plan_from_key(key: str) -> Plan:
    """The plan a key stands for."""
    data = json.loads(key)
    observables = tuple(
        Observable(tuple((c, tuple((q, p) for q, p in word)) for c, word in terms)) for terms in data["observables"]
    )
    return compile_circuit(Circuit.from_dict(data["circuit"]), observables)
