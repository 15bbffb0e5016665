"""Rows of a data file, each with the line it starts on, by the file's extension."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from qpeft.training.data.json_files import read_json, read_jsonl
from qpeft.training.data.problems import Report, Row
from qpeft.training.data.table_files import read_csv, read_parquet, read_tsv, read_workbook

READERS: dict[str, Callable[[Path, Report], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".xlsx": read_workbook,
    ".parquet": read_parquet,
}


def read_rows(path: str | Path, *, encoding: str | None = None) -> list[Row]:
    """All rows of a local file.

    Args:
        path: a file with one of the extensions of `READERS`.
        encoding: of a text file; by default found out (see `text_files.read_text`).

    Raises:
        DataError: the file cannot be read; names every unreadable row (20 shown, all counted).
    """
    path = Path(path)
    report = Report(str(path), encoding)
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
