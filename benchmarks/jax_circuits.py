"""The benchmark's hardware-efficient circuit, written for speed in JAX: an anchor for `python -m benchmarks.circuits`.

* Batch last: a state is `(2^n, batch)`, so that every product is a matrix product over the batch.
* The gates on a qubit between two rings are fused into one 2 x 2 matrix.
* The first layer acts on |0...0>, so it makes a product state: the Kronecker product of n vectors with two entries per sample.
* Each later layer of single-qubit gates is two Kronecker halves: matrices of `2^(n/2)`, shared by the batch.
* A ring of CNOTs is one gather of rows.
* Value and gradient are one compiled function.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qpeft.circuits.ir import Circuit, Op


def layers(circuit: Circuit) -> list[tuple[list[list[Op]], np.ndarray[Any, Any] | None]]:
    """The circuit as layers: the single-qubit gates of each qubit, in order, then the CNOTs as one permutation of rows.

    Raises:
        ValueError: for a circuit that has other gates, data after its first gates, or qubits with different gates.
    """
    n = circuit.n_qubits
    basis = np.arange(2**n)
    found: list[tuple[list[list[Op]], np.ndarray[Any, Any] | None]] = [([[] for _ in range(n)], None)]
    for op in circuit.ops:
        singles, source = found[-1]
        if op.gate == "cx":
            control, target = (1 << (n - 1 - q) for q in op.qubits)
            rows = np.where(basis & control, basis ^ target, basis)
            found[-1] = (singles, rows if source is None else source[rows])
        elif op.gate in ("rx", "ry", "rz"):
            if source is not None:
                found.append(([[] for _ in range(n)], None))
            found[-1][0][op.qubits[0]].append(op)
        else:
            raise ValueError(f"no {op.gate} here")
    first, later = found[0][0], [op for singles, _ in found[1:] for own in singles for op in own]
    uploads = all(own and own[0].gate == "ry" and circuit.is_input(own[0]) for own in first)
    rest = [op for own in first for op in own[1:]] + later
    alike = all(len({tuple(op.gate for op in own[(i == 0) :]) for own in singles}) == 1 for i, (singles, _) in enumerate(found))
    if not uploads or not alike or any(circuit.is_input(op) for op in rest):
        raise ValueError("not one RY of data per qubit, then equal gates on every qubit")
    return found


def _index(op: Op) -> int:
    assert op.angle is not None
    assert op.angle.index is not None
    return op.angle.index


def make_values(circuit: Circuit) -> Any:
    """A function `(inputs (batch, n_inputs), angles (n_angles,)) -> <Z_k> (batch, n)`, to be differentiated and compiled by JAX."""
    import jax.numpy as jnp

    n, compiled = circuit.n_qubits, layers(circuit)
    half = n // 2
    signs = np.stack([1 - 2 * ((np.arange(2**n) >> (n - 1 - k)) & 1) for k in range(n)]).astype(np.float32)

    def matrices(singles: list[list[Op]], angles: Any) -> Any:
        """The fused gates of each qubit, `(n, 2, 2)`: a product over the gates, all qubits at once."""
        made = jnp.broadcast_to(jnp.eye(2, dtype=jnp.complex64), (n, 2, 2))
        for turn in zip(*singles, strict=True):  # the k-th gate of every qubit
            half_angles = angles[np.array([_index(op) - circuit.n_inputs for op in turn])] / 2
            c, s, zero = jnp.cos(half_angles), jnp.sin(half_angles), jnp.zeros(n)
            entries = {
                "ry": [c, -s, s, c],
                "rx": [c, -1j * s, -1j * s, c],
                "rz": [c - 1j * s, zero, zero, c + 1j * s],
            }[turn[0].gate]
            made = jnp.stack(entries, axis=-1).reshape(n, 2, 2).astype(jnp.complex64) @ made
        return made

    def kron(found: Any) -> Any:
        made = found[0]
        for matrix in found[1:]:
            made = jnp.einsum("ab,cd->acbd", made, matrix).reshape(2 * made.shape[0], -1)
        return made

    def values(inputs: Any, angles: Any) -> Any:
        batch = inputs.shape[0]
        state = jnp.ones((1, batch), jnp.complex64)
        uploads = inputs[:, np.array([_index(own[0]) for own in compiled[0][0]])].T / 2
        start = jnp.stack([jnp.cos(uploads), jnp.sin(uploads)], axis=1)  # RY of the data on |0>: (n, 2, batch)
        start = jnp.einsum("nij,njb->nib", matrices([own[1:] for own in compiled[0][0]], angles), start)
        for column in start:  # a product state
            state = (state[:, None, :] * column[None, :, :]).reshape(-1, batch)
        if compiled[0][1] is not None:
            state = state[compiled[0][1]]
        for singles, source in compiled[1:]:
            found = matrices(singles, angles)
            left, right = kron(found[:half]), kron(found[half:])
            state = (left @ state.reshape(2**half, -1)).reshape(2**half, 2 ** (n - half), batch)
            state = jnp.einsum("ij,ajb->aib", right, state).reshape(2**n, batch)
            if source is not None:
                state = state[source]
        probabilities = jnp.square(state.real) + jnp.square(state.imag)
        return (signs @ probabilities).T

    return values
