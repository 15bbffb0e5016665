"""A data set: source, question, splits, and permitted use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qpeft.applications.columns import MAX_TEXT
from qpeft.applications.data_sets.sources import Source
from qpeft.applications.notation import Notation
from qpeft.applications.task import Group

CLINICAL = "It is no medical device: no decision on a person's diagnosis or treatment may rest on it."
LENDING = "It is no lending system: no decision on a person's credit may rest on it."


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set and its task.

    Attributes:
        name: what `qpeft data prepare` calls it.
        title: one line for lists and cards.
        kind: "classification" (rows of a table, one column is the label), "number" (exact match of the answer's last number) or
            "text" (ROUGE).
        source: a file in a published package, a dataset of the hub, or a local file.
        licence: of the data, as its own files state it.
        use: what it may be used for.
        limits: one sentence each: whom the rows stand for, what must not follow from them.
        read: the contents of the source's files -> rows. For a classification: `{column: text}`; for the other kinds rows
            with `messages`. May be left out for a local table.
        convert: for a hub dataset instead of `read`: one of its rows -> one in a format of `training.data`.
        instruction: the question, in front of each row's sentence.
        target: the column of the label.
        labels: value of that column -> the answer in words. Default: the values themselves.
        positive: the answer whose probability ranks rows, for two labels.
        drop: columns that are not inputs: identifiers, and what is known only after the outcome.
        group: a column; rows with the same value stay in one split.
        in_test: tells the source's own test rows.
        words, units, values: column -> its name, its unit, its categories in words.
        groups: columns for whose values metrics are reported apart.
        cost: `cost[true][predicted]` of an error.
        notations: how a user's table writes its columns of numbers and dates (see `table`).
        max_text: a text is cut at a space after so many characters; 0: never.
        reasons: how many reasons an answer names (see `preparation.reasons`).
        tests: SHA-256 of test.jsonl at seed 0. Other test rows are an error.
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
    notations: Mapping[str, Notation] = field(default_factory=dict)
    max_text: int = MAX_TEXT
    reasons: int = 0
    tests: str = ""
