"""CSV, TSV, Excel workbooks and Parquet."""

from __future__ import annotations

import csv
import datetime
import io
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qpeft.errors import MissingDependencyError
from qpeft.training.data.problems import Report, Row
from qpeft.training.data.text_files import read_text

logger = logging.getLogger(__name__)

DELIMITERS = ",;\t|"
_ABOVE = "delete what stands above the column names"


def delimiter_of(text: str) -> str:
    """The delimiter of a CSV text: of comma, semicolon, tab and bar the one that splits its first lines into equal numbers of
    cells, most cells first; a comma for a single column.
    """
    sample = text.lstrip("\n\r").splitlines()[:50]
    best, most = ",", 1
    for delimiter in DELIMITERS:
        try:
            widths = [len(cells) for cells in csv.reader(sample, delimiter=delimiter) if cells]
        except csv.Error:
            continue
        if widths and widths[0] > most and widths.count(widths[0]) > 0.8 * len(widths):
            best, most = delimiter, widths[0]
    if most > 1:
        return best
    return max(DELIMITERS, key=lambda mark: (sample[0].count(mark) if sample else 0, mark == ","))


def read_csv(path: Path, report: Report, delimiter: str = "") -> Iterator[Row]:
    """Rows of a CSV file, cells as text. An empty cell is None. A cell `nan` or `NaN` is the number, which no text field accepts.

    Args:
        path: the file, with a header line.
        report: collects the problems; a row with another number of cells is one.
        delimiter: one character; "" finds it out from the text.

    Raises:
        DataError: the text cannot be read as CSV.
    """
    text = read_text(path, report, legacy=True)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or delimiter_of(text), strict=True)
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
            header = _header(cells, report, line)
            continue
        if len(cells) == len(header):
            pairs = zip(header, cells, strict=True)
            yield Row(index, line, {k: math.nan if cell in ("nan", "NaN") else cell or None for k, cell in pairs})
        elif any(cell.strip() for cell in cells):
            _wider(len(cells), header, report, line)
        index += 1


def read_tsv(path: Path, report: Report) -> Iterator[Row]:
    """Rows of a file of tab-separated values; otherwise as `read_csv`.

    Args:
        path: the file, with a header line.
        report: collects the problems.
    """
    return read_csv(path, report, "\t")


def _header(cells: Sequence[Any], report: Report, line: int) -> list[str]:
    """Column names; a first column without a name, such as the row numbers that pandas writes, is called "row"."""
    header = ["" if cell is None else str(cell).strip() for cell in cells]
    if header[0] == "" and len(header) > 1 and "row" not in header:
        header[0] = "row"
    if "" in header or len(set(header)) < len(header):
        raise report.stop(
            f"header {', '.join(map(repr, header))}",
            "column names, each once and none empty",
            line=line,
            hint="name each column; " + _ABOVE,
        )
    return header


def _wider(cells: int, header: Sequence[str], report: Report, line: int) -> None:
    """Note a row with more or fewer cells than the header; one cell above a table is its title, and ends the reading."""
    if len(header) == 1 and cells > 1 and not report.count:
        raise report.stop(f"{cells} cells below the one of the first line, {header[0]!r}", "column names", line=line, hint=_ABOVE)
    report.add(f"{cells} cells", f"{len(header)} as in the header: {', '.join(header)}", line=line)


def read_workbook(path: Path, report: Report) -> Iterator[Row]:
    """The first sheet of an Excel workbook with rows; numbers and dates as they are, formulas by their stored values.

    Args:
        path: an .xlsx file whose first row is the header.
        report: collects the problems.

    Raises:
        DataError: no Excel workbook.
        MissingDependencyError: openpyxl is not installed.
    """
    try:
        import openpyxl  # type: ignore[import-untyped]
        from openpyxl.utils.exceptions import InvalidFileException  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("openpyxl", "applications", "reading an Excel workbook") from error
    from zipfile import BadZipFile

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (InvalidFileException, BadZipFile, KeyError, ValueError, OSError) as error:
        raise report.stop(f"not an Excel workbook: {error}", "an .xlsx file", hint="save the table as .xlsx or .csv") from error
    try:
        filled = [
            sheet for sheet in book.worksheets if any(any(c is not None for c in row) for row in sheet.iter_rows(values_only=True))
        ]
        if len(filled) > 1:
            names = ", ".join(repr(sheet.title) for sheet in filled)
            logger.warning("%s has %d sheets with cells (%s); only %r is read", path, len(filled), names, filled[0].title)
        if filled:
            yield from _sheet(filled[0].iter_rows(values_only=True), report)
    finally:
        book.close()


def _sheet(lines: Iterable[Sequence[Any]], report: Report) -> Iterator[Row]:
    header: list[str] = []
    index = 0
    for line, cells in enumerate(lines, start=1):
        if all(cell is None or str(cell).strip() == "" for cell in cells):
            continue
        if not header:
            while cells and cells[-1] is None:
                cells = cells[:-1]
            header = _header(cells, report, line)
            continue
        if any(cell is not None for cell in cells[len(header) :]):
            _wider(len(cells), header, report, line)
        yield Row(index, line, {name: _cell(cell) for name, cell in zip(header, cells, strict=False)})
        index += 1


def _cell(value: Any) -> Any:
    """A day without a time as a date; whole numbers, which workbooks store as 3.0, as 3."""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_parquet(path: Path, report: Report) -> Iterator[Row]:
    """Rows of an Apache Parquet file.

    Args:
        path: the file.
        report: collects the problems.

    Raises:
        DataError: no Parquet file.
        MissingDependencyError: pyarrow is not installed.
    """
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
