"""How many parameters a method trains on given layers, and which of its settings meet a budget. Nothing is allocated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qpeft.adapters.base import AdapterConfig, scope_key
from qpeft.adapters.registry import Method
from qpeft.errors import AdapterError

Layer = tuple[str, int, int]  # a module's path in the model, d_in, d_out
Built = tuple[int, int, int]  # d_in, d_out, rank (0 for methods without one)


def lora_count(layers: Iterable[Layer], rank: int) -> int:
    """Parameters of LoRA: `sum r (d_in + d_out)`.

    Args:
        layers: `(name, d_in, d_out)` of each adapted layer.
        rank: r.
    """
    return rank * sum(d_in + d_out for _, d_in, d_out in layers)


def trainable_count(method: Method, config: AdapterConfig, layers: Sequence[Layer]) -> int:
    """Trainable parameters of a method on layers. Each group of layers that share state is built once for each set of shapes.

    Args:
        method: the method.
        config: its settings.
        layers: `(name, d_in, d_out)` of each adapted layer.
    """
    groups: dict[tuple[str, bool], list[Built]] = {}
    configs: dict[int, AdapterConfig] = {}
    for key, d_in, d_out in layers:
        own = config.for_module(key)  # another rank, where a pattern gives one
        rank = getattr(own, "r", 0)
        configs.setdefault(rank, own)
        scope = scope_key(config.sharing_scope(), key)
        groups.setdefault((key, False) if scope is None else (scope, True), []).append((d_in, d_out, rank))
    return sum(times * _group_count(method, configs, shapes) for shapes, times in Counter(map(tuple, groups.values())).items())


def _group_count(method: Method, configs: Mapping[int, AdapterConfig], shapes: Sequence[Built]) -> int:
    """Of layers that share a scope. The first of a shape may own what the second uses; the others are as the second."""
    scope: dict[str, nn.Module] = {}
    counted: dict[Built, list[int]] = {}
    for shape in shapes:
        known = counted.setdefault(shape, [])
        if len(known) < 2:
            d_in, d_out, rank = shape
            with torch.device("meta"):
                delta = method.delta(d_in, d_out, configs[rank], scope)
            known.append(sum(p.numel() for p in delta.parameters() if p.requires_grad))
        else:
            known.append(known[1])
    return sum(map(sum, counted.values()))


@dataclass(frozen=True)
class Fit:
    """The largest settings of a method within a budget, None where none fits; and the least ones there are."""

    method: str
    settings: Mapping[str, Any] | None
    parameters: int
    least: int
    least_settings: Mapping[str, Any] = field(default_factory=dict)


def fit(method: Method, layers: Sequence[Layer], allowed: float, *, rank: int, fixed: Mapping[str, Any] | None = None) -> Fit:
    """Choose from the method's `budget_grid(rank)` the settings with most parameters among those of at most `allowed`.

    `fixed` settings hold throughout. Settings that some layer refuses are left out; of equal counts the later in the grid wins.

    Raises:
        AdapterError: the layers refuse every setting; the message is that of the last refusal.
    """
    counts: list[tuple[int, Mapping[str, Any]]] = []
    refusal: AdapterError | None = None
    for entry in method.config.budget_grid(rank):
        settings = {**entry, **(fixed or {})}
        try:
            config = method.config(**settings)
            config.check()
            counts.append((trainable_count(method, config, layers), settings))
        except AdapterError as error:
            refusal = error
    if not counts:
        raise refusal or AdapterError("the method lists no sizes", value=method.name, hint="implement budget_grid in its config")
    least, least_settings = min(counts, key=lambda found: found[0])
    fitting = [found for found in counts if found[0] <= allowed]
    if not fitting:
        return Fit(method.name, None, 0, least, least_settings)
    parameters, chosen = max(reversed(fitting), key=lambda found: found[0])
    return Fit(method.name, chosen, parameters, least, least_settings)
