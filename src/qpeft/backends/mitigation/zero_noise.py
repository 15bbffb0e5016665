"""Zero-noise extrapolation around an executor.

    executor = ZeroNoise(BackendExecutor(backend, shots=4000), scales=(1, 3, 5))

The backend runs every circuit at several noise scales: each gate G of the *compiled* circuit becomes `G (G^-1 G)^k`, which is the
same circuit at `2k + 1` times the noise (folding.py). A polynomial through the values gives the value at no noise (Temme, Bravyi
and Gambetta 2017; Giurgica-Tiron and others 2020). The weights are tested against those of the package mitiq.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from qpeft.backends.base import Backend
from qpeft.circuits.executor import Executor, Expectations
from qpeft.circuits.ir import Circuit, Observable
from qpeft.errors import BackendError

Extrapolation = Literal["linear", "quadratic", "richardson"]
ORDERS = {"linear": 1, "quadratic": 2}


class BackendBound(Executor, Protocol):
    """An executor on a backend that it can change."""

    backend: Backend

    def with_backend(self, backend: Backend) -> Self:
        """The same executor on another backend, with the same ledger and cache."""
        ...


class ZeroNoise:
    """An Executor that extrapolates the values of `inner` to zero noise. It is differentiable where `inner` is.

    Extrapolating multiplies the variance of shots by `sum weights^2`.

    Args:
        executor: on the noisy backend, which must be able to scale its noise (`Backend.with_noise_scale`).
        scales: different odd factors of the noise.
        order: of the polynomial through the values: linear, quadratic, or richardson, the one that meets all of them.

    Raises:
        BackendError: scales that do not determine the polynomial, or a backend that cannot scale its noise.
    """

    has_state = False

    def __init__(self, executor: BackendBound, scales: Sequence[int] = (1, 3, 5), order: Extrapolation = "richardson") -> None:
        self.executor, self.scales, self.order = executor, tuple(scales), order
        self.weights = extrapolation_weights(self.scales, order)
        self.executors = [executor.with_backend(executor.backend.with_noise_scale(scale)) for scale in self.scales]

    def compile(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> Expectations:
        """See `Executor.compile`."""
        runs = [executor.compile(circuit, observables) for executor in self.executors]

        def run(inputs: Tensor, angles: Tensor) -> Tensor:
            values = torch.stack([run(inputs, angles) for run in runs])
            return (values.new_tensor(self.weights).reshape(-1, *(1,) * (values.dim() - 1)) * values).sum(0)

        return run


def extrapolation_weights(scales: Sequence[int], order: Extrapolation) -> list[float]:
    """The factor of each scale's value: the least-squares polynomial's value at 0 is linear in the values.

    Args:
        scales: different noise scales.
        order: degree of the polynomial: linear, quadratic, or richardson (one less than the number of scales).

    Returns:
        One weight per scale.

    Raises:
        BackendError: equal scales, an unknown order, or too few scales for the order.
    """
    degree = ORDERS.get(order, len(scales) - 1 if order == "richardson" else len(scales))
    if len(set(scales)) != len(scales) or degree < 1 or len(scales) <= degree:
        raise BackendError("an extrapolation needs different scales, more than its order", value=(order, tuple(scales)))
    powers = np.vander(np.asarray(scales, dtype=np.float64), degree + 1, increasing=True)
    weights: list[float] = np.linalg.pinv(powers)[0].tolist()
    return weights
