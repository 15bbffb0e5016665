"""From pydantic's errors to sentences: what was got, what was expected, and the nearest known key for an unknown one."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from qpeft.training.recipe.yaml_source import KeyPath, show


class Problem(NamedTuple):
    """One thing wrong with the value at `path`."""

    path: KeyPath
    what: str
    expected: str = ""
    hint: str | None = None


class Section(BaseModel):
    """A frozen part of a recipe. Unknown keys are errors, types are strict: "8" is not a number and 1 is not true.

    Strictness is that of JSON, in which a list may become a tuple; so values enter through `model_validate_json`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    renamed: ClassVar[Mapping[str, str]] = {}
    """Keys that users may remember from elsewhere, and the hint for each."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = list(self.inconsistencies())
        if problems:
            raise PydanticCustomError("inconsistent", "values that exclude each other", {"problems": problems})
        return self

    def inconsistencies(self) -> Iterable[Problem]:
        """Problems between fields that are valid by themselves; paths are relative to this section."""
        return ()


def section_at(root: type[Section], path: KeyPath) -> type[Section] | None:
    """The section class that holds the keys at a path, or None.

    Args:
        root: class of the whole.
        path: key path; indices of lists are passed through.
    """
    section: type[Section] | None = root
    for key in path:
        if section is not None and isinstance(key, str):
            field = section.model_fields.get(key)
            section = next(_sections_in(field.annotation), None) if field else None
    return section


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _sections_in(argument)


def unknown_key(path: KeyPath, known: Sequence[str], renamed: Mapping[str, str] | None = None) -> Problem:
    """The problem of an unknown key: a hint if it is a known former name, else the nearest known key, else all of them.

    Args:
        path: the key's path in the recipe.
        known: the keys that are allowed there.
        renamed: former names, and the hint for each.
    """
    key = str(path[-1])
    if renamed and key in renamed:
        return Problem(path, "unknown key", hint=renamed[key])
    return _suggest(path, "unknown key", key, known)


def unknown_value(path: KeyPath, value: str, known: Sequence[str]) -> Problem:
    """The problem of text that is none of the known names.

    Args:
        path: the value's path in the recipe.
        value: the text that was given.
        known: the values that are allowed there.
    """
    return _suggest(path, f"got {show(value)}", value, known)


def _suggest(path: KeyPath, what: str, given: str, known: Sequence[str]) -> Problem:
    begun = [name for name in known if len(given) > 2 and name.startswith(given.lower())]
    near = begun or difflib.get_close_matches(given.lower(), known, n=1, cutoff=0.6)
    if near:
        return Problem(path, f"{what}, did you mean {near[0]!r}?")
    return Problem(path, what, f"one of {', '.join(known)}")


_PLAIN = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "model_type": "a section of keys and values",
    "dict_type": "a section of keys and values",
    "tuple_type": "a list",
    "list_type": "a list",
    "too_short": "at least one item",
}


def explain(error: ValidationError, root: type[Section], prefix: KeyPath = ()) -> list[Problem]:
    """Every problem in a validation error.

    Args:
        error: pydantic's error.
        root: the section that was validated.
        prefix: its key path in the recipe.
    """
    problems = []
    for detail in error.errors(include_url=False):
        loc: KeyPath = tuple(detail["loc"])
        path, kind = prefix + loc, detail["type"]
        section = section_at(root, loc[:-1]) if loc else None
        field = section.model_fields.get(str(loc[-1])) if section else None
        if kind == "inconsistent":
            problems += [p._replace(path=path + p.path) for p in detail["ctx"]["problems"]]
        elif kind == "extra_forbidden" and section:
            problems.append(unknown_key(path, tuple(section.model_fields), section.renamed))
        elif kind == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]:
            pass  # pydantic does not count items that have problems of their own, which are reported themselves
        elif kind == "missing":
            problems.append(Problem(path, "missing", (field.description if field else None) or "a value"))
        else:
            bound = detail["msg"].removeprefix("Input should be ").removeprefix("String should ")
            if kind == "string_pattern_mismatch" and field and field.description:
                bound = field.description
            problems.append(Problem(path, f"got {show(detail['input'])}", _PLAIN.get(kind, bound)))
    return problems
