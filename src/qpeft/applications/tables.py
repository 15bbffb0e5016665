"""A row as text, and what a row may be: the `Task` that is kept beside the rows as task.json.

A table's row becomes one sentence, "Age is 35 years; housing is own; ...", with field names and categories spelled out, and the
label is the answer. A row out of the schema (a category or a range that training never held) is refused with the reason.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qpeft.errors import DataError
from qpeft.training.data.files import read_rows

MAX_CATEGORIES = 60
MAX_TEXT = 600
FILE = "task.json"
BECAUSE = ", because of "
MISSING = frozenset({"NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "?"})
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class Field:
    """One column. `kind` is number, category or text.

    A number lies in `low..high`, the range of the training rows. A category is a key of `values`, which says it in words.
    `optional` columns were empty in some training row. `max_text` cuts a text, in characters, at a space.
    """

    name: str
    words: str
    kind: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False
    max_text: int = MAX_TEXT

    def refusal(self, value: str | None) -> str | None:
        """Why the value is out of the schema, or None."""
        if value is None or not value.strip():
            return None if self.optional else f"{self.name} is missing"
        if self.kind == "category" and value not in self.values:
            return f"{self.name} is {value[:40]!r}, which no training row had"
        if self.kind == "number":
            found = number(value)
            if found is None:
                return f"{self.name} is {value[:40]!r}, not a number"
            if self.low is not None and self.high is not None and not self.low <= found <= self.high:
                return f"{self.name} is {value}, outside {self.low:g} to {self.high:g}"
        return None

    def say(self, value: str | None) -> str:
        """The value in words."""
        value = (value or "").strip()
        if not value:
            return "not known"
        if self.kind == "category":
            return self.values.get(value, value)
        if self.kind == "number":
            return f"{_plain(value)} {self.unit}".strip()
        return cut(value, self.max_text)


def cut(text: str, length: int) -> str:
    """The text, cut at a space where it has more characters."""
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " ..."


def number(value: str) -> float | None:
    """The number that a text is, with or without commas between thousands; None for any other text, and for no finite number."""
    try:
        found = float(value.replace(",", "") if _THOUSANDS.fullmatch(value.strip()) else value)
    except ValueError:
        return None
    return found if abs(found) < float("inf") else None


def _plain(value: str) -> str:
    """`6.0` as `6`; other texts of numbers as they are."""
    return re.sub(r"\.0+$", "", value)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows told apart by one column: by `values` (category -> group) or by `edges` (a number's half-open intervals)."""

    name: str
    field: str
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    edges: Sequence[float] = ()

    def of(self, row: Mapping[str, str]) -> str:
        """The row's group; "unknown" where the column is empty."""
        value = (row.get(self.field) or "").strip()
        if not self.edges:
            return self.values.get(value, value) or "unknown"
        found = number(value)
        if found is None:
            return "unknown"
        below = [edge for edge in self.edges if edge <= found]
        above = [edge for edge in self.edges if edge > found]
        if not below:
            return f"below {above[0]:g}"
        return f"{below[-1]:g} to below {above[0]:g}" if above else f"{below[-1]:g} and above"


