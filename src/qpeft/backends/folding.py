"""Circuits at several times their noise: every gate G becomes `G (G^-1 G)^k`, the same circuit at `2k + 1` times the noise.

Folding comes after compilation, because a compiler joins `G G^-1` again. A backend folds what it is about to run:
`Backend.with_noise_scale`.
"""

from __future__ import annotations

import functools

import numpy as np

from qpeft.circuits.ir import GATES, Angle, Circuit, Op
from qpeft.errors import BackendError


def check_scale(scale: int) -> int:
    """The number of pairs `G^-1 G` for a noise scale; BackendError if it is no odd whole number."""
    if scale < 1 or scale % 2 == 0:
        raise BackendError("noise is scaled by odd whole numbers", value=scale, bound="1, 3, 5, ...")
    return scale // 2


def folded(circuit: Circuit, scale: int, free: frozenset[str] = frozenset()) -> Circuit:
    """The circuit at a multiple of the noise: each gate is followed by its inverse and itself, `(scale - 1) / 2` times.

    Args:
        circuit: the circuit.
        scale: odd.
        free: gates without error or duration, such as RZ on a chip, which are left as they are.
    """
    pairs = check_scale(scale)
    ops = [step for op in circuit.ops for step in (op, *(() if op.gate in free else (inverse(op), op) * pairs))]
    return Circuit(circuit.n_qubits, tuple(ops), circuit.n_inputs, circuit.n_params)


def inverse(op: Op) -> Op:
    """The gate that undoes `op`."""
    if op.angle is None:
        return Op(_inverse_gate(op.gate), op.qubits)
    return Op(op.gate, op.qubits, Angle(op.angle.index, -op.angle.scale, -op.angle.shift))


@functools.cache
def _inverse_gate(name: str) -> str:
    """The fixed gate whose matrix is the adjoint, from the gate table."""
    wanted = np.array(GATES[name].constant).conj().T
    same = [
        n
        for n, s in GATES.items()
        if not s.parametrised and np.shape(s.constant) == wanted.shape and np.allclose(s.constant, wanted)
    ]
    return same[0]
