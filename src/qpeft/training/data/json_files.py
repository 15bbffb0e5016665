"""JSON (an array of rows) and JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qpeft.errors import DataError
from qpeft.training.data.problems import Report, Row
from qpeft.training.data.text_files import line_of, read_text


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


def read_json(path: Path, report: Report) -> Iterator[Row]:
    """Rows of a JSON file: an array of objects, decoded one at a time.

    Args:
        path: the file; encodings as in `read_text`.
        report: gets a problem for each element that is no object; such elements yield no row.

    Raises:
        DataError: the file is empty, not text, not JSON or not one array. Raised while the rows are iterated.
    """
    text = read_text(path, report)
    position = _skip_space(text, 0)
    if text[position] != "[":
        raise _not_an_array(text, position, report)
    position = _skip_space(text, position + 1)
    line, counted, index = line_of(text, position), position, 0
    closed = text[position : position + 1] == "]"
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = _decoder.raw_decode(text, position)
        except ValueError as error:
            at = error.pos if isinstance(error, json.JSONDecodeError) else position
            cut = not text[at:].strip()
            raise report.stop("the file ends inside the array" if cut else _reason(error), line=line_of(text, at)) from error
        if isinstance(value, dict):
            yield Row(index, line, value)
        else:
            report.add(f"the row is {_kind(value)}", "an object with named fields", line=line)
        index += 1
        position = _skip_space(text, position)
        mark = text[position : position + 1]
        if not mark:
            raise report.stop("the file ends inside the array", "',' or ']'", line=line_of(text, position))
        if mark not in ",]":
            raise report.stop(f"not JSON: {mark!r} after a row", "',' or ']'", line=line_of(text, position))
        closed = mark == "]"
        if not closed:
            position = _skip_space(text, position + 1)
    position = _skip_space(text, position + 1)
    if position < len(text):
        raise report.stop("text after the array", "one array of rows", line=line_of(text, position))


def _not_an_array(text: str, position: int, report: Report) -> DataError:
    """Tell JSON Lines, a single object and other text apart."""
    try:
        value, end = _decoder.raw_decode(text, position)
    except ValueError as error:
        at = error.pos if isinstance(error, json.JSONDecodeError) else position
        return report.stop(_reason(error), "an array of rows: [{...}, ...]", line=line_of(text, at))
    if isinstance(value, dict) and text[end:].strip().startswith("{"):
        return report.stop("one object a line: this is JSON Lines", "an array of rows", hint="rename the file to .jsonl")
    keys = f" with the keys {', '.join(list(value)[:8])}" if isinstance(value, dict) else ""
    what = f"the file holds {_kind(value)}{keys}"
    return report.stop(what, "an array of rows: [{...}, ...]", line=line_of(text, position))


def read_jsonl(path: Path, report: Report) -> Iterator[Row]:
    """Rows of a JSON Lines file, one object per line; blank lines are skipped.

    Args:
        path: the file; encodings as in `read_text`.
        report: gets a problem for each line that is not JSON or no object; such lines yield no row.

    Raises:
        DataError: the file is empty, not text, or a JSON array over several lines. Raised while the rows are iterated.
    """
    index = 0
    for line, text in enumerate(read_text(path, report).split("\n"), start=1):
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


def read_jsonl_lines(path: Path, report: Report) -> Iterator[Row]:
    """Rows of a UTF-8 JSON Lines file, read line by line.

    Args:
        path: the file.
        report: collects the problems.

    Yields:
        One row per line that is not empty.

    Raises:
        DataError: a line that is no JSON object in UTF-8.
    """
    index = 0
    with path.open("rb") as stream:
        for line, data in enumerate(stream, start=1):
            try:
                text = data.decode("utf-8-sig" if line == 1 else "utf-8")
                if not text.strip():
                    continue
                value = _decoder.decode(text.strip())
            except ValueError as error:
                raise report.stop(_reason(error), "one JSON object per line, in UTF-8", line=line) from error
            if not isinstance(value, dict):
                raise report.stop(f"the row is {_kind(value)}", "one JSON object per line", line=line)
            yield Row(index, line, value)
            index += 1


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
