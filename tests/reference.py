"""An independent state-vector evolution in plain numpy, to test everything else against.

It is slow, obvious, and shares nothing with the simulators but `GateSpec.matrix`. Qubit 0 is the leftmost bit, as in
`qpeft.circuits.ir`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from qpeft.adapters.layers.tensor_train import TensorTrain
from qpeft.circuits.ir import PAULI, Circuit, Observable


def apply(matrix: Sequence[Sequence[complex]] | np.ndarray, qubits: Sequence[int], psi: np.ndarray) -> np.ndarray:
    """`matrix` on `qubits` (its first bit is `qubits[0]`) of `psi`, complex128 of shape `(2,) * n`; the same shape back."""
    k = len(qubits)
    gate = np.asarray(matrix, dtype=np.complex128).reshape((2,) * (2 * k))
    return np.moveaxis(np.tensordot(gate, psi, axes=(range(k, 2 * k), tuple(qubits))), range(k), tuple(qubits))


def state(circuit: Circuit, params: Sequence[float] = ()) -> np.ndarray:
    """The final state from `|0...0>`: complex128 of shape `(2^n,)`. `params` has length `n_params`, radians."""
    assert len(params) == circuit.n_params
    psi = np.zeros((2,) * circuit.n_qubits, dtype=np.complex128)
    psi[(0,) * circuit.n_qubits] = 1
    for op in circuit.ops:
        angle = 0.0 if op.angle is None else op.angle.value(params)
        psi = apply(op.spec.matrix(angle), op.qubits, psi)
    return psi.reshape(-1)


def expectation(circuit: Circuit, params: Sequence[float], observable: Observable) -> float:
    """`<psi| observable |psi>` in the final state."""
    psi = state(circuit, params).reshape((2,) * circuit.n_qubits)
    total = 0.0
    for coefficient, word in observable.terms:
        phi = psi
        for qubit, pauli in word:
            phi = apply(PAULI[pauli], (qubit,), phi)
        total += coefficient * float(np.vdot(psi, phi).real)
    return total


def fidelity(a: np.ndarray, b: np.ndarray) -> float:
    """`|<a|b>|^2`: 1 for states that are equal up to a global phase."""
    return float(abs(np.vdot(a, b)) ** 2)


def reverse_qubits(psi: np.ndarray) -> np.ndarray:
    """The same state with the bits of its indices reversed: from our order to Qiskit's, and back."""
    n = psi.size.bit_length() - 1
    return psi.reshape((2,) * n).transpose(range(n)[::-1]).reshape(-1)


def dense(made: TensorTrain) -> np.ndarray:
    """`W[j1 j2 .., i1 i2 ..] = sum over bonds of prod_k G_k[j_k, a_{k+1}, a_k, i_k]`, an entry at a time."""
    cores = [core.detach().numpy() for core in made.cores]
    outs, ins = [core.shape[0] for core in cores], [core.shape[3] for core in cores]
    matrix = np.zeros((math.prod(outs), math.prod(ins)))
    for row, js in enumerate(itertools.product(*map(range, outs))):
        for column, indices in enumerate(itertools.product(*map(range, ins))):
            product = np.eye(1)
            for core, j, i in zip(cores, js, indices, strict=True):
                product = core[j, :, :, i] @ product
            matrix[row, column] = product.item()
    return matrix
