"""What is known of a data set before it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qpeft.applications.columns import MAX_TEXT
from qpeft.applications.data_sets.sources import Source
from qpeft.applications.task import Group

CLINICAL = "It is no medical device: no decision on a person's diagnosis or treatment may rest on it."
LENDING = "It is no lending system: no decision on a person's credit may rest on it."


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set and its task.

    `read` turns the bytes of the source's files into rows. For a classification task the rows are `{column: text}`; `drop` names
    columns that are no input (identifiers and what is known only after the outcome), `group` the column whose equal values stay
    on one side of a split. For the other kinds `read` gives rows with `messages`. A hub dataset has `convert` instead, from one of
    its rows to one in a format of `training.data`. `in_test` marks the source's own test rows.
    `tests` is the SHA-256 of test.jsonl, frozen: another one is an error.
    """

    name: str
    title: str
    kind: str
    source: Source
    licence: str
    use: str
    limits: tuple[str, ...]
    read: Callable[[Sequence[bytes]], Sequence[Mapping[str, Any]]] | None = None
    convert: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    instruction: str = ""
    target: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    positive: str = ""
    drop: tuple[str, ...] = ()
    group: str = ""
    in_test: Callable[[Mapping[str, Any]], bool] | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    cost: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    max_text: int = MAX_TEXT
    reasons: int = 0
    tests: str = ""
