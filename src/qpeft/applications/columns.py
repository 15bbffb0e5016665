"""Columns of a table: what each may hold, and how its values are said in a sentence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qpeft.training.data.files import read_rows

MAX_CATEGORIES = 60
MAX_TEXT = 600
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
    """The text, cut at a space where it has more characters.

    Args:
        text: the text.
        length: the most characters, without the " ..." that marks a cut.
    """
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

     A column that is neither a number nor has at most 60 values, each seen twice on average, is text.

    Args:
        rows: text of each column, by name.
        columns: the columns to describe.
        words: how a column is called in a sentence; default its name, with underscores as spaces.
        units: unit of a column of numbers.
        values: how the categories of a column are called; default as in the file.
        max_text: longest text that a column of text may hold, characters.
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
