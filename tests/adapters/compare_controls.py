"""That a method and its classical control differ in the part named alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from qpeft.adapters.base import Delta


def assert_differ_in_one_part(
    build: Callable[..., Delta], settings: dict[str, object], control: dict[str, object]
) -> tuple[Delta, Delta]:
    """Of one seed both have equal parameters, by name, shape and value, and yet they are different maps; returns both."""
    deltas = []
    for chosen in (settings, {**settings, **control}):
        torch.manual_seed(0)
        deltas.append(build(**chosen))
    method, other = deltas
    assert [name for name, _ in method.named_parameters()] == [name for name, _ in other.named_parameters()]
    for mine, of_control in zip(method.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, of_control, rtol=0, atol=0)
    assert (method.weight() - other.weight()).abs().max() > 1e-3
    return method, other
