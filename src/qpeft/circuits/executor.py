"""The seam between adapters and whatever runs circuits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from qpeft.circuits.ir import Circuit, Observable

if TYPE_CHECKING:
    from torch import Tensor

Expectations: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"


@runtime_checkable
class Executor(Protocol):
    """Runs circuits. Adapters know this method and nothing else of a simulator, an emulator or a chip."""

    def compile(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> Expectations:
        """Prepare a circuit once, to be run many times.

        Args:
            circuit: with `n_inputs` inputs and `n_angles` angles.
            observables: default `<Z_k>` for every qubit k.

        Returns:
            A function of `inputs (..., n_inputs)`, one row per sample, and `angles (n_angles,)`, shared by all samples, both
            in radians, that returns expectation values `(..., n_observables)`, differentiable in both where the executor
            says so.
        """
        ...
