"""Columns of a table: what each may hold, and how its values are said in a sentence."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qpeft.applications.notation import UNITS, Notation

MAX_CATEGORIES = 60
MAX_TEXT = 600
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class Field:
    """One column.

    Attributes:
        name, words, unit: the column's name in the file, in words, and its unit.
        kind: "number", "date", "category" or "text".
        low, high: the range of the training rows, of numbers or of dates (as `date.toordinal`).
        values: category -> the category in words.
        optional: whether the column was empty in some training row.
        max_text: a text is cut at a space after so many characters; 0: never.
        notation: how the file writes the column's numbers or dates, None where they are plain.
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
    notation: Notation | None = None

    def value(self, text: str) -> float | None:
        """The number, or the day as an ordinal; None for another text."""
        if self.kind != "date":
            return number(text)
        try:
            return float(datetime.date.fromisoformat(text).toordinal())
        except ValueError:
            return None

    def refusal(self, text: str | None) -> str | None:
        """Why the model cannot be asked about this value, or None."""
        if text is None or not text.strip():
            return None if self.optional else f"{self.name} is missing"
        if self.kind == "category" and text not in self.values:
            return f"{self.name} is {text[:40]!r}, which no training row had"
        if self.kind in ("number", "date") and self.value(text) is None:
            return f"{self.name} is {text[:40]!r}, not a {self.kind}"
        return None

    def warning(self, text: str | None) -> str | None:
        """Why the answer about this value may be worse than measured, or None."""
        if text is None or not text.strip():
            return None
        if self.kind == "text" and 0 < self.max_text < len(text):
            return f"{self.name} was cut from {len(text):,} to {self.max_text:,} characters"
        found = self.value(text) if self.kind in ("number", "date") else None
        if found is None or self.low is None or self.high is None or self.low <= found <= self.high:
            return None
        return f"{self.name} is {text}, outside {self._bound(self.low)} to {self._bound(self.high)} of the training rows"

    def _bound(self, value: float) -> str:
        return datetime.date.fromordinal(int(value)).isoformat() if self.kind == "date" else f"{value:g}"

    def say(self, text: str | None) -> str:
        """The value in words."""
        text = (text or "").strip()
        if not text:
            return "not known"
        if self.kind == "category":
            return self.values.get(text, text)
        if self.kind == "number":
            return f"{_plain(text)} {self.unit}".strip()
        return cut(text, self.max_text)


def cut(text: str, length: int) -> str:
    """The text, cut at a space where it has more characters.

    Args:
        text: the text.
        length: the most characters, without the " ..." that marks a cut; 0 never cuts.
    """
    return text if not length or len(text) <= length else text[:length].rsplit(" ", 1)[0] + " ..."


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


def infer_fields(
    rows: Sequence[Mapping[str, str]],
    columns: Sequence[str],
    *,
    words: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    values: Mapping[str, Mapping[str, str]] | None = None,
    notations: Mapping[str, Notation] | None = None,
    max_text: int = MAX_TEXT,
) -> tuple[Field, ...]:
    """The schema of training rows: ranges of the columns that hold numbers or dates only, values of those with few different ones.

    A column that is neither of numbers or dates nor has at most 60 values, each seen twice on average, is text.

    Args:
        rows: text of each column, by name.
        columns: the columns to describe.
        words: how a column is called in a sentence; default its name, with underscores as spaces.
        units: unit of a column of numbers.
        values: how the categories of a column are called; default as in the file.
        notations: those of the table (see `table`), whose values are plain already.
        max_text: longest text that a column of text may hold, characters; 0 is no bound.
    """
    words, units, values, notations = words or {}, units or {}, values or {}, notations or {}
    fields = []
    for name in columns:
        present = [v for row in rows if (v := (row.get(name) or "").strip())]
        notation = notations.get(name)
        common: dict[str, Any] = {"name": name, "words": words.get(name, spelled(name)), "optional": len(present) < len(rows)}
        common["notation"] = notation
        counts = Counter(present)
        if notation is not None and notation.date and present:
            days = [float(datetime.date.fromisoformat(value).toordinal()) for value in present]
            fields.append(Field(kind="date", low=min(days), high=max(days), **common))
        elif name not in values and present and None not in (numbers := [number(value) for value in present]):
            found = [n for n in numbers if n is not None]
            unit = units.get(name, UNITS.get(notation.mark, "") if notation is not None else "")
            fields.append(Field(kind="number", unit=unit, low=min(found), high=max(found), **common))
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
