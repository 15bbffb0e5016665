"""The `adapter` section of a recipe: any PEFT method, its fields checked against the method's own config dataclass."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import types
import typing
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from qpeft.errors import AdapterError, ConfigError
from qpeft.training.recipe.validation import Problem, unknown_key
from qpeft.training.recipe.yaml_source import show


def build_adapter_config(fields: Mapping[str, Any]) -> Any:
    """The PEFT config of an adapter section (imports peft). `task_type` is CAUSAL_LM unless given.

    Raises ConfigError with every problem; `field` is dotted below `adapter`.
    """
    config, problems = read_adapter(fields)
    if problems:
        raise ConfigError.collect(
            [
                ConfigError(p.what, field=".".join(("adapter", *map(str, p.path))), expected=p.expected, hint=p.hint)
                for p in problems
            ]
        )
    return config


def embed_circuit(fields: Mapping[str, Any], folders: Iterable[Path]) -> dict[str, Any]:
    """The section with a circuit's file replaced by the circuit, so that a run's own recipe needs no file.

    Args:
        fields: an adapter section. Without a `circuit` that names a file it is returned as it is.
        folders: where the file is looked for, in order.

    Raises:
        AdapterError: no such file, or it cannot be read as a circuit.
    """
    name = fields.get("circuit")
    if not isinstance(name, str) or not name.endswith((".qasm", ".json")):
        return dict(fields)
    from qpeft.adapters.circuit_setting import read_circuit, save_circuit

    looked = [folder / Path(name).expanduser() for folder in folders]
    found = next((path for path in looked if path.is_file()), None)
    if found is None:
        raise AdapterError("no such circuit file", value=name, bound="a file next to the recipe or in the working folder")
    rest = {key: value for key, value in fields.items() if key != "circuit_inputs"}
    return {**rest, "circuit": save_circuit(read_circuit(str(found), fields.get("circuit_inputs")))}


def read_adapter(fields: Mapping[str, Any]) -> tuple[Any, list[Problem]]:
    """(config, []) or (None, problems); problem paths are relative to the section."""
    from qpeft.adapters.peft import config_class, current_names

    try:
        cls = config_class(fields["peft_type"])
    except AdapterError as error:
        return None, [Problem(("peft_type",), str(error))]
    fields = current_names(cls, dict(fields))
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}
    values: dict[str, Any] = {"task_type": "CAUSAL_LM"} if "task_type" in known else {}
    problems = []
    for name, value in fields.items():
        if name == "peft_type":
            continue
        if name not in known:
            problems.append(unknown_key((name,), sorted(known)))
        elif value is None and known[name].default is None:  # some hints leave None out though it is the default
            values[name] = None
        else:
            hint = _hint(cls, known[name])
            try:
                values[name] = _converted(hint, value)
            except ValidationError as error:
                detail = error.errors(include_url=False)
                reason = f" ({detail[0]['msg']})" if len(detail) == 1 and len(detail[0]["loc"]) > 0 else ""
                problems.append(Problem((name,), f"got {show(value)}{reason}", _readable(hint)))
    made, reason = _made(cls, values)
    while reason:
        problems.append(Problem((), reason))
        left_out = next((rest for rest in _without_one(values) if _made(cls, rest)[1] != reason), None)
        if left_out is None:
            break
        values = left_out
        _, reason = _made(cls, values)
    return (None, problems) if problems else (made, [])


def _made(cls: type, values: Mapping[str, Any]) -> tuple[Any, str]:
    """The config and "", or None and what its own check says, which stops at the first problem."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are shown when the adapter is put on the model
            return cls(**values), ""
    except Exception as error:  # the check is the method's own code and may raise anything
        return None, (str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}").strip()


def _without_one(values: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The values with one of them left out, so that it takes its default."""
    return ({name: value for name, value in values.items() if name != left_out} for left_out in values)


def _hint(cls: type, field: dataclasses.Field[Any]) -> Any:
    """The field's type hint with names resolved where it was written; Any where that is impossible."""
    owner = next((base for base in cls.__mro__ if field.name in inspect.get_annotations(base)), cls)
    holder = types.SimpleNamespace(__annotations__={field.name: field.type})
    try:
        return typing.get_type_hints(holder, vars(sys.modules[owner.__module__]))[field.name]
    except Exception:  # a hint is an expression of foreign code: whatever it raises, there is no hint
        return Any


def _converted(hint: Any, value: Any) -> Any:
    """`value` as the hinted type by the strict rules of JSON; raises ValidationError."""
    try:
        adapter = TypeAdapter(hint)
    except (PydanticUserError, TypeError):
        return value
    return adapter.validate_json(json.dumps(value), strict=True)


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def _readable(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(_readable, typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(show, typing.get_args(hint)))}"
    if typing.get_origin(hint) in (list, set, tuple):
        return f"a list of {_readable(typing.get_args(hint)[0])}"
    if isinstance(hint, type) and not typing.get_args(hint):
        return _WORDS.get(hint, f"the fields of {hint.__name__}")
    return str(hint)
