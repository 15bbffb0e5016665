"""Gradients of expectation values from expectation values alone, so that a chip can give them.

Every parametrised gate of the table is `exp(-i t G)` up to what does not depend on t. An expectation value is a trigonometric
polynomial in its angle, whose frequencies are the differences of G's eigenvalues: 1 for rotations and phases, 1/2 and 1 for
controlled rotations. With R frequencies, 2R evaluations give the derivative exactly, noise and all, as long as the noise does not
depend on the angle:

    df/dt = sum_r c_r (f(t + s_r) - f(t - s_r)),   2 sum_r c_r sin(w s_r) = w for every frequency w

The rule is read off the gate table by `shift_rule`: two terms for a rotation, four for a controlled one.
A parameter that several gates use, or that they scale, gets the sum of its gates' derivatives times their scales.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qpeft.backends.base import FloatArray
from qpeft.circuits.ir import GATES, Angle, Circuit, Op
from qpeft.errors import CircuitError

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# Expectation values `(rows, n_observables)` from angles of gates `(rows, n_gates)`.
Evaluate = Callable[[FloatArray], FloatArray]

SPSA_STEP = 0.1  # radians: far below a period, far above the shot noise of some hundred shots


@functools.cache
def shift_rule(gate: str) -> tuple[tuple[float, float], ...]:
    """Pairs `(shift, coefficient)`, shifts in radians: `df/dt = sum c (f(t + s) - f(t - s))`."""
    found = np.array(GATES[gate].frequencies)
    if not found.size:
        raise CircuitError("a gate without an angle has no derivative", value=gate)
    terms = len(found)
    shifts = (2 * np.arange(1, terms + 1) - 1) * np.pi / (2 * terms * found.min())
    coefficients = np.linalg.solve(2 * np.sin(np.outer(found, shifts)), found)
    return tuple(zip(shifts.tolist(), coefficients.tolist(), strict=True))


@dataclass(frozen=True)
class Unrolled:
    """A circuit in which every gate that depends on a parameter has an angle of its own: `gate_angles = scale * params + shift`.

    `circuit` has `n_gates` parameters; `index`, `scale` and `shift (n_gates,)` say what each gate's angle is made of, `gates`
    which gate it is.
    """

    circuit: Circuit
    gates: tuple[str, ...]
    index: IntArray
    scale: FloatArray
    shift: FloatArray

    @classmethod
    def of(cls, circuit: Circuit) -> Unrolled:
        """Unroll a circuit: the k-th gate that depends on a parameter gets parameter k as its angle, with scale 1 and shift 0.

        Args:
            circuit: its inputs count as parameters too. Gates with a fixed angle, or with none, stay as they are.

        Returns:
            The unrolled circuit; `index` int64, `scale` and `shift` (radians) float64, each `(n_gates,)` in the order of the gates.
        """
        ops: list[Op] = []
        angles: list[tuple[str, Angle]] = []
        for op in circuit.ops:
            if op.angle is not None and op.angle.index is not None:
                ops.append(Op(op.gate, op.qubits, Angle(len(angles))))
                angles.append((op.gate, op.angle))
            else:
                ops.append(op)
        return cls(
            Circuit(circuit.n_qubits, tuple(ops), 0, len(angles)),
            tuple(gate for gate, _ in angles),
            np.array([angle.index for _, angle in angles], dtype=np.int64),
            np.array([angle.scale for _, angle in angles], dtype=np.float64),
            np.array([angle.shift for _, angle in angles], dtype=np.float64),
        )

    def gate_angles(self, params: FloatArray) -> FloatArray:
        """`(rows, n_gates)` from parameters `(rows, n_params)`."""
        return np.ascontiguousarray(params[:, self.index] * self.scale + self.shift)

    def to_params(self, gate_gradient: FloatArray, n_params: int) -> FloatArray:
        """The chain rule: derivatives in the parameters `(rows, n_params)`.

        Args:
            gate_gradient: derivatives in the gate angles, `(rows, n_gates)`.
            n_params: number of parameters of the circuit.
        """
        out = np.zeros((len(gate_gradient), n_params))
        np.add.at(out.T, self.index, (gate_gradient * self.scale).T)
        return out


def parameter_shift(
    evaluate: Evaluate,
    unrolled: Unrolled,
    params: FloatArray,
    grad: FloatArray,
    wanted: BoolArray,
    block_rows: int | None = None,
) -> FloatArray:
    """Gradient of `sum_k grad[b, k] z_k(params[b])` in each row's parameters, exact in the exact limit and unbiased with shots.

    Args:
        evaluate: gives the expectation values `(rows, n_observables)` at gate angles.
        unrolled: the circuit with one angle per gate.
        params: `(rows, n_params)`, radians.
        grad: `(rows, n_observables)`.
        wanted: `(n_params,)`, which parameters to differentiate; the others get 0 and cost nothing.
        block_rows: the most rows of one call of `evaluate`, which bounds the memory; default all in one call.

    Returns:
        `(rows, n_params)`, from `2 R` evaluations of each row for each wanted gate.
    """
    angles = unrolled.gate_angles(params)
    jobs = [
        (gate, shift, coefficient)
        for gate, name in enumerate(unrolled.gates)
        if wanted[unrolled.index[gate]] and unrolled.scale[gate]
        for s, c in shift_rule(name)
        for shift, coefficient in ((s, c), (-s, -c))
    ]
    gates = np.array([gate for gate, _, _ in jobs], dtype=np.int64)
    shifts, coefficients = (np.array([job[k] for job in jobs], dtype=np.float64) for k in (1, 2))
    by_gate, rows = np.zeros_like(angles), len(angles)
    total = len(jobs) * rows
    for start in range(0, total, block_rows or max(total, 1)):
        job, row = np.divmod(np.arange(start, min(start + (block_rows or total), total)), max(rows, 1))
        shifted = angles[row]
        shifted[np.arange(len(row)), gates[job]] += shifts[job]
        slopes = (evaluate(shifted) * grad[row]).sum(axis=1)
        np.add.at(by_gate, (row, gates[job]), coefficients[job] * slopes)
    return unrolled.to_params(by_gate, params.shape[1])


def spsa(
    evaluate: Evaluate,
    unrolled: Unrolled,
    params: FloatArray,
    grad: FloatArray,
    wanted: BoolArray,
    shared: BoolArray,
    signs: Sequence[FloatArray],
    step: float = SPSA_STEP,
) -> FloatArray:
    """Simultaneous perturbation (Spall 1992): all wanted parameters move at once by `step` times a random sign, there and back.

    `(f(p + c D) - f(p - c D)) / 2c * D`, averaged over `signs`; two evaluations of every row for each, whatever the number of
    parameters. Its mean over signs is the gradient up to `O(step^2)`; shots add no bias.

    Args:
        evaluate: gives the expectation values `(rows, n_observables)` at gate angles.
        unrolled: the circuit with one angle per gate.
        params: `(rows, n_params)`, radians.
        grad: `(rows, n_observables)`.
        wanted: `(n_params,)`, which parameters to differentiate; the others get 0.
        shared: `(n_params,)`, which parameters have one value for all rows. Such a parameter has one sign, and its gradient, summed
            over rows, is in row 0.
        signs: arrays of +-1, `(rows, n_params)`.
        step: c, radians.

    Returns:
        `(rows, n_params)`.
    """
    out = np.zeros_like(params)
    moves = [np.where(shared, sign[:1], sign) * wanted for sign in signs]
    points = np.stack([params + way * step * move for move in moves for way in (1, -1)])
    values = evaluate(unrolled.gate_angles(points.reshape(-1, params.shape[1]))).reshape(len(moves), 2, *grad.shape)
    for move, (ahead, behind) in zip(moves, values, strict=True):
        slope = ((ahead - behind) * grad).sum(axis=1) / (2 * step)  # (rows,)
        out += np.where(shared, 0.0, slope[:, None] * move)
        out[0] += np.where(shared, slope.sum() * move[0], 0.0)
    return out / len(moves)
