"""The tensor-train surrogate: the Fourier coefficients of a circuit as a chain of small tensors.

The coefficients of an observable over the inputs of its light cone form a tensor `c[m_1, .., m_n]`. Where the circuit entangles
neighbours, it is close to a tensor train (matrix product) of small ranks,

    z(u) = A_1(u_1) A_2(u_2) .. A_n(u_n),    A_q(u)[a, b] = sum_m G_q[a, m, b] phi_m(w_q u),

with `sum_q r_{q-1} (2 D_q + 1) r_q` numbers instead of `prod_q (2 D_q + 1)`. The circuit runs at P random inputs and the cores are
fitted by alternating least squares: with all cores but one fixed the fit is linear. A ridge term, the variance of a value's shots
over that of a coefficient, keeps noise out. The rank is the one of smallest error on points that the fit has not seen; the fit is
then repeated with all points.

The fit is not linear in the values, so gradients are taken at its solution: with the Jacobian J of the predictions for the cores,
`d cores = (J^T J + ridge)^-1 J^T d values` (Gauss-Newton).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.surrogate.base import observables_of, shot_variance
from qpeft.circuits.surrogate.grid import frequencies
from qpeft.circuits.surrogate.light_cone import light_cone
from qpeft.errors import CircuitError

RANKS = (1, 2, 3, 4, 6, 8, 11, 15)
SWEEPS = 30  # of alternating least squares, at most
SETTLED = 1e-4  # relative change of the residual at which a fit ends
UNSEEN = 8  # one point in so many chooses the rank
MAX_POINTS = 2**15


@dataclass(frozen=True)
class Chain:
    """One observable: its cone's inputs, their frequencies and degrees, and the features `(n, P, 2 D + 1)` at the points."""

    output: int
    inputs: tuple[int, ...]
    base: tuple[float, ...]
    degrees: tuple[int, ...]

    def waves(self, inputs: Tensor) -> list[Tensor]:
        """`(B, 2 D_q + 1)` for each input of the cone: 1, cos, sin, cos 2., .."""
        found = []
        for q, w, degree in zip(self.inputs, self.base, self.degrees, strict=True):
            t = w * inputs[:, q : q + 1]
            found.append(
                torch.cat([torch.ones_like(t), *(f(m * t) for m in range(1, degree + 1) for f in (torch.cos, torch.sin))], 1)
            )
        return found


