"""What a job's outcome would be without noise: a small circuit's exact state, by the gates' matrices, without loading torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qpeft.circuits.gates import PAULI, Matrix
from qpeft.circuits.ir import Circuit, Observable

MAX_QUBITS, MAX_OPS = 12, 2000


def is_small(circuit: Circuit) -> bool:
    """Whether the exact state takes milliseconds."""
    return circuit.n_qubits <= MAX_QUBITS and len(circuit.ops) <= MAX_OPS


def _apply(matrix: Matrix, qubits: Sequence[int], state: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
    k = len(qubits)
    gate = np.asarray(matrix, dtype=np.complex128).reshape((2,) * (2 * k))
    moved = np.tensordot(gate, state, axes=(tuple(range(k, 2 * k)), tuple(qubits)))
    return np.asarray(np.moveaxis(moved, range(k), qubits))


@functools.lru_cache(maxsize=64)
def _state(circuit: Circuit, params: tuple[float, ...]) -> npt.NDArray[np.complex128]:
    """The final state, an axis for each qubit."""
    state = np.zeros((2,) * circuit.n_qubits, dtype=np.complex128)
    state[(0,) * circuit.n_qubits] = 1.0
    for op in circuit.ops:
        angle = 0.0 if op.angle is None else op.angle.value(params)
        state = _apply(op.spec.matrix(angle), op.qubits, state)
    return state


def probabilities(circuit: Circuit, params: Sequence[float], bits: Sequence[int] | None) -> dict[str, float]:
    """Ideal probabilities of outcomes; those below 1e-12 are left out.

    Args:
        circuit: the circuit, without noise.
        params: its parameters, radians.
        bits: the qubits that are measured, the first of them leftmost in an outcome; None is all, in order.

    Returns:
        Outcome as a word of 0 and 1, and its probability.
    """
    n = circuit.n_qubits
    measured = list(range(n) if bits is None else bits)
    kept = list(dict.fromkeys(measured))
    table = np.abs(_state(circuit, tuple(params))) ** 2
    table = table.sum(axis=tuple(q for q in range(n) if q not in kept))
    order = sorted(kept)
    table = np.transpose(table, [order.index(q) for q in kept])
    found: dict[str, float] = {}
    for place in np.argwhere(table > 1e-12):
        values = dict(zip(kept, place, strict=True))
        word = "".join(str(values[q]) for q in measured)
        found[word] = found.get(word, 0.0) + float(table[tuple(place)])
    return found


def expectations(circuit: Circuit, params: Sequence[float], observables: Sequence[Observable] | None) -> list[float]:
    """Ideal expectation values.

    Args:
        circuit: the circuit, without noise.
        params: its parameters, radians.
        observables: what is measured; None is Z of every qubit.
    """
    state = _state(circuit, tuple(params))
    wanted = [Observable.z(q) for q in range(circuit.n_qubits)] if observables is None else observables
    found = []
    for observable in wanted:
        total = 0.0
        for coefficient, string in observable.terms:
            turned = state
            for qubit, letter in string:
                turned = _apply(PAULI[letter], (qubit,), turned)
            total += coefficient * float(np.vdot(state, turned).real)
        found.append(total)
    return found
