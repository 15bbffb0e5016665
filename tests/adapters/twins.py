"""That a method and its classical control differ in the part named alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from qpeft.adapters.base import Delta


def assert_twins(build: Callable[..., Delta], settings: dict[str, object], control: dict[str, object]) -> tuple[Delta, Delta]:
    """Of one seed both have equal parameters, by name, shape and value, and yet they are different maps; returns both."""
    deltas = []
    for chosen in (settings, {**settings, **control}):
        torch.manual_seed(0)
        deltas.append(build(**chosen))
    method, twin = deltas
    assert [name for name, _ in method.named_parameters()] == [name for name, _ in twin.named_parameters()]
    for mine, other in zip(method.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
    assert (method.weight() - twin.weight()).abs().max() > 1e-3
    return method, twin