@dataclass(eq=False)
class TensorTrainSurrogate:
    """Expectation values of a circuit as tensor trains in the Fourier basis, from values at random inputs.

    Attributes:
        points_array: `(P, n_inputs)` float64, radians.
        shots: outcomes behind each value, None for exact values.
        chains: one for each observable.
    """

    points_array: npt.NDArray[np.float64]
    shots: int | None
    chains: tuple[Chain, ...]
    shapes: list[list[tuple[int, int, int]]] | None = None

    @classmethod
    def of(
        cls,
        circuit: Circuit,
        observables: Sequence[Observable] | None = None,
        *,
        points: int,
        shots: int | None = 1000,
        seed: int = 0,
    ) -> TensorTrainSurrogate:
        """The surrogate of a circuit before it has run, on random inputs over the whole circle.

        Args:
            circuit: with inputs that enter as angles of gates.
            observables: default `<Z_k>` for each qubit k.
            points: number of random inputs, 16 to 2^15.
            shots: outcomes behind each value; None for exact values.
            seed: of the random inputs.

        Raises:
            CircuitError: an input's frequencies have no common base, or `points` is not 16 to 2^15.
        """
        if not 16 <= points <= MAX_POINTS:
            raise CircuitError("the number of points of a surrogate", value=points, bound=f"16 to {MAX_POINTS:,}")
        base, _ = frequencies(circuit)
        period = np.array([2 * math.pi / w for w in base])
        return cls(
            np.random.default_rng(seed).random((points, circuit.n_inputs)) * period, shots, make_chains(circuit, observables)
        )

    @property
    def size(self) -> int:
        """Circuits that an evaluation runs: P."""
        return len(self.points_array)

    def points(self) -> npt.NDArray[np.float64]:
        """Inputs `(P, n_inputs)` in radians at which the circuit runs."""
        return self.points_array

    def coefficients(self, values: Tensor) -> Tensor:
        """The cores of all observables, flat, fitted to the values `(P, K)`; differentiable in the values (Gauss-Newton)."""
        y = values.to(torch.float64)
        points = torch.as_tensor(self.points_array)
        if self.shapes is None:
            self.shapes = [_chosen_shapes(chain.waves(points), y[:, chain.output].detach(), self._ridge()) for chain in self.chains]
        parts = [
            _Fit.apply(y[:, chain.output], chain.waves(points), shapes, self._ridge())  # type: ignore[no-untyped-call]
            for chain, shapes in zip(self.chains, self.shapes, strict=True)
        ]
        return torch.cat(parts).to(values.dtype)

    def evaluate(self, coefficients: Tensor, inputs: Tensor) -> Tensor:
        """See `Surrogate.evaluate`.

        Raises:
            CircuitError: the surrogate was not fitted yet.
        """
        if self.shapes is None:
            raise CircuitError("a tensor train evaluated before it was fitted", hint="coefficients(values) first")
        return evaluate_chains(self.chains, self.shapes, coefficients, inputs)

    def error(self, values: Tensor) -> Tensor:
        """Root mean square error `(K,)`, from fits that leave every eighth point out; the variance of shots taken off."""
        y, points = values.detach().to(torch.float64), torch.as_tensor(self.points_array)
        self.coefficients(values.detach())
        assert self.shapes is not None
        found = torch.zeros(len(self.chains), dtype=torch.float64)
        for chain, shapes in zip(self.chains, self.shapes, strict=True):
            own = y[:, chain.output]
            square = _unseen_square(chain.waves(points), own, shapes, self._ridge())
            noise = 0.0 if self.shots is None else shot_variance(own, self.shots).mean()
            found[chain.output] = (square - noise).clamp_min(0)
        return found.sqrt()

    def forget(self) -> None:
        """The angles have changed: ranks are kept, cores are fitted at the next call."""

    def _ridge(self) -> float:
        return 1e-10 if self.shots is None else 1.0 / self.shots


