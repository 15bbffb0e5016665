"""Interface of surrogates: input points to run, fit to their values, evaluation at any input.

| surrogate | points | for |
|---|---|---|
| `grid.FourierGrid` | `prod_q (2 D_q + 1)` | exact; up to four qubits or so |
| `sparse.SparseSurrogate` | hundreds | light cones of up to 2^19 coefficients: QTHA with L = 1 at any width, or L = 2 and n = 6 |
| `tensor_train.TensorTrainSurrogate` | hundreds | the same, where neighbours alone are entangled |
| `regression.RegressionSurrogate` | hundreds | deep circuits near the activations that occur |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from qpeft.circuits.ir import Circuit, Observable


class Surrogate(Protocol):
    """A classical function of the inputs, fitted to a circuit's expectation values at P inputs that are fixed before it runs."""

    @property
    def size(self) -> int:
        """P, the circuits that an evaluation runs."""
        ...

    def points(self) -> npt.NDArray[np.float64]:
        """Inputs `(P, n_inputs)` in radians at which the circuit runs."""
        ...

    def coefficients(self, values: Tensor) -> Tensor:
        """The fit, from values `(P, K)` of the K observables; differentiable in them."""
        ...

    def evaluate(self, coefficients: Tensor, inputs: Tensor) -> Tensor:
        """Expectation values `(B, K)` at any inputs, differentiable once.

        Args:
            coefficients: what `coefficients` returned.
            inputs: `(B, n_inputs)`, radians, of the dtype of the coefficients.
        """
        ...

    def error(self, values: Tensor) -> Tensor:
        """Root mean square error `(K,)` of the fit at inputs like its points, beyond what shots explain, from the values alone."""
        ...

    def forget(self) -> None:
        """The angles have changed: what was chosen by looking at values is chosen anew."""
        ...


def observables_of(circuit: Circuit, observables: Sequence[Observable] | None) -> tuple[Observable, ...]:
    """The observables asked for.

    Args:
        circuit: the circuit.
        observables: default `<Z_k>` for each qubit k.
    """
    return tuple(Observable.z(k) for k in range(circuit.n_qubits)) if observables is None else tuple(observables)


def shot_variance(values: Tensor, shots: int) -> Tensor:
    """Variance of each value `z` that is the mean of outcomes +1 or -1: `(1 - z^2) / shots`.

    Args:
        values: z, -1 to 1.
        shots: number of outcomes.
    """
    return (1 - values.square()).clamp_min(0) / shots


def noise_has_won(signal: float, exact: float | None, shots: int | None) -> str:
    """What to tell a user whose circuit's values hardly depend on its inputs any more; empty where they do.

    Args:
        signal: standard deviation of the values over the points, the shots' part taken off.
        exact: the same of the noiseless circuit, where it is known.
        shots: outcomes behind each value.
    """
    shot_noise = 0.0 if shots is None else shots**-0.5
    if exact is not None and exact < VANISHED:
        return ""  # the circuit itself hardly depends on its inputs
    if signal < max(shot_noise, VANISHED):
        least = f", {shot_noise:.3f} is the error of {shots:,} shots" if shots else ""
        return f"noise has removed the circuit's signal: its values vary by {signal:.3f} RMS over the inputs{least}"
    if exact is not None and signal < LOST * exact:
        return f"noise has removed {100 * (1 - signal / exact):.0f}% of the circuit's signal ({exact:.3f} RMS without noise)"
    return ""


VANISHED = 0.01  # RMS over inputs, of values in -1..1
LOST = 0.2  # of the noiseless signal: less than that is told

SurrogateMaker: TypeAlias = Callable[[Circuit, Sequence[Observable] | None], Surrogate]
