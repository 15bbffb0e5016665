"""The sparse surrogate: few random inputs determine the few terms of a circuit's Fourier series that matter.

An expectation value is a trigonometric polynomial in the inputs of its light cone (light_cone.py),

    z_k(u) = sum_m c[m, k] prod_q phi_{m_q}(w_q u_q),    phi = 1, cos, sin, cos 2., sin 2., ..

and most of its coefficients are small or zero for every choice of angles. How large each is on average is known before anything
runs: the cone alone is simulated with random angles, and `tau_m = E[c_m^2]` is the prior variance of a Gaussian model of the
coefficients. The circuit then runs at P random inputs, the same for all observables, and the coefficients are the posterior mean

    c = tau F^T (F tau F^T + s^2 1)^-1 y,    F[p, m] = prod_q phi_{m_q}(w_q u_pq),

with `s^2` the variance of a value from shots. This is ridge regression with a weight for each term, linear in the values `y`. Terms
of equal frequencies share a factor of their prior that is fitted to the values (empirical Bayes, by expectation maximisation);
gradients take the factors as constants.

P is chosen before the run, from the posterior variance that the model predicts. After the run `error` gives the error without
another circuit: each point is predicted from all others (leave one out), and the shots' share is taken off.

Figures for QTHA's circuit with random angles and 1,000 shots are made by `python -m benchmarks.surrogates`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qpeft.circuits.executor import Executor
from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.simulator.simulate import Simulator
from qpeft.circuits.surrogate.base import observables_of, shot_variance
from qpeft.circuits.surrogate.grid import FourierGrid, frequencies
from qpeft.circuits.surrogate.light_cone import LightCone, light_cone
from qpeft.errors import CircuitError

FLOOR = 0.01  # of the prior energy, spread over all terms: noise brings back terms that cancel without it
DRAWS = 24  # sets of random angles behind a prior
ENERGY = 0.9995  # share of the prior energy that the terms kept hold
FEW_TERMS, MAX_TERMS = 512, 6144  # a cone of few terms keeps all
MAX_CONE_POINTS = 2**19  # of a cone's grid, on which its prior is measured
MAX_POINTS = 2**15
EXACT_VARIANCE = 1e-12  # of a value without shots; keeps the solve regular
FACTOR_STEPS = (4, 1)  # of expectation maximisation: at the first angles, and at angles close to those before
LEAST_POINTS, MARGIN = 256, 0.97  # points that an error of LEAST_AT takes at least; their number falls with the error squared
LEAST_AT = 0.05
ENOUGH = 4  # points for each term, from which on the priors hardly count
MEAN_VARIANCE = 0.7  # of one outcome +-1, for values with a mean square of 0.3


@dataclass(frozen=True, eq=False)
class _Prior:
    """Prior knowledge of a light cone's coefficients.

    Attributes:
        grid: the cone's Fourier grid; coefficients are laid out on it.
        terms: `(T,)` flat indices of the kept coefficients in the grid.
        variances: `(T, K_g)` of the coefficients over random angles.
        squares: `(T,)` mean square over the circle of a term with coefficient 1.
        omitted: `(K_g,)` mean square of what the dropped terms contribute.
    """

    grid: FourierGrid
    terms: Tensor
    variances: Tensor
    squares: Tensor
    omitted: Tensor

    def learning_curve(self, points: int, noise: float) -> list[float]:
        """Mean square error of each observable after `points` random inputs whose values have variance `noise`.

        The self-consistent approximation for Gaussian processes (Sollich, Advances in Neural Information Processing Systems 11,
        1999): `e = sum_m l_m / (1 + points l_m / (noise + e))` with the mean squares `l` of the terms; dropped terms are noise too.
        """
        found = []
        for k in range(self.variances.shape[1]):
            share, dropped = self.squares * self.variances[:, k], float(self.omitted[k])
            error = float(share.sum())
            for _ in range(60):
                error = float((share / (1 + points * share / (noise + dropped + error))).sum())
            found.append(error + dropped)
        return found


@dataclass(frozen=True, eq=False)
class _Group:
    """Observables of one light cone.

    Attributes:
        inputs: indices of the cone's inputs in the circuit.
        outputs: indices of the observables.
        prior: of their coefficients.
        factor_of: `(T,)` for each term, the number of its set of frequencies.
        features: `(P, T)` values of the terms at the points.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    prior: _Prior
    factor_of: Tensor
    features: Tensor


