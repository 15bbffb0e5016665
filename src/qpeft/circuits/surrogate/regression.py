"""The regression surrogate: a circuit of any depth, for the inputs that really occur.

No small set of numbers determines a deep circuit on the whole circle, but a model's activations fill a small part of it. The
circuit runs at P of them, chosen before the run, and a Gaussian process carries the values to inputs nearby:

    z_k(u) = mean + k(u, U) (k(U, U) + r 1)^-1 (y_k - mean),    k(u, v) = exp(-sum_q (1 - cos w_q (u_q - v_q)) / l^2),

over the inputs of the observable's light cone. The length `l` (radians) and the ratio `r` of shot variance to signal variance are
the ones of largest marginal likelihood on a fixed list; with them the prediction is linear in the values. Far from all points it
falls back to the mean: `error` (leave one out) says whether the fit can be believed, and holds for inputs that are distributed as
the points are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.surrogate.base import observables_of, shot_variance
from qpeft.circuits.surrogate.grid import frequencies
from qpeft.circuits.surrogate.light_cone import light_cone
from qpeft.errors import CircuitError

LENGTHS = tuple(0.1 * 1.35**k for k in range(14))  # radians, 0.1 to 5
RATIOS = tuple(10.0**k for k in np.arange(-6, 0.6, 0.5))  # variance of a value's noise over that of the function
MAX_POINTS = 2**13


@dataclass(eq=False)
class RegressionSurrogate:
    """Expectation values of a circuit near given inputs, from values at some of them.

    Attributes:
        points_array: `(P, n_inputs)` float64, radians.
        shots: outcomes behind each value, None for exact values.
        base: for each input the frequency `w_q` per radian.
        groups: for each light cone its inputs and its observables.
        n_outputs: K.
    """

    points_array: npt.NDArray[np.float64]
    shots: int | None
    base: tuple[float, ...]
    groups: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    n_outputs: int
    _settings: list[list[tuple[float, float]]] | None = field(default=None)

    @classmethod
    def of(
        cls,
        circuit: Circuit,
        observables: Sequence[Observable] | None = None,
        *,
        inputs: Tensor,
        points: int = 512,
        shots: int | None = 1000,
        seed: int = 0,
    ) -> RegressionSurrogate:
        """The surrogate of a circuit before it has run.

        Args:
            circuit: with `n_inputs` inputs.
            observables: K of them, default `<Z_k>` for each qubit k.
            inputs: `(N, n_inputs)` activations in radians, as they occur; P of them, drawn by `seed`, are run.
            points: P, at most N.
            shots: outcomes behind each value; None for exact values.
            seed: of the drawn inputs.

        Raises:
            CircuitError: fewer inputs than points, or more points than 2^13.
        """
        rows = torch.unique(inputs.detach().to(torch.float64).cpu().reshape(-1, circuit.n_inputs), dim=0)
        if not 2 <= points <= min(len(rows), MAX_POINTS):
            bound = f"2 to {min(len(rows), MAX_POINTS):,} (the different inputs given)"
            raise CircuitError(
                "the number of points of a surrogate", value=points, bound=bound, hint="more inputs, or fewer points"
            )
        chosen = np.random.default_rng(seed).permutation(len(rows))[:points]
        wanted = observables_of(circuit, observables)
        base, _ = frequencies(circuit)
        found = cone_groups(circuit, wanted)
        return cls(rows[torch.as_tensor(chosen)].numpy(), shots, base, found, len(wanted))

    @property
    def size(self) -> int:
        """Circuits that an evaluation runs: P."""
        return len(self.points_array)

    def points(self) -> npt.NDArray[np.float64]:
        """Inputs `(P, n_inputs)` in radians at which the circuit runs."""
        return self.points_array

    def coefficients(self, values: Tensor) -> Tensor:
        """`(P + 1, K)`: the weights of the points' kernels and, last, the mean. Differentiable in the values `(P, K)`."""
        y = values.to(torch.float64)
        settings = self._fitted(y.detach())
        columns: list[Tensor] = [y.new_empty(0)] * self.n_outputs
        for (cone, outputs), own in zip(self.groups, settings, strict=True):
            for k, (length, ratio) in zip(outputs, own, strict=True):
                mean = y[:, k].mean()
                factor = torch.linalg.cholesky(self._gram(cone, length, ratio))
                columns[k] = torch.cat([torch.cholesky_solve((y[:, k] - mean)[:, None], factor)[:, 0], mean[None]])
        return torch.stack(columns, 1).to(values.dtype)

    def evaluate(self, coefficients: Tensor, inputs: Tensor) -> Tensor:
        """See `Surrogate.evaluate`.

        Raises:
            CircuitError: the surrogate was not fitted yet.
        """
        if self._settings is None:
            raise CircuitError("a regression evaluated before it was fitted", hint="coefficients(values) first")
        points = torch.as_tensor(self.points_array, dtype=inputs.dtype, device=inputs.device)
        return evaluate_kernels(self.groups, self.base, points, self.lengths().to(inputs), coefficients, inputs)

    def lengths(self) -> Tensor:
        """The length `(K,)` of each observable's kernel, radians; only after `coefficients(values)`."""
        assert self._settings is not None
        found = torch.zeros(self.n_outputs, dtype=torch.float64)
        for (_, outputs), own in zip(self.groups, self._settings, strict=True):
            for k, (length, _) in zip(outputs, own, strict=True):
                found[k] = length
        return found

    def error(self, values: Tensor) -> Tensor:
        """Root mean square error `(K,)` at inputs like the points', each predicted from all others; the shots' share taken off."""
        y = values.detach().to(torch.float64)
        found = torch.zeros(self.n_outputs, dtype=torch.float64)
        for (cone, outputs), own in zip(self.groups, self._fitted(y), strict=True):
            for k, (length, ratio) in zip(outputs, own, strict=True):
                inverse = torch.linalg.inv(self._gram(cone, length, ratio))
                left_out = (inverse @ (y[:, k] - y[:, k].mean())) / inverse.diagonal()
                noise = 0.0 if self.shots is None else shot_variance(y[:, k], self.shots).mean()
                found[k] = (left_out.square().mean() - noise).clamp_min(0)
        return found.sqrt()

    def variance(self, values: Tensor, shots: int, inputs: Tensor) -> Tensor:
        """Variance `(B, K)` of an evaluation at `inputs (B, n_inputs)` from the shots of the values."""
        y = values.detach().to(torch.float64)
        found = torch.zeros(len(inputs), self.n_outputs, dtype=torch.float64)
        for (cone, outputs), own in zip(self.groups, self._fitted(y), strict=True):
            likeness = self._likeness(cone, inputs.detach().to(torch.float64))
            for k, (length, ratio) in zip(outputs, own, strict=True):
                weights = torch.linalg.solve(self._gram(cone, length, ratio), _kernel(likeness, len(cone), length).T)
                found[:, k] = weights.square().T @ shot_variance(y[:, k], shots)
        return found

    def forget(self) -> None:
        """The angles have changed: length and ratio are chosen anew at the next call."""
        self._settings = None

    def _likeness(self, cone: tuple[int, ...], inputs: Tensor) -> Tensor:
        """`sum_q cos w_q (u_q - v_q)` over the cone's inputs for `inputs (B, n_inputs)` and all points, `(B, P)`."""
        points = torch.as_tensor(self.points_array, dtype=inputs.dtype, device=inputs.device)
        return _likeness(cone, self.base, points, inputs)

    def _gram(self, cone: tuple[int, ...], length: float, ratio: float) -> Tensor:
        gram = _kernel(self._likeness(cone, torch.as_tensor(self.points_array)), len(cone), length)
        gram.diagonal().add_(ratio)
        return gram

    def _fitted(self, y: Tensor) -> list[list[tuple[float, float]]]:
        """For each group and observable `(length, ratio)` of largest marginal likelihood; kept until `forget`."""
        if self._settings is None:
            found: list[list[tuple[float, float]]] = []
            for cone, outputs in self.groups:
                likeness = self._likeness(cone, torch.as_tensor(self.points_array))
                spectra = [(length, *torch.linalg.eigh(_kernel(likeness, len(cone), length))) for length in LENGTHS]
                found.append([_best(spectra, y[:, k]) for k in outputs])
            self._settings = found
        return self._settings


