"""Tables as people have them: delimiters, encodings, workbooks."""

from __future__ import annotations

import datetime
import logging
from pathlib import Path

import pytest

from qpeft.errors import DataError
from qpeft.training.data.files import read_rows
from qpeft.training.data.table_files import delimiter_of


def values(path: Path, **options: str) -> list[dict[str, object]]:
    return [row.values for row in read_rows(path, **options)]


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("a,b\n1,2\n", ","),
        ("a;b\n1;2\n", ";"),
        ("a\tb\n1\t2\n", "\t"),
        ("a|b\n1|2\n", "|"),
        ("note, free;price\nx, y;3,5\n", ";"),
        ('"a;b",c\n"1;2;3",4\n', ","),
        ("Amount;Price\n1,5;2,5\n", ";"),
        ('only\nx\n"y, z"\n', ","),
        ("\n\na;b\n1;2\n", ";"),
    ],
)
def test_delimiters(text: str, delimiter: str, tmp_path: Path) -> None:
    assert delimiter_of(text) == delimiter
    found = values(write(tmp_path / "table.csv", text))
    assert len(found[0]) == (1 if text.startswith("only") else 2)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_name_themselves_are_read_in_silence(
    encoding: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert values(write(tmp_path / "t.csv", "name,x\nMüller,1\n".encode(encoding))) == [{"name": "Müller", "x": "1"}]
    assert not caplog.text


def test_windows_1252_is_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "t.csv", "name,x\nok,1\nMüller €,2\n".encode("cp1252"))
    with caplog.at_level(logging.WARNING):
        assert values(path)[1] == {"name": "Müller €", "x": "2"}
    assert "t.csv:3: byte 0xfc is not UTF-8; read as Windows-1252: 'Müller €,2'" in caplog.text


def test_another_encoding_is_named_by_the_user(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "名前,x\n張,1\n".encode("gb18030"))
    assert values(path, encoding="gb18030") == [{"名前": "張", "x": "1"}]
    with pytest.raises(DataError, match="unknown encoding 'gb'; expected a name such as utf-8"):
        values(path, encoding="gb")
    with pytest.raises(DataError, match="is not ascii"):
        values(path, encoding="ascii")
    with pytest.raises(DataError, match=r"t\.csv:2: byte 0x81 is not UTF-8.*name its encoding, such as gb18030"):
        values(write(tmp_path / "t.csv", b"a,b\n\x81,1\n"))
    with pytest.raises(DataError, match=r"is not UTF-8"):
        read_rows(write(tmp_path / "t.jsonl", '{"text": "ü"}'.encode("cp1252")))


def test_the_row_numbers_that_pandas_writes(tmp_path: Path) -> None:
    assert values(write(tmp_path / "t.csv", ",a\n0,x\n")) == [{"row": "0", "a": "x"}]
    with pytest.raises(DataError, match="column names, each once and none empty"):
        values(write(tmp_path / "t.csv", "a,,b\n1,2,3\n"))


def test_workbooks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "empty"
    sheet = book.create_sheet("rows")
    for line in (
        [None, None],
        ["amount", "day", "share", "note", None],
        [3, datetime.datetime(2024, 2, 29), 0.5, None],
        [4.0, datetime.datetime(2024, 2, 29, 13, 30), 1e-3, "x"],
    ):
        sheet.append(line)
    book.create_sheet("notes").append(["a remark"])
    book.save(tmp_path / "t.xlsx")
    with caplog.at_level(logging.WARNING):
        rows = read_rows(tmp_path / "t.xlsx")
    assert [row.values for row in rows] == [
        {"amount": 3, "day": "2024-02-29", "share": 0.5, "note": None},
        {"amount": 4, "day": "2024-02-29T13:30:00", "share": 0.001, "note": "x"},
    ]
    assert [row.line for row in rows] == [3, 4]
    assert "2 sheets with cells ('rows', 'notes'); only 'rows' is read" in caplog.text
    with pytest.raises(DataError, match="not an Excel workbook"):
        read_rows(write(tmp_path / "false.xlsx", "a,b\n"))