class _Fit(torch.autograd.Function):
    """Cores, flat, from values; backward by Gauss-Newton at the solution."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, waves: list[Tensor], shapes: list[tuple[int, int, int]], ridge: float) -> Tensor:
        cores = _fitted(waves, values.detach(), shapes, ridge)
        ctx.waves, ctx.ridge, ctx.shapes = waves, ridge, shapes
        flat = torch.cat([core.reshape(-1) for core in cores])
        ctx.save_for_backward(flat)
        return flat

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (flat,) = ctx.saved_tensors
        cores = _split(flat, ctx.shapes)
        left, right = _lefts(cores, ctx.waves), _rights(cores, ctx.waves)
        jacobian = torch.cat([_design(left[q], ctx.waves[q], right[q]) for q in range(len(cores))], 1)
        normal = jacobian.T @ jacobian
        normal.diagonal().add_(ctx.ridge + 1e-9 * normal.diagonal().mean())
        return jacobian @ torch.linalg.solve(normal, grad), None, None, None


Shapes = list[tuple[int, int, int]]  # of the cores of a chain: rank to the left, coefficients, rank to the right


def make_chains(circuit: Circuit, observables: Sequence[Observable] | None) -> tuple[Chain, ...]:
    """A chain for each observable, over the inputs of its light cone.

    Args:
        circuit: the circuit.
        observables: default `<Z_k>` for each qubit k.

    Raises:
        CircuitError: the frequencies of an input have no common base.
    """
    cones = [light_cone(circuit, observable) for observable in observables_of(circuit, observables)]
    return tuple(Chain(k, cone.inputs, *frequencies(cone.circuit)) for k, cone in enumerate(cones))


def evaluate_chains(chains: Sequence[Chain], shapes: Sequence[Shapes], coefficients: Tensor, inputs: Tensor) -> Tensor:
    """Values `(B, K)` of fitted chains at any inputs.

    Args:
        chains: one for each observable.
        shapes: shapes of the cores of each chain.
        coefficients: the cores of all chains, flat.
        inputs: `(B, n_inputs)`, radians.
    """
    columns, start = [], 0
    for chain, own in zip(chains, shapes, strict=True):
        count = sum(math.prod(shape) for shape in own)
        cores = _split(coefficients[start : start + count], own)
        columns.append(_contract(cores, chain.waves(inputs)) if own else inputs.new_ones(len(inputs)))
        start += count
    return torch.stack(columns, 1)


def fit_chains(chains: Sequence[Chain], points: Tensor, values: Tensor, rank: int, shots: int | None) -> tuple[Tensor, Tensor]:
    """Cores of one rank for all chains, flat, fitted to `values (P, K)` at `points (P, n_inputs)`, and the error of each.

    The error is a root mean square on every eighth point, which a second fit leaves out, without the variance of the shots.
    """
    ridge, parts, errors = (1e-10 if shots is None else 1.0 / shots), [], []
    for chain in chains:
        waves, own = chain.waves(points), values[:, chain.output].to(torch.float64)
        shapes = shapes_of_rank(chain, rank)
        parts += [core.reshape(-1) for core in _fitted(waves, own, shapes, ridge)]
        noise = 0.0 if shots is None else float(shot_variance(own, shots).mean())
        errors.append(max(float(_unseen_square(waves, own, shapes, ridge)) - noise, 0.0) ** 0.5)
    return torch.cat(parts), torch.tensor(errors, dtype=torch.float64)


def shapes_of_rank(chain: Chain, rank: int) -> Shapes:
    """Shapes of a chain's cores for a rank; smaller towards the ends."""
    return _shapes([2 * degree + 1 for degree in chain.degrees], rank)