@dataclass(eq=False)
class SparseSurrogate:
    """Fourier coefficients of a circuit's expectation values, from values at random inputs.

    Attributes:
        points_array: `(P, n_inputs)` float64, radians.
        shots: outcomes behind each value, None for exact values.
        groups: observables by light cone.
    """

    points_array: npt.NDArray[np.float64]
    shots: int | None
    groups: tuple[_Group, ...]
    n_outputs: int
    _factors: list[Tensor | None] = field(default_factory=list)
    _stale: list[bool] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        circuit: Circuit,
        observables: Sequence[Observable] | None = None,
        *,
        shots: int | None = 1000,
        error: float = 0.05,
        points: int | None = None,
        seed: int = 0,
    ) -> SparseSurrogate:
        """The surrogate of a circuit before it has run.

        Args:
            circuit: with `n_inputs` inputs that enter as angles of gates.
            observables: K of them, default `<Z_k>` for each qubit k.
            shots: outcomes behind each value; None for exact values.
            error: root mean square error, averaged over inputs on the whole circle, that the number of points is chosen for.
            points: the number of points P, instead of a choice by `error`.
            seed: of the random inputs.

        Raises:
            CircuitError: an input's frequencies have no common base, a light cone's grid is larger than 2^19 points (a
                regression on activations serves such circuits), or no number of points up to 2^15 reaches `error`.
        """
        wanted = observables_of(circuit, observables)
        base, _ = frequencies(circuit)
        period = np.array([2 * math.pi / w for w in base])
        cones = _cones(circuit, wanted)

        variance = _mean_variance(shots)
        if points is None:
            priors = [_prior(_parts(own)) for own, _ in cones]
            terms = max((len(prior.terms) for prior in priors), default=1)
            # a prior is an average over angles; few points leave single angles far behind it
            points = min(2 * terms, math.ceil(LEAST_POINTS * min(1.0, (LEAST_AT / error) ** 2)))
            while (
                largest := max(math.sqrt(x) for prior in priors for x in prior.learning_curve(points, variance))
            ) > MARGIN * error:
                points = points + max(1, points // 32)
                if points > MAX_POINTS:
                    raise CircuitError(
                        "no surrogate of so small an error",
                        value=f"{largest:.3g} at {MAX_POINTS:,} points",
                        bound=f"error {error:g}",
                        hint="more shots, a larger error, or a circuit of fewer uploads",
                    )
        if not 1 <= points <= MAX_POINTS:
            raise CircuitError("the number of points of a surrogate", value=points, bound=f"1 to {MAX_POINTS:,}")
        inputs = np.random.default_rng(seed).random((points, circuit.n_inputs)) * period
        groups = tuple(_group(own, outputs, inputs) for own, outputs in cones)
        return cls(inputs, shots, groups, len(wanted), [None] * len(groups), [True] * len(groups))

    @property
    def size(self) -> int:
        """Circuits that an evaluation runs: P."""
        return len(self.points_array)

    def points(self) -> npt.NDArray[np.float64]:
        """Inputs `(P, n_inputs)` in radians at which the circuit runs."""
        return self.points_array

    def coefficients(self, values: Tensor) -> Tensor:
        """Coefficients of all observables, flat, from values at the points `(P, K)`; differentiable in the values."""
        parts = []
        for place, group in enumerate(self.groups):
            y = values[:, list(group.outputs)].to(torch.float64)
            weight = group.prior.variances * self._fitted_factors(place, y.detach())[group.factor_of]
            dense = y.new_zeros(group.prior.grid.size, y.shape[1])
            columns = [self._posterior_mean(group, weight[:, k], y[:, k]) for k in range(y.shape[1])]
            parts.append(dense.index_copy(0, group.prior.terms, torch.stack(columns, 1)).reshape(-1))
        return torch.cat(parts).to(values.dtype)

    def evaluate(self, coefficients: Tensor, inputs: Tensor) -> Tensor:
        """See `Surrogate.evaluate`."""
        cones = [(group.inputs, group.outputs, group.prior.grid) for group in self.groups]
        return evaluate_cones(cones, coefficients, inputs)

    def predicted_error(self) -> Tensor:
        """Root mean square error `(K,)` that the prior predicts, over random angles and inputs, dropped terms included."""
        found = torch.zeros(self.n_outputs, dtype=torch.float64)
        for group in self.groups:
            curve = group.prior.learning_curve(self.size, self._noise())
            found[list(group.outputs)] = torch.tensor(curve, dtype=torch.float64)
        return found.sqrt()

    def error(self, values: Tensor) -> Tensor:
        """Root mean square error `(K,)` of what `coefficients(values)` predicts, estimated from the values alone.

        Each value is compared with its prediction from all others, and the variance of the shots is taken off. Without a further
        circuit this is an unbiased estimate at random inputs but for the fitted factors, which have seen the value.
        """
        found = torch.zeros(self.n_outputs, dtype=torch.float64)
        for place, group in enumerate(self.groups):
            y = values[:, list(group.outputs)].detach().to(torch.float64)
            weight = group.prior.variances * self._fitted_factors(place, y)[group.factor_of]
            for k, output in enumerate(group.outputs):
                inverse = torch.linalg.inv(self._gram(group, weight[:, k]))
                left_out = (inverse @ y[:, k]) / inverse.diagonal()
                own = 0.0 if self.shots is None else shot_variance(y[:, k], self.shots).mean()
                found[output] = (left_out.square().mean() - own).clamp_min(0)
        return found.sqrt()

    def variance(self, values: Tensor, shots: int, inputs: Tensor) -> Tensor:
        """Variance `(B, K)` of an evaluation at `inputs (B, n_inputs)` from the shots of the values; see `FourierGrid.variance`."""
        found = inputs.new_empty(len(inputs), self.n_outputs, dtype=torch.float64)
        for place, group in enumerate(self.groups):
            y = values[:, list(group.outputs)].detach().to(torch.float64)
            weight = group.prior.variances * self._fitted_factors(place, y)[group.factor_of]
            test = _features(group.prior.grid, group.prior.terms, inputs[:, list(group.inputs)].detach().to(torch.float64))
            for k, output in enumerate(group.outputs):
                across = torch.linalg.solve(self._gram(group, weight[:, k]), ((test * weight[:, k]) @ group.features.T).T)
                found[:, output] = across.square().T @ shot_variance(y[:, k], shots)
        return found

    def forget(self) -> None:
        """The angles have changed: the priors' factors are fitted further at the next call, from where they are."""
        self._stale = [True] * len(self.groups)

    def _noise(self) -> float:
        return _mean_variance(self.shots)

    def _gram(self, group: _Group, weight: Tensor) -> Tensor:
        gram = (group.features * weight) @ group.features.T
        gram.diagonal().add_(self._noise())
        return gram

    def _posterior_mean(self, group: _Group, weight: Tensor, y: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(self._gram(group, weight))
        return weight * (group.features.T @ torch.cholesky_solve(y[:, None], factor)[:, 0])

    def _fitted_factors(self, place: int, y: Tensor) -> Tensor:
        """Factors `(sets of frequencies, K_g)` of the prior that the values `(P, K_g)` make likely; kept until `forget`."""
        known = self._factors[place]
        if known is None or self._stale[place]:
            group = self.groups[place]
            sets = int(group.factor_of.max()) + 1
            steps = FACTOR_STEPS[known is not None] if self.size < ENOUGH * len(group.prior.terms) else 0
            start = known if known is not None else torch.ones(sets, y.shape[1], dtype=torch.float64)
            known = torch.stack([self._fit_factors(group, k, y[:, k], start[:, k], steps) for k in range(y.shape[1])], 1)
            self._factors[place], self._stale[place] = known, False
        return known

    def _fit_factors(self, group: _Group, k: int, y: Tensor, factors: Tensor, steps: int) -> Tensor:
        """Steps of expectation maximisation for the factors of one observable's prior."""
        count = torch.bincount(group.factor_of).to(torch.float64)
        prior = group.prior.variances[:, k]
        for _ in range(steps):
            weight = prior * factors[group.factor_of]
            factor = torch.linalg.cholesky(self._gram(group, weight))
            half = torch.linalg.solve_triangular(factor, group.features, upper=False)
            mean = weight * (half.T @ torch.linalg.solve_triangular(factor, y[:, None], upper=False)[:, 0])
            second = mean.square() + weight - weight.square() * half.square().sum(0)  # E[c^2]
            share = second / prior.clamp_min(1e-300)
            factors = (torch.zeros_like(count).index_add_(0, group.factor_of, share) / count).clamp(1e-4, 1e4)
        return factors


Cone = tuple[tuple[int, ...], tuple[int, ...], FourierGrid]  # inputs of a light cone, its observables, its Fourier grid


def cone_grids(circuit: Circuit, observables: Sequence[Observable]) -> list[Cone]:
    """The light cones of the observables, in the order of a sparse surrogate's coefficients.

    Args:
        circuit: the circuit.
        observables: the observables.

    Raises:
        CircuitError: a cone has too many coefficients.
    """
    found = []
    for cones, outputs in _cones(circuit, observables):
        base, degrees = frequencies(cones[0].circuit)
        _check_size(degrees)
        found.append((cones[0].inputs, outputs, FourierGrid(base, degrees)))
    return found


def evaluate_cones(cones: Sequence[Cone], coefficients: Tensor, inputs: Tensor) -> Tensor:
    """Values `(B, K)` at `inputs (B, n_inputs)` from the coefficients of all cones, flat."""
    columns: list[Tensor] = [inputs.new_empty(0)] * sum(len(outputs) for _, outputs, _ in cones)
    start = 0
    for members, outputs, grid in cones:
        count = grid.size * len(outputs)
        own = coefficients[start : start + count].view(*grid.shape, len(outputs))
        found = grid.evaluate(own, inputs[:, list(members)])
        for k, output in enumerate(outputs):
            columns[output] = found[:, k]
        start += count
    return torch.stack(columns, 1)


def _check_size(degrees: Sequence[int]) -> None:
    shape = [2 * degree + 1 for degree in degrees]
    if math.prod(shape) > MAX_CONE_POINTS:
        raise CircuitError(
            "a light cone has too many Fourier coefficients",
            value=" x ".join(map(str, shape)),
            bound=f"{MAX_CONE_POINTS:,}",
            hint="a regression on activations, or fewer qubits or uploads",
        )


def _mean_variance(shots: int | None) -> float:
    return EXACT_VARIANCE if shots is None else MEAN_VARIANCE / shots


def _cones(circuit: Circuit, observables: Sequence[Observable]) -> list[tuple[list[LightCone], tuple[int, ...]]]:
    """Light cones of equal inputs and equal frequencies together, with the indices of their observables."""
    found: dict[object, tuple[list[LightCone], list[int]]] = {}
    for k, observable in enumerate(observables):
        cone = light_cone(circuit, observable)
        cones, outputs = found.setdefault((cone.inputs, frequencies(cone.circuit)), ([], []))
        cones.append(cone)
        outputs.append(k)
    return [(cones, tuple(outputs)) for cones, outputs in found.values()]


def _group(cones: list[LightCone], outputs: tuple[int, ...], inputs: npt.NDArray[np.float64]) -> _Group:
    prior = _prior(_parts(cones))
    grid, terms = prior.grid, prior.terms
    frequency = [(index + 1) // 2 for index in np.unravel_index(terms.numpy(), grid.shape)] if grid.shape else []
    number = np.ravel_multi_index(frequency, grid.shape) if frequency else np.zeros(len(terms), int)
    _, factor_of = np.unique(number, return_inverse=True)
    features = _features(grid, terms, torch.as_tensor(inputs[:, list(cones[0].inputs)]))
    return _Group(cones[0].inputs, outputs, prior, torch.as_tensor(factor_of), features)


def _parts(cones: Sequence[LightCone]) -> tuple[tuple[Circuit, Observable], ...]:
    return tuple((cone.circuit, cone.observable) for cone in cones)


@functools.lru_cache(maxsize=256)
def _prior(parts: tuple[tuple[Circuit, Observable], ...]) -> _Prior:
    """From the circuits of cones with random angles; cones of equal circuits, as along a ring, have one prior."""
    base, degrees = frequencies(parts[0][0])
    shape = [2 * degree + 1 for degree in degrees]
    _check_size(degrees)
    grid = FourierGrid(base, degrees)
    points, generator = torch.as_tensor(grid.points()), torch.Generator().manual_seed(0)
    executor: Executor = Simulator()
    energy = torch.zeros(grid.size, len(parts), dtype=torch.float64)
    for k, (circuit, observable) in enumerate(parts):
        run = executor.compile(circuit, [observable])
        for _ in range(DRAWS):
            angles = torch.rand(circuit.n_angles, generator=generator, dtype=torch.float64) * 4 * math.pi
            energy[:, k] += grid.coefficients(run(points, angles))[..., 0].reshape(-1).square() / DRAWS
    indices = np.indices(grid.shape).reshape(len(shape), -1) if shape else np.zeros((0, 1), int)
    squares = torch.as_tensor(0.5 ** (indices > 0).sum(0), dtype=torch.float64)
    share = energy * squares[:, None]
    floor = FLOOR * share.sum(0) / grid.size / squares[:, None]
    order = share.sum(1).argsort(descending=True)
    running = share.sum(1)[order].cumsum(0)
    count = min(max(int((running < ENERGY * running[-1]).sum()) + 1, FEW_TERMS), MAX_TERMS, grid.size)
    terms = order[:count].sort().values
    omitted = (share.sum(0) - share[terms].sum(0)).clamp_min(0)
    return _Prior(grid, terms, energy[terms] + floor[terms], squares[terms], omitted)


def _features(grid: FourierGrid, terms: Tensor, inputs: Tensor) -> Tensor:
    """Values `(B, T)` of the terms at `inputs (B, cone inputs)`, float64."""
    out = torch.ones(len(inputs), len(terms), dtype=torch.float64)
    if not grid.shape:
        return out
    for q, index in enumerate(np.unravel_index(terms.numpy(), grid.shape)):
        t = grid.base[q] * inputs[:, q : q + 1]
        waves = [torch.ones_like(t)]
        for m in range(1, grid.degrees[q] + 1):
            waves += [(m * t).cos(), (m * t).sin()]
        out *= torch.cat(waves, 1)[:, torch.as_tensor(index)]
    return out
