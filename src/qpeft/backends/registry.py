"""Backends by name: `get_backend("emulator:wukong-72")`. What a name stands for is loaded when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from qpeft.backends.base import Backend
from qpeft.errors import BackendError


@dataclass(frozen=True)
class BackendKind:
    """`open` is "module:function", called with what follows the colon in a backend's name (if `argument` says that something
    must) and with options. `extra` is the pip extra that it needs, "" for none."""

    open: str
    summary: str
    argument: str = ""
    extra: str = ""
    simulated: bool = True


BACKENDS: dict[str, BackendKind] = {
    "simulator": BackendKind("qpeft.backends.simulator:SimulatorBackend", "exact state vector, no noise"),
    "emulator": BackendKind(
        "qpeft.backends.emulator.backend:EmulatorBackend", "a noisy chip, emulated from its calibration", "CHIP or FILE.json"
    ),
    "pyqpanda": BackendKind(
        "qpeft.backends.vendors.pyqpanda:open_backend",
        "pyqpanda3: simulators CPUQVM and DensityMatrix here, chips in Origin Quantum's cloud",
        "NAME",
        "pyqpanda",
        simulated=False,
    ),
    "qiskit": BackendKind(
        "qpeft.backends.vendors.qiskit:open_backend",
        "any Qiskit BackendV2 or SamplerV2: aer, or module:object",
        "NAME",
        "qiskit",
        simulated=False,
    ),
    "pennylane": BackendKind(
        "qpeft.backends.vendors.pennylane:PennyLaneBackend", "any PennyLane device", "DEVICE", "pennylane", simulated=False
    ),
    "remote": BackendKind(
        "qpeft.backends.vendors.remote:RemoteBackend",
        "a device of a qpeft task service",
        "URL/?device=NAME",
        "service",
        simulated=False,
    ),
}


def get_backend(name: str, **options: Any) -> Backend:
    """The backend of a name, `BACKENDS` or `BACKENDS:ARGUMENT`; options are those of its class.

    Raises:
        BackendError: no such kind, or an argument missing or too many.
        MissingDependencyError: with the pip line, if the vendor's package is not installed.
    """
    kind_name, colon, argument = name.partition(":")
    kind = BACKENDS.get(kind_name)
    if kind is None:
        raise BackendError("unknown backend", value=name, bound=", ".join(known_names()))
    if bool(kind.argument) != bool(argument) or (colon and not argument):
        raise BackendError("a backend's name", value=name, bound=_name(kind_name, kind))
    module, _, function = kind.open.partition(":")
    make: Callable[..., Any] = getattr(importlib.import_module(module), function)
    try:
        return cast(Backend, make(argument, **options) if argument else make(**options))
    except TypeError as error:
        if options and "unexpected keyword argument" in str(error):
            raise BackendError(f"{name} has no such option", value=str(error)) from error
        raise


def _name(kind_name: str, kind: BackendKind) -> str:
    return f"{kind_name}:{kind.argument}" if kind.argument else kind_name


def known_names() -> list[str]:
    """The kinds with what follows the colon."""
    return [_name(name, kind) for name, kind in BACKENDS.items()]


def needs_journal(name: str) -> bool:
    """True for a vendor's cloud, whose jobs are kept in a journal."""
    kind, _, argument = name.partition(":")
    if kind != "pyqpanda":
        return False
    from qpeft.backends.vendors.pyqpanda import LOCAL

    return argument not in LOCAL
