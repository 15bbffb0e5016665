"""The commands as a page of Markdown, from their functions: `python -m qpeft.cli.reference > docs/commands.md`."""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import typer
from typer.models import ArgumentInfo, OptionInfo

from qpeft.cli import app

_KINDS = {"int": "N", "float": "X", "Path": "PATH", "str": "TEXT"}


def page() -> str:
    """Every command with its arguments and options."""
    lines = [
        "# Commands",
        "",
        "Made by `python -m qpeft.cli.reference > docs/commands.md`; `COMMAND --help` says the same. Errors made on purpose end",
        "with exit code 2 and one message, an interrupt with 130.",
        "",
    ]
    found = sorted(_commands("qpeft", app), key=lambda row: row[0])
    lines += [f"* [`{name}`](#{name.replace(' ', '-')}): {_paragraphs(function)[0]}" for name, function, _ in found]
    for name, function, epilog in found:
        rows = list(_parameters(function))
        usage = " ".join([name, *(words for words, _, info in rows if isinstance(info, ArgumentInfo))])
        usage += " [OPTIONS]" if any(isinstance(info, OptionInfo) for _, _, info in rows) else ""
        lines += ["", f"## {name}", "", *(line for text in _paragraphs(function) for line in (text, "")), f"`{usage}`"]
        if rows:
            lines += ["", "| | |", "|---|---|", *(f"| `{words}` | {told} |" for words, told, _ in rows)]
        lines += ["", "```console", *(line.strip() for line in epilog.splitlines()[2:]), "```"]
    return "\n".join(lines) + "\n"


def _commands(name: str, group: typer.Typer) -> Iterator[tuple[str, Callable[..., Any], str]]:
    """(name, function, epilog with the examples) of every command."""
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{name} {command.name or command.callback.__name__.replace('_', '-')}", command.callback, command.epilog or ""
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _commands(f"{name} {inner.name}", inner.typer_instance)


def _paragraphs(function: Callable[..., Any]) -> list[str]:
    return [" ".join(text.split()) for text in (inspect.getdoc(function) or "").split("\n\n")]


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[str, str, ArgumentInfo | OptionInfo]]:
    """(syntax, effect, description) of each parameter, arguments first."""
    hints = typing.get_type_hints(function, include_extras=True)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, *metadata = typing.get_args(hints[name]) if typing.get_origin(hints[name]) is typing.Annotated else (hints[name],)
        for info in metadata:
            if isinstance(info, ArgumentInfo | OptionInfo) and not info.hidden:
                found.append(_parameter(name, kind, parameter.default, info))
    return iter(sorted(found, key=lambda row: isinstance(row[2], OptionInfo)))


def _parameter(name: str, kind: Any, default: Any, info: ArgumentInfo | OptionInfo) -> tuple[str, str, ArgumentInfo | OptionInfo]:
    told = " ".join((info.help or "").split())
    several = _is_list(kind)
    value = str(info.metavar or _value(kind))
    if isinstance(info, ArgumentInfo):
        words = value if info.metavar else name.upper()
        words += "..." if several else ""
        words = words if default is inspect.Parameter.empty else f"[{words}]"
    else:
        given = (info.default, *(info.param_decls or ()))  # inside Annotated the first name of an option lands in its default
        names = [word for word in given if isinstance(word, str) and word.startswith("-")] or [f"--{name.replace('_', '-')}"]
        words = ", ".join(names) + ("" if kind is bool else f" {value}")
        told += " May be given several times." if several else ""
    if default is inspect.Parameter.empty:
        told += " Required." if isinstance(info, OptionInfo) else ""
    elif default not in (None, False, ""):
        told += f" Default: {default.value if isinstance(default, enum.Enum) else default}."
    if info.envvar:
        told += f" Also read from {info.envvar}."
    return words, told.strip().replace("|", "\\|"), info


def _plain(kind: Any) -> Any:
    """The type without None."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        [kind] = [inner for inner in typing.get_args(kind) if inner is not type(None)]
    return kind


def _is_list(kind: Any) -> bool:
    return typing.get_origin(_plain(kind)) is list


def _value(kind: Any) -> str:
    kind = _plain(kind)
    if typing.get_origin(kind) is list:
        [kind] = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return "/".join(map(str, typing.get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "/".join(str(member.value) for member in kind)
    return _KINDS.get(getattr(kind, "__name__", ""), "VALUE")


if __name__ == "__main__":
    print(page(), end="")
