"""Learning rates of parts: LoRA+ (arXiv 2402.12354) and its like, for any adapter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qpeft.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def scale_rates(optimizer: Any, parameters: Iterable[tuple[str, Tensor]], factors: Mapping[str, float]) -> None:
    """Let parameters learn at a multiple of the learning rate: in groups of their own, before a schedule is made.

    Args:
        optimizer: a torch optimizer that holds the parameters, not stepped yet.
        parameters: (name, parameter) pairs.
        factors: regular expression, searched in names -> factor; the first that is found counts.

    Raises:
        ConfigError: an expression is in no name of a trained parameter.
    """
    names = {id(parameter): name for name, parameter in parameters if parameter.requires_grad}
    chosen = {key: next((p for p in factors if re.search(p, name)), None) for key, name in names.items()}
    for pattern in factors:
        if pattern not in chosen.values():
            raise ConfigError(
                "no trained parameter is left for this expression",
                field=f"training.learning_rate_factors.{pattern}",
                expected=f"a part of names such as {', '.join(list(names.values())[:3])}",
            )
    for group in list(optimizer.param_groups):
        for pattern, factor in factors.items():
            mine = [parameter for parameter in group["params"] if chosen.get(id(parameter)) == pattern]
            group["params"] = [parameter for parameter in group["params"] if chosen.get(id(parameter)) != pattern]
            if mine:
                optimizer.add_param_group({**group, "params": mine, "lr": group["lr"] * factor})
