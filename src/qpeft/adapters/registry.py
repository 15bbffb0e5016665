"""The methods, an explicit dictionary. A new method is its file and one line here (or one call of `register`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from qpeft.adapters.base import AdapterConfig, Delta
from qpeft.adapters.qtha import QTHA, QTHAConfig
from qpeft.errors import AdapterError


@dataclass(frozen=True)
class Method:
    """A method: PEFT's type name (upper case), its settings, its delta, the paper and one line of what it is."""

    name: str
    config: type[AdapterConfig]
    delta: type[Delta]
    paper: str
    summary: str


METHODS: dict[str, Method] = {
    method.name: method
    for method in (Method("QTHA", QTHAConfig, QTHA, "arXiv 2503.12790", "tensor trains around a data re-uploading circuit"),)
}

listeners: list[Callable[[Method], None]] = []  # who wants to know of methods registered later: the bridge to PEFT


def register(method: Method) -> None:
    """Add a method of your own; it is then a PEFT method like the others, whether peft is imported already or later."""
    if not re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", method.name):
        raise AdapterError("a method's name is upper case, as in PEFT", value=method.name, bound="letters, digits, single _")
    if method.name in METHODS:
        raise AdapterError("a method of this name exists already", value=method.name)
    for listener in listeners:
        listener(method)  # may refuse the name
    METHODS[method.name] = method
