"""Backends by name: `get_backend("emulator:wukong-72")`. What a name stands for is loaded when it is asked for.

Another package adds a backend with an entry point of the group `qpeft.backends` that names a `BackendKind`
(docs/extending/backend.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from qpeft.backends.base import Backend, Limits
from qpeft.errors import BackendError
from qpeft.plugins import Registry

# Limits to plan with; the width is known when the device is asked.
UNKNOWN = Limits(10**6)
ORIGIN = Limits(10**6, max_circuits_per_job=200)


@dataclass(frozen=True, kw_only=True)
class BackendKind:
    """A kind of backends, `KIND` or `KIND:ARGUMENT`.

    Attributes:
        open: a function or class, or "module:name" of one, that is called with the argument, if there is one, and with options.
        summary: what it is, for `qpeft devices`.
        argument: what follows the colon, "" where nothing may.
        extra: the pip extra of qpeft that it needs, "" for none.
        simulated: a classical computer makes the outcomes, whatever the argument.
        paid: jobs may be paid for: `open` takes `journal`, a file that makes sure that none is paid twice, and `budget`. A
            backend that turns out to be simulated ignores them and leaves its `journal` None.
        free: arguments that are simulators on this machine, which take neither.
        planned: limits to plan with where opening the backend takes a key; None opens it.
    """

    open: str | Callable[..., Backend]
    summary: str
    argument: str = ""
    extra: str = ""
    simulated: bool = True
    paid: bool = False
    free: tuple[str, ...] = ()
    planned: Limits | None = None

    def load(self) -> Callable[..., Backend]:
        """The function that opens the backend, imported."""
        if not isinstance(self.open, str):
            return self.open
        module, _, function = self.open.partition(":")
        return cast(Callable[..., Backend], getattr(importlib.import_module(module), function))


BACKENDS: Registry[BackendKind] = Registry(
    "qpeft.backends",
    {
        "simulator": BackendKind(open="qpeft.backends.simulator:SimulatorBackend", summary="exact state vector, no noise"),
        "emulator": BackendKind(
            open="qpeft.backends.emulator.backend:EmulatorBackend",
            summary="a noisy chip, emulated from its calibration",
            argument="CHIP or FILE.json",
        ),
        "pyqpanda": BackendKind(
            open="qpeft.backends.vendors.pyqpanda:open_backend",
            summary="pyqpanda3: simulators CPUQVM and DensityMatrix here, chips in Origin Quantum's cloud",
            argument="NAME",
            extra="pyqpanda",
            simulated=False,
            paid=True,
            free=("CPUQVM", "DensityMatrix"),
            planned=ORIGIN,
        ),
        "qiskit": BackendKind(
            open="qpeft.backends.vendors.qiskit:open_backend",
            summary="any Qiskit BackendV2 or SamplerV2: aer, or module:object (which imports the module: needs --allow-plugins)",
            argument="NAME",
            extra="qiskit",
            simulated=False,
            paid=True,
            free=("aer",),
            planned=UNKNOWN,
        ),
        "pennylane": BackendKind(
            open="qpeft.backends.vendors.pennylane:PennyLaneBackend",
            summary="any PennyLane device",
            argument="DEVICE",
            extra="pennylane",
            simulated=False,
            paid=True,
            free=(
                "default.qubit",
                "default.mixed",
                "lightning.qubit",
                "lightning.kokkos",
                "lightning.gpu",
                "reference.qubit",
            ),
            planned=UNKNOWN,
        ),
        "qbraid": BackendKind(
            open="qpeft.backends.vendors.qbraid:QBraidBackend",
            summary="any device that qBraid reaches: IonQ, IBM, AWS, Azure, OQC, AQT, QUDORA, Rigetti, Quantinuum, Origin",
            argument="PROVIDER:DEVICE",
            extra="qbraid",
            simulated=False,
            paid=True,
            planned=UNKNOWN,
        ),
        "remote": BackendKind(
            open="qpeft.backends.vendors.remote:RemoteBackend",
            summary="a device of a qpeft task service",
            argument="URL/?device=NAME",
            extra="service",
            simulated=False,
            paid=True,
        ),
    },
    BackendKind,
)


def get_backend(name: str, **options: Any) -> Backend:
    """The backend of a name, `KIND` or `KIND:ARGUMENT`; options are those of its class.

    Raises:
        BackendError: no such kind, or an argument missing or too many.
        MissingDependencyError: with the pip line, if the vendor's package is not installed.
        PluginError: the name imports code and the user has not allowed that, or the package that brings the kind is broken.
    """
    kind, argument = _split(name)
    make = kind.load()
    try:
        return make(argument, **options) if argument else make(**options)
    except TypeError as error:
        if options and "unexpected keyword argument" in str(error):
            raise BackendError(f"{name} has no such option", value=str(error)) from error
        raise


def check_name(name: str) -> None:
    """Raise BackendError if no backend can have that name. Nothing is imported."""
    kind, argument = _split(name)
    if kind is BACKENDS["emulator"] and argument and not argument.endswith(".json"):
        from qpeft.backends.emulator.chip import known_chips

        if argument not in known_chips():
            raise BackendError("no such chip", value=argument, bound=f"{', '.join(known_chips())} or FILE.json")


def _split(name: str) -> tuple[BackendKind, str]:
    """The kind of a backend's name, and its argument."""
    kind_name, colon, argument = name.partition(":")
    if kind_name not in BACKENDS:
        raise BackendError("unknown backend", value=name, bound=", ".join(known_names()))
    kind = BACKENDS[kind_name]
    if bool(kind.argument) != bool(argument) or (colon and not argument):
        raise BackendError("a backend's name", value=name, bound=_usage(kind_name, kind))
    return kind, argument


def _usage(kind_name: str, kind: BackendKind) -> str:
    return f"{kind_name}:{kind.argument}" if kind.argument else kind_name


def known_names() -> list[str]:
    """The kinds with what follows the colon."""
    return [_usage(name, kind) for name, kind in BACKENDS.items()]


def is_paid(name: str) -> bool:
    """True where jobs may be paid for: the backend is opened with a journal and a budget."""
    kind, argument = _split(name)
    return kind.paid and argument not in kind.free


def is_origin_chip(name: str) -> bool:
    """True for a chip in Origin Quantum's cloud."""
    kind, _, argument = name.partition(":")
    return kind == "pyqpanda" and bool(argument) and argument not in BACKENDS[kind].free


def planned_limits(name: str) -> Limits | None:
    """Limits to plan with without opening the backend, which takes a key; None where it can be opened."""
    return _split(name)[0].planned if is_paid(name) else None
