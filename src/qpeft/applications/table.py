"""A user's file as rows of text with plain numbers and dates."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpeft.applications.notation import DASHES, Notation, find_notation, infinite
from qpeft.training.data.files import read_rows
from qpeft.training.data.table_files import delimiter_of

logger = logging.getLogger(__name__)

MISSING = frozenset({"NA", "N/A", "n/a", "n.a.", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None", "?", "#DIV/0!", "#VALUE!"})
MOSTLY = 0.8  # a column with so many numbers among its values was meant to hold numbers


@dataclass(frozen=True)
class Table:
    """`rows` have every column, numbers and dates in plain form and "" where a value is missing; `written` are the same rows as the
    file has them. `notations` holds the columns of numbers and of dates.
    """

    rows: list[dict[str, str]]
    written: list[dict[str, str]]
    notations: Mapping[str, Notation]

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order."""
        return list(self.rows[0])


def read_table(
    path: Path, *, encoding: str | None = None, texts: Collection[str] = (), notations: Mapping[str, Notation | None] | None = None
) -> Table:
    """Read CSV, TSV, Excel, JSON, JSON Lines or Parquet, with a warning for each column that may have been meant otherwise.

    Args:
        path: the file.
        encoding: of a text file, default found out.
        texts: columns that stay as they are, such as the label.
        notations: those of another table with the same columns, which are kept where they can read every value.

    Raises:
        DataError: the file cannot be read.
    """
    written = [{column: _text(value) for column, value in row.values.items()} for row in read_rows(path, encoding=encoding)]
    columns = list(dict.fromkeys(column for row in written for column in row))
    written = [{column: row.get(column, "") for column in columns} for row in written]
    if notations is not None:
        known = {name: notation for name, notation in notations.items() if notation is not None}
        found = {name: _fitting(notation, [row[name] for row in written if row.get(name)]) for name, notation in known.items()}
    else:
        semicolons = path.suffix.lower() == ".csv" and delimiter_of(_first_lines(path, encoding)) == ";"
        found = {}
        for column in columns:
            values = [value for row in written if (value := row[column])]
            if column in texts or not values:
                continue
            notation = find_notation(values, semicolons=semicolons)
            _warn(path.name, column, values, notation)
            if notation is not None:
                found[column] = notation
    rows = [{column: _plain(value, found.get(column)) for column, value in row.items()} for row in written]
    return Table(rows, written, found)


def _fitting(known: Notation, values: Sequence[str]) -> Notation:
    """The known notation, or the column's own where another program wrote it: 25.423 is a number in both, 25.4 in one."""
    if all(known.plain(value) is not None for value in values):
        return known
    return find_notation(values) or known


def _first_lines(path: Path, encoding: str | None) -> str:
    return path.read_bytes()[:65536].decode(encoding or "utf-8-sig", errors="replace")


def _text(value: Any) -> str:
    text = "" if value is None or value != value else str(value).strip()  # NaN is unequal to itself
    return "" if text in MISSING else text


def _plain(value: str, notation: Notation | None) -> str:
    """The plain form; a text that is no number stays, so that it can be named."""
    plain = notation.plain(value) if notation is not None and value else value
    return value if plain is None else plain


def _warn(file: str, column: str, values: Sequence[str], notation: Notation | None) -> None:
    if notation is not None:
        if notation.doubt:
            logger.warning("%s, column %s: %s", file, column, notation.doubt)
        if endless := sum(map(infinite, values)):
            logger.warning("%s, column %s: %d infinite values are read as missing", file, column, endless)
        return
    numbers = [value for value in values if find_notation([value]) is not None]
    if MOSTLY * len(values) <= len(numbers) < len(values):
        others = [value for value in dict.fromkeys(values) if value not in DASHES and find_notation([value]) is None]
        said = ", ".join(repr(value[:20]) for value in others[:3])
        why = f"{said} {'is' if len(others) == 1 else 'are'} not" if others else "in several notations"
        logger.warning(
            "%s, column %s: %d of %d values are numbers or dates, %s; it is read as text. Empty these cells to read numbers",
            file,
            column,
            len(numbers),
            len(values),
            why,
        )
    elif len(numbers) == len(values):
        logger.warning(
            "%s, column %s: numbers or dates in several notations, such as %s and %s; it is read as text",
            file,
            column,
            values[0],
            next((v for v in values if find_notation([values[0], v]) is None), values[-1]),
        )
