"""The weighted sum of adapters of one method, as an adapter: exact for every method, also for those that are not linear."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qpeft.adapters.base import Delta
from qpeft.errors import AdapterError


class WeightedSum(Delta):
    """`sum_i w_i delta_i(x)`, of deltas that all act at the same position of the layer.

    Args:
        parts: the deltas.
        weights: their factors, which are not trained.
    """

    def __init__(self, parts: Sequence[Delta], weights: Sequence[float]) -> None:
        first = parts[0]
        nn.Module.__init__(self)
        super().__init__(first.d_in, first.d_out, None, {})  # type: ignore[arg-type]
        if any(part.position != first.position for part in parts):
            raise AdapterError("adapters that act at different places of a layer have no sum")
        self.position = first.position  # type: ignore[misc]
        self.parts, self.weights = nn.ModuleList(parts), [float(weight) for weight in weights]

    def _pairs(self) -> list[tuple[Delta, float]]:
        return [(part, weight) for part, weight in zip(self.parts, self.weights, strict=True) if isinstance(part, Delta)]

    @property
    def linear(self) -> bool:
        """Whether all parts are."""
        return all(part.linear for part, _ in self._pairs())

    def forward(self, x: Tensor) -> Tensor:
        """See `Delta.forward`."""
        (first, weight), *others = self._pairs()
        total: Tensor = weight * first(x)
        for part, weight in others:
            total = total + weight * part(x)
        return total

    def init_from_weight(self, weight: Tensor) -> None:
        """See `Delta.init_from_weight`."""
        for part, _ in self._pairs():
            part.init_from_weight(weight)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Those of the parts side by side: the rank is the sum of theirs."""
        found = [(part.factors(), weight) for part, weight in self._pairs()]
        ups = [weight * factors[0] for factors, weight in found if factors is not None]
        downs = [factors[1] for factors, _ in found if factors is not None]
        return (torch.cat(ups, dim=1), torch.cat(downs)) if len(ups) == len(found) else None
