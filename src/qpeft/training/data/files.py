"""Rows of a data file, each with the line it starts on: JSON (an array), JSON Lines, CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpeft.errors import DataError, MissingDependencyError

MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Row:
    """`index` counts rows from 0; `line` counts lines of the file from 1, and is 0 where there are no lines."""

    index: int
    line: int
    values: dict[str, Any]


class Report:
    """Collects the problems of one source; the first `MAX_PROBLEMS` are kept, the others counted."""

    def __init__(self, file: str) -> None:
        self.file, self.problems, self.count = file, list[DataError](), 0

    def add(self, what: str, expected: str = "", *, line: int = 0, field: str = "", hint: str | None = None) -> None:
        """Note one problem."""
        self.count += 1
        if self.count <= MAX_PROBLEMS:
            self.problems.append(DataError(what, file=self.file, line=line, field=field, expected=expected, hint=hint))

    def stop(self, what: str, expected: str = "", *, line: int = 0, hint: str | None = None) -> DataError:
        """The error of a problem after which the file cannot be read further, with all before it."""
        self.add(what, expected, line=line, hint=hint)
        return self.error()

    def error(self) -> DataError:
        """One DataError of everything noted; there must be something."""
        problems = self.problems
        if self.count > MAX_PROBLEMS:
            problems = [*problems, DataError(f"and {self.count - MAX_PROBLEMS} problems more, {self.count} in all", file=self.file)]
        error = DataError.collect(problems)
        assert isinstance(error, DataError)
        return error


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a local file, by its extension. Raises DataError with every unreadable row (20 shown, all counted)."""
    path = Path(path)
    report = Report(str(path))
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise report.stop(f"extension {suffix!r}", f"one of {', '.join(READERS)}", hint="convert or rename the file")
    if not path.is_file():
        raise report.stop("no such file" if not path.exists() else "not a file", "a data file")
    try:
        rows = list(READERS[suffix](path, report))
    except RecursionError as error:
        raise report.stop("nested too deeply", "rows of a few levels") from error
    except OSError as error:
        raise report.stop(f"cannot be read: {error}") from error
    if report.count:
        raise report.error()
    if not rows:
        raise report.stop("the file holds no rows", "at least one row")
    return rows


def _text(path: Path, report: Report) -> str:
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise report.stop("the text is UTF-16", "UTF-8 text", line=1, hint="save the file as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise report.stop(what, "UTF-8 text", line=line, hint="save the file as UTF-8") from error
    if "\x00" in text:
        raise report.stop("NUL byte", "text", line=_line(text, text.index("\x00")), hint="save the file as UTF-8")
    if not text.strip():
        raise report.stop("the file is empty", "at least one row")
    return text


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\n\r":
        position += 1
    return position


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} (column {error.colno})"
    return f"not JSON: {error}"


def _json(path: Path, report: Report) -> Iterator[Row]:
    text = _text(path, report)
    position = _skip_space(text, 0)
    if text[position] != "[":
        raise _not_an_array(text, position, report)
    position = _skip_space(text, position + 1)
    line, counted, index = _line(text, position), position, 0
    closed = text[position : position + 1] == "]"
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = _decoder.raw_decode(text, position)
        except ValueError as error:
            at = error.pos if isinstance(error, json.JSONDecodeError) else position
            cut = not text[at:].strip()
            raise report.stop("the file ends inside the array" if cut else _reason(error), line=_line(text, at)) from error
        if isinstance(value, dict):
            yield Row(index, line, value)
        else:
            report.add(f"the row is {_kind(value)}", "an object with named fields", line=line)
        index += 1
        position = _skip_space(text, position)
        mark = text[position : position + 1]
        if not mark:
            raise report.stop("the file ends inside the array", "',' or ']'", line=_line(text, position))
        if mark not in ",]":
            raise report.stop(f"not JSON: {mark!r} after a row", "',' or ']'", line=_line(text, position))
        closed = mark == "]"
        if not closed:
            position = _skip_space(text, position + 1)
    position = _skip_space(text, position + 1)
    if position < len(text):
        raise report.stop("text after the array", "one array of rows", line=_line(text, position))


def _not_an_array(text: str, position: int, report: Report) -> DataError:
    """Tell JSON Lines, a single object and other text apart."""
    try:
        value, end = _decoder.raw_decode(text, position)
    except ValueError as error:
        at = error.pos if isinstance(error, json.JSONDecodeError) else position
        return report.stop(_reason(error), "an array of rows: [{...}, ...]", line=_line(text, at))
    if isinstance(value, dict) and text[end:].strip().startswith("{"):
        return report.stop("one object a line: this is JSON Lines", "an array of rows", hint="rename the file to .jsonl")
    keys = f" with the keys {', '.join(list(value)[:8])}" if isinstance(value, dict) else ""
    what = f"the file holds {_kind(value)}{keys}"
    return report.stop(what, "an array of rows: [{...}, ...]", line=_line(text, position))


def _jsonl(path: Path, report: Report) -> Iterator[Row]:
    index = 0
    for line, text in enumerate(_text(path, report).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            value = _decoder.decode(text)
        except ValueError as error:
            if index == 0 and not report.count and text.lstrip().startswith("["):
                raise report.stop("a JSON array", "one object a line", line=line, hint="rename the file to .json") from error
            report.add(_reason(error), "one JSON object a line", line=line)
            continue
        if isinstance(value, dict):
            yield Row(index, line, value)
        else:
            report.add(f"the row is {_kind(value)}", "one JSON object a line", line=line)
        index += 1


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _csv(path: Path, report: Report, delimiter: str = "") -> Iterator[Row]:
    """Cells as text; an empty cell is None and a cell `nan` or `NaN` is the number, which no text field accepts.

    Between cells stands a comma, or a semicolon where the header has no comma, as spreadsheets of many countries write it.
    """
    text = _text(path, report)
    if not delimiter:
        first = text.lstrip().partition("\n")[0]
        delimiter = ";" if ";" in first and "," not in first else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    index = 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise report.stop(f"not CSV: {error}", "quotes closed and doubled inside quotes", line=line) from error
        if not cells:
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            if "" in header or len(set(header)) < len(header):
                raise report.stop(f"header {', '.join(map(repr, header))}", "column names, each once and none empty", line=line)
            continue
        if len(cells) == len(header):
            pairs = zip(header, cells, strict=True)
            yield Row(index, line, {k: math.nan if cell in ("nan", "NaN") else cell or None for k, cell in pairs})
        else:
            report.add(f"{len(cells)} cells", f"{len(header)} as in the header: {', '.join(header)}", line=line)
        index += 1


def _tsv(path: Path, report: Report) -> Iterator[Row]:
    return _csv(path, report, "\t")


def _parquet(path: Path, report: Report) -> Iterator[Row]:
    try:
        import pyarrow.lib  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "train", "reading a Parquet file") from error
    try:
        rows = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except (pyarrow.lib.ArrowException, ValueError) as error:
        raise report.stop(f"not Parquet: {str(error).splitlines()[0]}", "a Parquet file") from error
    for index, values in enumerate(rows):
        yield Row(index, 0, values)


READERS: dict[str, Callable[[Path, Report], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
