"""The seam between adapters and whatever runs circuits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from qpeft.circuits.ir import Circuit, Observable

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Executor(Protocol):
    """Runs circuits. Adapters know this method and nothing else of a simulator, an emulator or a chip."""

    def expectations(
        self, circuit: Circuit, inputs: Tensor, angles: Tensor, observables: Sequence[Observable] | None = None
    ) -> Tensor:
        """Expectation values.

        Args:
            circuit: the circuit, with `n_inputs` inputs and `n_angles` angles.
            inputs: shape `(..., n_inputs)`, radians: one row per sample.
            angles: shape `(n_angles,)`, radians, shared by all samples.
            observables: default `<Z_k>` for every qubit k.

        Returns:
            shape `(..., n_observables)`, differentiable in inputs and angles where the executor says so.
        """
        ...
