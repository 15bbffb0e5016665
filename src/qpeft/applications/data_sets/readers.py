"""Bytes of a published file to rows: a list of `{column: text}`, an empty text where a value is missing."""

from __future__ import annotations

import csv
import io
import json
import lzma
import pickle
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from qpeft.errors import DataError, MissingDependencyError

Rows = list[dict[str, str]]


def read_csv(data: bytes, delimiter: str = ",") -> Rows:
    """Rows of a CSV table with a header line. Columns without a name (a trailing comma) are dropped.

    Args:
        data: the file's bytes, UTF-8.
        delimiter: one character.
    """
    reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True)
    return [{k: (v or "").strip() for k, v in row.items() if k} for row in reader]


def read_arff(data: bytes) -> Rows:
    """Weka's attribute-relation file of numbers and categories, as scipy reads it; `?` is missing."""
    try:
        from scipy.io import arff
    except ImportError as error:
        raise MissingDependencyError("scipy", "applications", "reading an ARFF file") from error
    try:
        rows, header = arff.loadarff(io.StringIO(data.decode("utf-8")))
    except (arff.ArffError, NotImplementedError, ValueError, StopIteration) as error:
        raise DataError(f"not ARFF: {error}", expected="an ARFF file of numbers and categories") from error
    return [{name: _text(value) for name, value in zip(header.names(), row, strict=True)} for row in rows]


def read_orange(data: bytes, *, incomplete: bool = False) -> Rows:
    """Orange's `.tab`: three header lines (names, types, roles), then tab-separated rows.

    Args:
        data: the file's bytes, UTF-8.
        incomplete: keep lines with an empty cell, which are skipped otherwise.
    """
    lines = data.decode("utf-8").split("\n")
    names = lines[0].split("\t")
    cells = (line.rstrip("\r").split("\t") for line in lines[3:])
    return [dict(zip(names, row, strict=True)) for row in cells if len(row) == len(names) and (incomplete or all(row))]


def read_jsonl(data: bytes) -> list[dict[str, Any]]:
    """JSON Lines."""
    return [json.loads(line) for line in data.decode("utf-8").splitlines() if line.strip()]


class _FrameUnpickler(pickle.Unpickler):
    """Only what a pandas data frame of plain columns is made of; anything else is refused, so that no code of the file runs."""

    allowed = frozenset(
        {
            ("pandas.core.frame", "DataFrame"),
            ("pandas.core.internals.managers", "BlockManager"),
            ("pandas._libs.internals", "_unpickle_block"),
            ("pandas.core.indexes.base", "_new_Index"),
            ("pandas.core.indexes.base", "Index"),
            ("pandas.core.indexes.range", "RangeIndex"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("builtins", "slice"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")
        if (module, name) not in self.allowed:
            raise DataError(f"the pickle asks for {module}.{name}", expected="a data frame of plain columns")
        return super().find_class(module, name)


def read_frame(data: bytes) -> Rows:
    """An xz-compressed pickle of a pandas data frame."""
    try:
        import pandas  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("pandas", "applications", "reading a pickled data frame") from error
    frame = _FrameUnpickler(io.BytesIO(lzma.decompress(data))).load()
    return [{str(k): _text(v) for k, v in row.items()} for row in frame.to_dict("records")]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8")
        return "" if value == "?" else str(value)
    if value is None or value != value:  # NaN is unequal to itself
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def read_icd(data: bytes) -> Rows:
    """ICD-10-CM's tabular list: a row a code, with its text, its chapter and its category (the first three characters)."""
    root = ElementTree.fromstring(data)
    return [row for chapter in root.findall("chapter") for row in _chapter(chapter)]


def _chapter(chapter: ElementTree.Element) -> Iterator[dict[str, str]]:
    title = re.sub(r"\s*\([^)]*\)$", "", (chapter.findtext("desc") or "").strip())
    for code in chapter.iter("diag"):
        name, text = (code.findtext("name") or "").strip(), (code.findtext("desc") or "").strip()
        if name and text:
            yield {"code": name, "category": name[:3], "text": text, "chapter": title}
