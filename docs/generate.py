"""Reference pages made from code: `python docs/generate.py` writes them, a test fails when one is stale."""

from __future__ import annotations

import itertools
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

DOCS = Path(__file__).parent


def gates() -> str:
    """The gate table, from `qpeft.circuits.ir.GATES`."""
    from qpeft.circuits.ir import GATES

    lines = [
        "# Gate table",
        "",
        "All gates of `qpeft.circuits.ir`. Made from code by `python docs/generate.py`.",
        "",
        "* *frequencies*: the positive frequencies of the angle in an expectation value. Parameter shift needs two evaluations for",
        "  each. A gate without frequencies has no angle.",
        "* *diagonal*, *permutation*: properties of the matrix that the simulators use.",
        "",
        "| gate | qubits | angle | frequencies | diagonal | permutation | in OpenQASM 3 stdgates |",
        "|---|--:|---|---|---|---|---|",
    ]
    for gate in GATES.values():
        frequencies = ", ".join(f"{value:g}" for value in gate.frequencies)
        marks = ["yes" if mark else "" for mark in (gate.parametrised, gate.diagonal, gate.permutation, gate.stdgates)]
        lines.append(f"| `{gate.name}` | {gate.n_qubits} | {marks[0]} | {frequencies} | {marks[1]} | {marks[2]} | {marks[3]} |")
    return "\n".join(lines) + "\n"


def recipe() -> str:
    """Every key of a recipe, from the classes that check it."""
    from qpeft.training.recipe.config import RunConfig

    lines = [
        "# Recipe keys",
        "",
        "Every key that a recipe may have, with its type and default. Made from code by `python docs/generate.py`.",
        "[Recipes](../recipes.md) explains how they work together. The keys of `adapter` are those of the method's config class;",
        "`qpeft methods` lists the methods.",
    ]
    _section("Top level", "", RunConfig, lines)
    return "\n".join(lines) + "\n"


def _section(title: str, prefix: str, section: type[BaseModel], lines: list[str]) -> None:
    lines += ["", f"## {title}", "", "| key | type | default |", "|---|---|---|"]
    inner: list[tuple[str, str, type[BaseModel]]] = []
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        nested = [kind for kind in _parts(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        inner += [(f"`{prefix}{name}`", f"{prefix}{name}.", kind) for kind in nested]
        shown = "section" if nested else _type(field.annotation)
        shown = f"list of {shown}s" if nested and typing.get_origin(field.annotation) is tuple else shown
        told = "required" if default is PydanticUndefined else "" if default is None or nested else f"`{_value(default)}`"
        lines.append(f"| `{prefix}{name}` | {shown} | {told} |")
    for name, start, kind in inner:
        _section(name, start, kind, lines)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _parts(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, typing.Annotated):
        return [inner for part in typing.get_args(annotation) for inner in _parts(part)]
    return [annotation]


def _type(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys("null" if part is type(None) else _type(part) for part in inner))
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return "mapping"
    return {"int": "integer", "float": "number", "str": "text", "bool": "true or false"}.get(
        annotation.__name__, annotation.__name__
    )


def service_settings() -> str:
    """Every setting of the task service, from its class; a field's docstring is its meaning."""
    import ast
    import inspect

    from qpeft.service.settings import Settings

    body = ast.parse(inspect.getsource(Settings)).body[0].body  # type: ignore[attr-defined]
    meanings = {}
    for field, after in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            meanings[field.target.id] = str(getattr(after.value, "value", ""))
    lines = [
        "# Settings of the task service",
        "",
        "Every setting is an environment variable of `qpeft serve`; some are options too.",
        "Made from code by `python docs/generate.py`. Names end in their unit: `_s` seconds, `_bytes` bytes, `_days` days.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default is None else ", ".join(default) if isinstance(default, tuple) else _value(default)
        meaning = " ".join(meanings.get(name, "").split())
        lines.append(f"| `QPEFT_SERVICE_{name.upper()}` | {f'`{shown}`' if shown else ''} | {meaning} |")
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Every command with its options, from the command line itself."""
    from qpeft.cli import reference

    return reference.page()


PAGES = {
    "commands.md": commands,
    "reference/gates.md": gates,
    "reference/recipe.md": recipe,
    "reference/service-settings.md": service_settings,
}


if __name__ == "__main__":
    for name, make in PAGES.items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(make(), encoding="utf-8")
        print(f"wrote docs/{name}")