Groups = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]  # for each light cone its inputs and its observables


def cone_groups(circuit: Circuit, observables: Sequence[Observable]) -> Groups:
    """Group observables by the inputs of their light cones.

    Args:
        circuit: the circuit.
        observables: the observables.

    Returns:
        `(inputs, indices of the observables)` of each group.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for k, observable in enumerate(observables):
        groups.setdefault(light_cone(circuit, observable).inputs, []).append(k)
    return tuple((cone, tuple(outputs)) for cone, outputs in groups.items())


def evaluate_kernels(
    groups: Groups, base: Sequence[float], points: Tensor, lengths: Tensor, coefficients: Tensor, inputs: Tensor
) -> Tensor:
    """Values `(B, K)` of fitted kernels at any inputs.

    Args:
        groups: observables by light cone, from `cone_groups`.
        base: frequency of each input, per radian.
        points: inputs that were run, `(P, n_inputs)`, radians.
        lengths: `(K,)`, length of each observable's kernel.
        coefficients: `(P + 1, K)`, weights of the points, then the means.
        inputs: `(B, n_inputs)`, radians.
    """
    columns: list[Tensor] = [inputs.new_empty(0)] * coefficients.shape[1]
    for cone, outputs in groups:
        likeness = _likeness(cone, base, points, inputs)
        for k in outputs:
            kernel = ((likeness - len(cone)) / lengths[k] ** 2).exp()
            columns[k] = kernel @ coefficients[:-1, k] + coefficients[-1, k]
    return torch.stack(columns, 1)


def _likeness(cone: Sequence[int], base: Sequence[float], points: Tensor, inputs: Tensor) -> Tensor:
    scale = inputs.new_tensor([base[q] for q in cone])
    own, others = inputs[:, list(cone)] * scale, points[:, list(cone)] * scale
    return own.cos() @ others.cos().T + own.sin() @ others.sin().T


def _kernel(likeness: Tensor, n_inputs: int, length: float) -> Tensor:
    return ((likeness - n_inputs) / length**2).exp()


def _best(spectra: Sequence[tuple[float, Tensor, Tensor]], y: Tensor) -> tuple[float, float]:
    """Length and ratio of largest marginal likelihood, the signal's variance at its own best value."""
    centred, best = y - y.mean(), (float("inf"), LENGTHS[-1], RATIOS[-1])
    for length, eigenvalues, vectors in spectra:
        along = (vectors.T @ centred).square()
        for ratio in RATIOS:
            spread = eigenvalues.clamp_min(0) + ratio
            cost = float(len(y) * (along / spread).mean().clamp_min(1e-300).log() + spread.log().sum())
            best = min(best, (cost, length, ratio))
    return best[1], best[2]