def group_order(name: str) -> tuple[float, str]:
    """Sorts the names of groups: intervals by their lower edge, then names."""
    first = name.partition(" ")[0]
    edge = number(first)
    return (float("-inf") if first == "below" else float("inf") if edge is None else edge, name)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model is asked, and how its answers are judged.

    `kind`: "classification" (the answer is one of `labels`), "number" (exact match of the last number) or "text" (ROUGE).
    `labels` maps a value of the column `target` to the answer. `positive` is the answer whose probability ranks rows, for two
    labels. `cost[true][predicted]` weighs errors. `groups` are reported apart. `fields` is empty for kinds other than
    classification, whose rows are messages already. With `reasons` the label is followed by so many columns that speak for it, in
    words: "bad, because of savings; the duration of the loan" (see reasons.py). `licence`, `use` and `limits` are the data's.
    """

    name: str
    title: str
    kind: str
    instruction: str = ""
    target: str = ""
    fields: tuple[Field, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    positive: str = ""
    cost: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    reasons: int = 0
    licence: str = ""
    use: str = ""
    limits: tuple[str, ...] = ()

    def refusals(self, row: Mapping[str, str]) -> list[str]:
        """Every reason why the row is out of the schema."""
        return [reason for f in self.fields if (reason := f.refusal(row.get(f.name))) is not None]

    def sentence(self, row: Mapping[str, str]) -> str:
        """The row as one sentence; the text itself where the row is one text."""
        if len(self.fields) == 1 and self.fields[0].kind == "text":
            return self.fields[0].say(row.get(self.fields[0].name))
        said = "; ".join(f"{f.words} is {f.say(row.get(f.name))}" for f in self.fields)
        return said[:1].upper() + said[1:] + "."

    def prompt(self, row: Mapping[str, str]) -> str:
        """The user's message."""
        return f"{self.instruction}\n\n{self.sentence(row)}"

    def answer(self, row: Mapping[str, str]) -> str:
        """The true answer."""
        return self.labels[row[self.target]]

    @property
    def answers(self) -> list[str]:
        """The answers, each once, in order."""
        return list(dict.fromkeys(self.labels.values()))

    @property
    def beginnings(self) -> list[str]:
        """What the assistant begins with for each of the answers: all it says, or all up to its reasons."""
        return [answer + BECAUSE.rstrip() for answer in self.answers] if self.reasons else self.answers

    def explained(self, answer: str, names: Sequence[str]) -> str:
        """The answer with the columns that are its reasons."""
        words = {f.name: f.words for f in self.fields}
        return answer + BECAUSE + "; ".join(words[name] for name in names)

    def parse(self, text: str) -> tuple[str, list[str]] | None:
        """The answer and the columns that a text of the form of `explained` names, or None for another form."""
        answer, because, rest = text.strip().partition(BECAUSE)
        columns = {f.words: f.name for f in self.fields}
        names = [columns.get(part.strip()) for part in rest.removesuffix(".").split(";")]
        found = [name for name in names if name is not None]
        well_formed = because and answer in self.answers and len(found) == len(names) == len(set(found)) == self.reasons
        return (answer, found) if well_formed else None

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Task:
        """Raises DataError naming the file."""
        try:
            given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            given["fields"] = tuple(Field(**f) for f in given.get("fields", ()))
            given["groups"] = tuple(Group(**g) for g in given.get("groups", ()))
            given["limits"] = tuple(given.get("limits", ()))
            return cls(**given)
        except FileNotFoundError as error:
            raise DataError("no such file", file=str(path), hint="qpeft data prepare writes it beside the rows") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"not a task: {error}", file=str(path), expected="what qpeft data prepare writes") from error


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a user's file (CSV, TSV, JSON, JSON Lines, Parquet) as text, every row with every column.

    What is empty, and what `MISSING` names (R, pandas and spreadsheets write it so), is an empty text.
    """
    rows = [{column: _text(value) for column, value in row.values.items()} for row in read_rows(path)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [{column: row.get(column, "") for column in columns} for row in rows]


def _text(value: Any) -> str:
    text = "" if value is None or value != value else str(value).strip()  # NaN is unequal to itself
    return "" if text in MISSING else text


def infer_fields(
    rows: Sequence[Mapping[str, str]],
    columns: Sequence[str],
    *,
    words: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    values: Mapping[str, Mapping[str, str]] | None = None,
    max_text: int = MAX_TEXT,
) -> tuple[Field, ...]:
    """The schema of training rows: ranges of the columns that hold numbers alone, values of those with few different ones.

    `words`, `units` and `values` spell names, units and categories out; what they leave open reads as in the file, with
    underscores as spaces. A column that is neither a number nor has at most 60 values, each seen twice on average, is text.
    """
    words, units, values = words or {}, units or {}, values or {}
    fields = []
    for name in columns:
        present = [v for row in rows if (v := (row.get(name) or "").strip())]
        common: dict[str, Any] = {"name": name, "words": words.get(name, spelled(name)), "optional": len(present) < len(rows)}
        numbers = [number(value) for value in present]
        counts = Counter(present)
        if name not in values and numbers and None not in numbers:
            found = [n for n in numbers if n is not None]
            fields.append(Field(kind="number", unit=units.get(name, ""), low=min(found), high=max(found), **common))
        elif len(counts) <= MAX_CATEGORIES and (name in values or 2 * len(counts) <= len(present)):
            said = values.get(name, {})
            known = {value: said.get(value, value.replace("_", " ")) for value in sorted(counts)}
            fields.append(Field(kind="category", values=known, **common))
        else:
            fields.append(Field(kind="text", max_text=max_text, **common))
    return tuple(fields)


def spelled(name: str) -> str:
    """A column's name as words: `credit_amount` and `CreditAmount` as "credit amount"; abbreviations such as TSH stay."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", name).replace("_", " ").split()
    return " ".join(word if word.isupper() and len(word) > 1 else word.lower() for word in apart) or name
