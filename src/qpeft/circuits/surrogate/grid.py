"""The grid surrogate: a circuit run on a Fourier grid of inputs determines it for every input, noise included.

Data enters a circuit through the angles of gates, so each expectation value is a trigonometric polynomial in every input,
whatever happens between the gates that take it: fixed gates, noise, idling, readout errors,

    z_k(u) = sum_m c[m, k] prod_q phi_{m_q}(w_q u_q),    phi = 1, cos, sin, cos 2., sin 2., .., sin D_q.

`w_q` is the input's base frequency and `D_q` its degree, the sum over its uploads of the largest difference of the gate's
exponents. The values on `prod_q (2 D_q + 1)` equispaced points per period determine all coefficients: `(2L + 1)^n` circuits for n
qubits with L uploads each, whatever the number of samples. (Vidal and Theis, arXiv 1901.11434; Schuld et al., arXiv 2008.08605.)

`SurrogateExecutor` (executor.py) puts this around any Executor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.simulator import engine, transforms
from qpeft.circuits.surrogate.base import shot_variance
from qpeft.errors import CircuitError

MAX_POINTS = 2**20
MIN_FREQUENCY = 1e-6  # per radian; below, the points of the grid lie further out than angles are resolved
COMMENSURATE = 4096  # largest denominator of a ratio of two frequencies of one input


@dataclass(frozen=True)
class FourierGrid:
    """The grid of a circuit: for each input a base frequency (per radian) and a degree."""

    base: tuple[float, ...]
    degrees: tuple[int, ...]

    @classmethod
    def of(cls, circuit: Circuit, observables: Sequence[Observable] | None = None) -> FourierGrid:
        """The grid of a circuit, which serves all observables.

        Raises:
            CircuitError: two frequencies of an input have no common base, or the grid is too large.
        """
        base, degrees = frequencies(circuit)
        if math.prod(2 * d + 1 for d in degrees) > MAX_POINTS:
            raise CircuitError(
                "the grid has too many points",
                value=" x ".join(str(2 * d + 1) for d in degrees),
                bound=f"{MAX_POINTS:,}",
                hint="the sparse surrogate, run the circuit directly, or fewer qubits or uploads",
            )
        return cls(base, degrees)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Points, and coefficients, along each input."""
        return tuple(2 * d + 1 for d in self.degrees)

    @property
    def size(self) -> int:
        """Points of the grid, `prod_q (2 D_q + 1)`: the circuits that an evaluation runs."""
        return math.prod(self.shape)

    @functools.cached_property
    def plain(self) -> bool:
        """Whether phases are the inputs themselves."""
        return all(w == 1 for w in self.base)

    def points(self) -> npt.NDArray[np.float64]:
        """Inputs `(size, n_inputs)` in radians, the first input varying slowest."""
        axes = [2 * math.pi / w * np.arange(count) / count for w, count in zip(self.base, self.shape, strict=True)]
        return np.stack([grid.reshape(-1) for grid in np.meshgrid(*axes, indexing="ij")], axis=-1) if axes else np.zeros((1, 0))

    def coefficients(self, values: Tensor) -> Tensor:
        """Coefficients `(*shape, K)` from values on the points `(size, K)`: an inverse real Fourier transform along each axis."""
        grid = values.reshape(*self.shape, -1)
        for axis, degree in enumerate(self.degrees):
            transform = torch.as_tensor(_inverse(degree), dtype=values.dtype, device=values.device)
            grid = torch.tensordot(grid, transform, dims=([axis], [1])).movedim(-1, axis)
        return grid

    def evaluate(self, coefficients: Tensor, inputs: Tensor) -> Tensor:
        """See `Surrogate.evaluate`.

        Formula in simulator/torch_engine/polynomials.py. The backward pass saves the arguments alone.
        """
        transforms.refuse("a Fourier grid's polynomial")
        out: Tensor = _Evaluate.apply(coefficients, inputs, self)  # type: ignore[no-untyped-call]
        return out

    def weights(self, inputs: Tensor) -> Tensor:
        """How much each grid value counts at `inputs (B, n_inputs)`: `(B, size)`, `z(u) = weights(u) @ values`.

        `prod_q D_q(w_q (u_q - v_q))` with the Dirichlet kernel `D(t) = (1 + 2 sum_m cos m t) / (2 D + 1)`. The squares of a row
        sum to 1, so values with independent errors of variance s^2 give `z(u)` with an error of variance at most max s^2.
        """
        product = inputs.new_ones(inputs.shape[0], 1)
        for q, (degree, count) in enumerate(zip(self.degrees, self.shape, strict=True)):
            points = 2 * math.pi * torch.arange(count, dtype=inputs.dtype, device=inputs.device) / count
            difference = self.base[q] * inputs[:, q : q + 1] - points
            kernel = torch.ones_like(difference)
            for m in range(1, degree + 1):
                kernel = kernel + 2 * (m * difference).cos()
            product = (product[:, :, None] * (kernel / count)[:, None, :]).flatten(1, 2)
        return product

    def variance(self, values: Tensor, shots: int, inputs: Tensor) -> Tensor:
        """Variance of an evaluation at `inputs (B, n_inputs)` when each grid value is the mean of `shots` outcomes +-1.

        `sum_v weights(u)_v^2 (1 - z(v)^2) / shots`, `(B, K)`, at most `1 / shots`: no more than running the circuit at `u` itself
        may have. `values (size, K)` are the exact ones, or estimates of them.
        """
        return self.weights(inputs).square() @ shot_variance(values, shots)

    def error(self, values: Tensor) -> Tensor:
        """Zero for each observable: but for the shots of its values a grid is exact."""
        return torch.zeros(values.shape[1], dtype=torch.float64)

    def forget(self) -> None:
        """Nothing is kept from one set of angles to the next."""