def _split(flat: Tensor, shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    sizes = [math.prod(shape) for shape in shapes]
    return [part.view(shape) for part, shape in zip(torch.split(flat, sizes), shapes, strict=True)]


def _contract(cores: Sequence[Tensor], waves: Sequence[Tensor]) -> Tensor:
    """Values `(B,)` of the chain."""
    row = waves[0].new_ones(len(waves[0]), 1)
    for core, wave in zip(cores, waves, strict=True):
        row = torch.einsum("ba,bm,amc->bc", row, wave, core)
    return row[:, 0]


def _lefts(cores: Sequence[Tensor], waves: Sequence[Tensor]) -> list[Tensor]:
    """For each core the product `(P, r)` of all before it."""
    found = [waves[0].new_ones(len(waves[0]), 1)]
    for core, wave in zip(cores[:-1], waves[:-1], strict=True):
        found.append(torch.einsum("ba,bm,amc->bc", found[-1], wave, core))
    return found


def _rights(cores: Sequence[Tensor], waves: Sequence[Tensor]) -> list[Tensor]:
    """For each core the product `(P, r)` of all after it."""
    found = [waves[0].new_ones(len(waves[0]), 1)]
    for core, wave in zip(cores[:0:-1], waves[:0:-1], strict=True):
        found.append(torch.einsum("amc,bm,bc->ba", core, wave, found[-1]))
    return found[::-1]


def _design(left: Tensor, wave: Tensor, right: Tensor) -> Tensor:
    """`(P, r_left m r_right)`: what each entry of a core adds to the values."""
    return torch.einsum("ba,bm,bc->bamc", left, wave, right).flatten(1)


def _shapes_of(waves: Sequence[Tensor], rank: int) -> Shapes:
    return _shapes([wave.shape[1] for wave in waves], rank)


def _shapes(sizes: Sequence[int], rank: int) -> Shapes:
    ranks = [1]
    for q in range(1, len(sizes)):
        ranks.append(min(rank, math.prod(sizes[:q]), math.prod(sizes[q:])))
    ranks.append(1)
    return [(ranks[q], sizes[q], ranks[q + 1]) for q in range(len(sizes))]


def _fitted(waves: Sequence[Tensor], y: Tensor, shapes: Sequence[tuple[int, int, int]], ridge: float) -> list[Tensor]:
    """Cores of a chain by alternating least squares, from a start that a seed fixes.

    Before a core is fitted, those before it are made left-orthogonal and those after it right-orthogonal, so that the ridge term
    weighs the whole coefficient tensor and not one way of writing it.
    """
    if not shapes:
        return []
    generator = torch.Generator().manual_seed(0)
    cores = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    for q in range(len(cores) - 1, 0, -1):
        _orthogonal_right(cores, q)
    before = math.inf
    for _ in range(SWEEPS):
        right = _rights(cores, waves)
        left = waves[0].new_ones(len(y), 1)
        for q in range(len(cores)):
            residual = _solve(cores, q, _design(left, waves[q], right[q]), y, ridge)
            if q + 1 < len(cores):
                _orthogonal_left(cores, q)
                left = torch.einsum("ba,bm,amc->bc", left, waves[q], cores[q])
        lefts = _lefts(cores, waves)
        tail = waves[0].new_ones(len(y), 1)
        for q in range(len(cores) - 1, 0, -1):
            residual = _solve(cores, q, _design(lefts[q], waves[q], tail), y, ridge)
            _orthogonal_right(cores, q)
            tail = torch.einsum("amc,bm,bc->ba", cores[q], waves[q], tail)
        if before - residual < SETTLED * residual:
            break
        before = residual
    return cores


def _solve(cores: list[Tensor], q: int, design: Tensor, y: Tensor, ridge: float) -> float:
    normal = design.T @ design
    normal.diagonal().add_(ridge * 10)
    cores[q] = torch.linalg.solve(normal, design.T @ y).view(cores[q].shape)
    return float((y - design @ cores[q].reshape(-1)).square().mean())


def _orthogonal_left(cores: list[Tensor], q: int) -> None:
    a, m, b = cores[q].shape
    unitary, triangle = torch.linalg.qr(cores[q].reshape(a * m, b))
    if unitary.shape[1] == b:
        cores[q], cores[q + 1] = unitary.view(a, m, b), torch.einsum("ab,bmc->amc", triangle, cores[q + 1])


def _orthogonal_right(cores: list[Tensor], q: int) -> None:
    a, m, b = cores[q].shape
    unitary, triangle = torch.linalg.qr(cores[q].reshape(a, m * b).T)
    if unitary.shape[1] == a:
        cores[q], cores[q - 1] = unitary.T.reshape(a, m, b), torch.einsum("amb,cb->amc", cores[q - 1], triangle)


def _unseen_square(waves: Sequence[Tensor], y: Tensor, shapes: Sequence[tuple[int, int, int]], ridge: float) -> Tensor:
    """Mean square difference between every eighth value and its prediction by a fit to the others."""
    unseen = torch.arange(len(y)) % UNSEEN == 0
    cores = _fitted([wave[~unseen] for wave in waves], y[~unseen], shapes, ridge)
    return (_contract(cores, [wave[unseen] for wave in waves]) - y[unseen]).square().mean()


def _chosen_shapes(waves: Sequence[Tensor], y: Tensor, ridge: float) -> list[tuple[int, int, int]]:
    """Shapes of the cores for the rank of smallest error on unseen points; larger ranks are not tried once two got worse."""
    best, worse, shapes = math.inf, 0, _shapes_of(waves, 1)
    for rank in RANKS:
        trial = _shapes_of(waves, rank)
        if sum(math.prod(shape) for shape in trial) > len(y) or (rank > 1 and trial == _shapes_of(waves, rank - 1)):
            break
        square = float(_unseen_square(waves, y, trial, ridge))
        if square < best:
            best, shapes, worse = square, trial, 0
        else:
            worse += 1
            if worse == 2:
                break
    return shapes
