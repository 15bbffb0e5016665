"""How a column writes its numbers and dates, found from all its values, and their plain form: 1234.5 and 2024-02-29.

A text alone may be read in two ways: 3,197 is three thousand or three point two, 03/04/2024 is in March or in April. A column
as a whole mostly can not.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass

UNITS = {"%": "percent", "$": "dollars", "€": "euros", "£": "pounds", "¥": "yen", "₹": "rupees"}
DASHES = frozenset({"-", "--", "–", "—"})  # missing, in a column of numbers or dates
_MARKS = "".join(UNITS)
_SPACES = " \u00a0\u202f\u2009'’"
_POINT = re.compile(r"[-+]?(?:(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d?(?:,\d{2})+,\d{3}|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_COMMA = re.compile(r"[-+]?(?:(?:[1-9]\d{0,2}(?:\.\d{3})+|\d+)(?:,\d*)?|,\d+)(?:[eE][-+]?\d+)?")
_GROUPED = re.compile(rf"[-+]?\d{{1,3}}(?:[{_SPACES}]\d{{3}})+(?![\d{_SPACES}])")
_INFINITE = re.compile(r"[-+]?(?:inf(?:inity)?|∞)", re.IGNORECASE)
_YEAR_FIRST = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d")
_DAY_FIRST = ("%d.%m.%Y", "%d.%m.%y", "%d-%m-%Y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y")
_CLOCKS = ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f")
_TIMES = ("", *(mark + clock + zone for clock in _CLOCKS for mark in "T " for zone in ("", "%z")), " %I:%M %p", " %I:%M:%S %p")


@dataclass(frozen=True)
class Notation:
    """A column of numbers with the decimal mark `decimal` and, on every value, the sign `mark` ("%", a currency or ""); or of
    dates in the form `date` (as strptime has it).

    `doubt` says what is not certain, in a sentence without the column's name; "" where all is.
    """

    decimal: str = "."
    mark: str = ""
    date: str = ""
    doubt: str = ""

    def plain(self, text: str) -> str | None:
        """The number as Python writes it, the date in ISO form; "" for a dash and for infinity; None for another text."""
        if text in DASHES or _INFINITE.fullmatch(text):
            return ""
        if self.date:
            try:
                return datetime.datetime.strptime(text, self.date).date().isoformat()
            except ValueError:
                return None
        core, mark = _core(text)
        if mark not in ("", self.mark):
            return None
        if self.decimal == ",":
            return core.replace(".", "").replace(",", ".") if _COMMA.fullmatch(core) else None
        return core.replace(",", "") if _POINT.fullmatch(core) else None


def _core(text: str) -> tuple[str, str]:
    """The digits and marks of a number, and the sign of its unit. (1,234) of bookkeepers is negative."""
    text = text.strip().replace("−", "-")
    if text.startswith("(") and text.endswith(")"):
        text = f"-{text[1:-1]}"
    sign = text[:1] if text[:1] in "+-" else ""
    rest = text[len(sign) :].strip()
    mark = next((letter for letter in (rest[:1], rest[-1:]) if letter and letter in _MARKS), "")
    core = sign + rest.strip(_MARKS + _SPACES)
    if _GROUPED.match(core):
        core = re.sub(rf"[{_SPACES}]", "", core)
    return core, mark


def find_notation(values: Sequence[str], *, semicolons: bool = False) -> Notation | None:
    """The notation of a column's values, none of which is empty, or None if they are neither numbers nor dates.

    `semicolons`: the table has semicolons between its cells, as where the decimal mark is a comma.
    """
    present = [value for value in values if value not in DASHES and not _INFINITE.fullmatch(value)]
    if not present:
        return Notation() if any(map(infinite, values)) else None
    cores = [_core(value) for value in present]
    marks = {mark for _, mark in cores}
    point = all(_POINT.fullmatch(core) for core, _ in cores)
    comma = all(_COMMA.fullmatch(core) for core, _ in cores)
    if (point or comma) and len(marks) == 1:
        [mark] = marks
        if point and comma and (example := next((core for core, _ in cores if "," in core), None)):
            decimal, read = (",", example.replace(",", ".")) if semicolons else (".", example.replace(",", ""))
            other = example.replace(",", "") if semicolons else example.replace(",", ".")
            return Notation(decimal, mark, doubt=f"{example} is read as {read}, and could be {other}")
        return Notation("." if point else ",", mark)
    return _find_date(present)


def _find_date(present: Sequence[str]) -> Notation | None:
    if not all(re.search(r"\d", value) for value in present[:5]):
        return None
    for form in (*_YEAR_FIRST, *_DAY_FIRST):
        if form != "%Y%m%d" and (found := _fits(present, form)):
            return Notation(date=found)
    day_first, month_first = (_fits(present, f"{form}/%Y") or _fits(present, f"{form}/%y") for form in ("%d/%m", "%m/%d"))
    if day_first and month_first and any(value.split("/")[0] != value.split("/")[1] for value in present):
        return Notation(date=day_first, doubt=f"{present[0]} is read as day/month, and could be month/day")
    either = day_first or month_first
    return Notation(date=either) if either else None


def _fits(present: Sequence[str], form: str) -> str:
    """The form, with a time of day or without, that all values have; "" for none."""
    for time in _TIMES:
        try:
            for value in present:
                datetime.datetime.strptime(value, form + time)
        except ValueError:
            continue
        return form + time
    return ""


def infinite(value: str) -> bool:
    """Whether a text says infinity."""
    return bool(_INFINITE.fullmatch(value))