class _Evaluate(torch.autograd.Function):
    """The polynomials of a grid; backward by hand."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, inputs: Tensor, grid: FourierGrid) -> Tensor:
        ctx.save_for_backward(coefficients, inputs)
        ctx.grid = grid
        t = _scaled(grid, inputs.T)
        return engine.for_polynomials(coefficients, t).values(coefficients, t, grid.shape).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        coefficients, inputs = ctx.saved_tensors
        grid: FourierGrid = ctx.grid
        own, by_input, _ = ctx.needs_input_grad
        t = _scaled(grid, inputs.T)
        found = engine.for_polynomials(coefficients, t)
        by_coefficients, by_t = found.gradients(grad.T, coefficients, t, grid.shape, wanted=(own, by_input))
        return by_coefficients if own else None, None if by_t is None else _scaled(grid, by_t).T, None


def _scaled(grid: FourierGrid, rows: Tensor) -> Tensor:
    """Row q times `w_q`: phases `(n_inputs, B)` from inputs, and the inputs' gradient from that of phases."""
    if grid.plain:
        return rows
    return rows * torch.tensor(grid.base, dtype=rows.dtype, device=rows.device)[:, None]


def frequencies(circuit: Circuit) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """For each input its base frequency (per radian) and its degree.

    Raises:
        CircuitError: two frequencies of an input have no common base.
    """
    found: list[list[tuple[float, ...]]] = [[] for _ in range(circuit.n_inputs)]
    for op in circuit.ops:
        if circuit.is_input(op):
            assert op.angle is not None
            assert op.angle.index is not None
            if op.angle.scale:
                found[op.angle.index].append(tuple(abs(op.angle.scale) * f for f in op.spec.frequencies))
    pairs = [_base_and_degree(q, uploads) for q, uploads in enumerate(found)]
    return tuple(base for base, _ in pairs), tuple(degree for _, degree in pairs)


def _base_and_degree(q: int, uploads: Sequence[tuple[float, ...]]) -> tuple[float, int]:
    """Base frequency and degree of an input from the frequencies of each gate that takes it."""
    everything = sorted({f for upload in uploads for f in upload})
    if not everything:
        return 1.0, 0
    smallest = everything[0]
    if smallest < MIN_FREQUENCY:
        raise CircuitError(
            f"input {q} enters at too small a frequency for a grid",
            value=f"{smallest:g} per radian",
            bound=f"at least {MIN_FREQUENCY:g}",
            hint="a larger scale, or run the circuit directly",
        )
    ratios = [Fraction(f / smallest).limit_denominator(COMMENSURATE) for f in everything]
    if any(abs(float(ratio) * smallest - f) > 1e-9 * f for ratio, f in zip(ratios, everything, strict=True)):
        raise CircuitError(
            f"input {q} enters at frequencies without a common base",
            value=", ".join(f"{f:g}" for f in everything),
            hint="scales of an input whose ratios are fractions, or run the circuit directly",
        )
    base = smallest / math.lcm(*(ratio.denominator for ratio in ratios))
    return base, sum(round(max(upload) / base) for upload in uploads if upload)


@functools.cache
def _inverse(degree: int) -> npt.NDArray[np.float64]:
    """Rows `1, cos, sin, cos 2., ..` of the inverse real Fourier transform on `2 degree + 1` points."""
    count = 2 * degree + 1
    points = 2 * math.pi * np.arange(count) / count
    rows = [np.full(count, 1 / count)]
    for m in range(1, degree + 1):
        rows += [2 / count * np.cos(m * points), 2 / count * np.sin(m * points)]
    return np.stack(rows)
