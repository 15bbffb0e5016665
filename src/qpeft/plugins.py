"""Plug-ins: methods, circuits, backends, chips, data sets, API routes and pages of other packages and files.

A thing that qpeft knows by name stands in a `Registry`. There are three ways into one:

    built in         the dictionary in qpeft's own code
    entry point      an installed package names it, in one of the groups below; the package is imported when the name is asked for
    `register`       code that runs calls it: a script, or a file that a recipe lists under `plugins`

    [project.entry-points."qpeft.methods"]     # in the other package's pyproject.toml
    MINE = "my_package.mine:METHOD"

Groups: `qpeft.methods`, `qpeft.circuits`, `qpeft.backends`, `qpeft.chips`, `qpeft.datasets`, `qpeft.routes`, `qpeft.pages`.

A recipe is data, so the code that it lists under `plugins` runs only where the user allows it: with `--allow-plugins` on the
command line or the environment variable `QPEFT_ALLOW_PLUGINS=1`, which child processes inherit. Installed packages need no
permission.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Generic, Protocol, TypeVar

from qpeft.errors import PluginError

ALLOW = "QPEFT_ALLOW_PLUGINS"
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

Thing = TypeVar("Thing")


class Addressed(Protocol):
    """A thing that is served at an address."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...


Served = TypeVar("Served", bound=Addressed)


class Registry(Mapping[str, Thing], Generic[Thing]):
    """Things by name: built in, registered by running code, or named by the entry points of installed packages.

    Entry points are read when a name is not among the others, or when the registry is iterated. A package is imported when its
    name is asked for. Iteration leaves out a package that cannot be imported, with a warning; asking for its name raises.

    Args:
        group: the entry point group, such as `qpeft.methods`.
        built_in: what qpeft itself brings. A package cannot replace it.
        kind: the type that an entry point must load; anything goes by default.
    """

    def __init__(self, group: str, built_in: Mapping[str, Thing], kind: type | None = None) -> None:
        self.group, self.kind = group, kind
        self._things: dict[str, Thing] = dict(built_in)
        self._entry_points: dict[str, importlib.metadata.EntryPoint] | None = None
        self._broken: set[str] = set()

    def register(self, name: str, thing: Thing) -> None:
        """Add a thing from running code. Raises PluginError for a name that is taken."""
        if name in self:
            raise PluginError(f"{self.group} has this name already", value=name, hint="another name")
        self._things[name] = thing

    def unregister(self, name: str) -> None:
        """Take out what `register` added; for tests and notebooks, which run a definition twice."""
        del self._things[name]

    def __getitem__(self, name: str) -> Thing:
        """The thing of a name.

        Raises:
            KeyError: nobody brings it.
            PluginError: the package that brings it cannot be imported, or brings something else; the message names the package.
        """
        if name not in self._things:
            self._things[name] = self._load(self._found()[name])
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things or name in self._found()

    def __iter__(self) -> Iterator[str]:
        yield from tuple(self._things)
        for name in self._found():
            if name in self._things or name in self._broken:
                continue
            try:
                self[name]
            except PluginError as error:
                self._broken.add(name)
                warnings.warn(str(error), stacklevel=2)
            else:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _found(self) -> dict[str, importlib.metadata.EntryPoint]:
        """Entry points by name, without importing anything; the first of two that share a name is taken, with a warning."""
        if self._entry_points is None:
            self._entry_points = {}
            for entry in importlib.metadata.entry_points(group=self.group):
                taken = "qpeft itself" if entry.name in self._things else _package(self._entry_points.get(entry.name))
                if not taken:
                    self._entry_points[entry.name] = entry
                elif taken != _package(entry):
                    what = f"the package {_package(entry)} brings {entry.name!r} to {self.group}"
                    warnings.warn(f"{what}, which {taken} brings already: ignored", stacklevel=3)
        return self._entry_points

    def _load(self, entry: importlib.metadata.EntryPoint) -> Thing:
        where = f"the package {_package(entry)} brings {entry.name!r} to {self.group}, and {entry.value}"
        try:
            thing: Thing = entry.load()
        except Exception as error:  # foreign code may raise anything
            raise PluginError(f"{where} cannot be loaded: {_reason(error)}", hint="update or uninstall the package") from error
        if self.kind is not None and not isinstance(thing, self.kind):
            raise PluginError(f"{where} is no {self.kind.__name__}", value=type(thing).__name__, bound=self.kind.__name__)
        if (own := getattr(thing, "name", entry.name)) != entry.name:
            raise PluginError(f"{where} has another name", value=own, bound=entry.name)
        return thing


def gather(groups: Mapping[str, Sequence[Served]], kind: type[Served], what: str, taken: str) -> tuple[Served, ...]:
    """The things of all groups, each at an address of its own.

    Args:
        groups: lists of things with a `method` and a `path`, by the name of their group.
        kind: the type of the things.
        what: what the messages call one of them.
        taken: what the message says of an address that two of them have.

    Raises:
        PluginError: a group holds something else, or an address that is taken.
    """
    things: dict[str, Served] = {}
    for name, group in groups.items():
        for thing in group:
            if not isinstance(thing, kind):
                raise PluginError(f"the {what} group {name!r} holds something else", value=thing, bound=kind.__name__)
            address = f"{thing.method} {thing.path}"
            if address in things:
                raise PluginError(f"the {what} group {name!r} has {taken}", value=address)
            things[address] = thing
    return tuple(things.values())


def _package(entry: importlib.metadata.EntryPoint | None) -> str:
    """The distribution that an entry point belongs to; "" for none."""
    if entry is None:
        return ""
    return entry.dist.name if entry.dist is not None else entry.value


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def allow() -> None:
    """Let recipes load code, in this process and in its children."""
    os.environ[ALLOW] = "1"


def allowed() -> bool:
    """Whether recipes may load code."""
    return os.environ.get(ALLOW, "") not in ("", "0")


def load_plugins(plugins: Iterable[str]) -> None:
    """Import what a recipe lists under `plugins`, each once in a process.

    Args:
        plugins: paths of Python files, which end in `.py`, or dotted names of modules.

    Raises:
        PluginError: code is listed and not allowed, or it cannot be imported; the message names the file or the module.
    """
    listed = list(plugins)
    if listed and not allowed():
        raise PluginError(
            "the recipe loads code, which runs with your rights",
            value=", ".join(listed),
            hint=f"read it, then say --allow-plugins (or set {ALLOW}=1)",
        )
    for plugin in listed:
        _load_file(Path(plugin)) if plugin.endswith(".py") else _load_module(plugin)


def _load_file(path: Path) -> None:
    path = path.expanduser().resolve()
    name = f"qpeft_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return
    if not path.is_file():
        raise PluginError("no such plug-in file", value=str(path), hint="the recipe's `plugins` says where it is")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError("not a Python file", value=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PluginError(f"the plug-in file {path} cannot be loaded: {_reason(error)}") from error


def _load_module(name: str) -> ModuleType:
    if not _MODULE.fullmatch(name):
        raise PluginError("not a plug-in", value=name, bound="the path of a .py file, or the dotted name of a module")
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise PluginError(f"the plug-in module {name} cannot be imported: {_reason(error)}") from error
