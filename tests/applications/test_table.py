"""A user's file as rows with plain numbers and dates, and what is said about columns that may have been meant otherwise."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from qpeft.applications.columns import infer_fields
from qpeft.applications.table import read_table

TEXT = """id;sales;share;opened;rate;code
1;3,197;5%;29.02.2024;inf;a
2;0,222;10%;01.03.2024;1,5;b
3;1.250,5;12,5%;15.03.2024;-;a
4;7;0%;16.03.2024;2,5;b
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sales.csv"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_decimal_commas_percent_dates_and_infinity(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        table = read_table(file)
    assert [row["sales"] for row in table.rows] == ["3.197", "0.222", "1250.5", "7"]
    assert [row["share"] for row in table.rows] == ["5", "10", "12.5", "0"]
    assert table.rows[0]["opened"] == "2024-02-29"
    assert [row["rate"] for row in table.rows] == ["", "1.5", "", "2.5"]
    assert table.written[0]["sales"] == "3,197"
    assert caplog.messages == ["sales.csv, column rate: 1 infinite values are read as missing"]
    fields = {f.name: f for f in infer_fields(table.rows, table.columns, notations=table.notations)}
    assert (fields["sales"].low, fields["sales"].high) == (0.222, 1250.5)
    assert fields["share"].say("5") == "5 percent"
    assert (fields["opened"].kind, fields["opened"].say("2024-02-29")) == ("date", "2024-02-29")
    warning = fields["opened"].warning("2025-01-01")
    assert warning == "opened is 2025-01-01, outside 2024-02-29 to 2024-03-16 of the training rows"
    assert fields["opened"].refusal("soon") == "opened is 'soon', not a date"


def test_another_file_is_read_in_the_notation_of_the_first(file: Path, tmp_path: Path) -> None:
    first = read_table(file)
    other = tmp_path / "new.csv"
    other.write_text('sales,share\n"2,500",4%\n"1.234,5",x\n', encoding="utf-8")
    read = read_table(other, notations=dict(first.notations))
    assert [row["sales"] for row in read.rows] == ["2.500", "1234.5"]
    assert [row["share"] for row in read.rows] == ["4", "x"]


def test_a_file_of_another_program_is_read_in_its_own_notation(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "new.csv"
    other.write_text("sales,opened,rate\n25.423,2024-03-01,1.125\n1250.5,2024-03-02,2.250\n", encoding="utf-8")
    read = read_table(other, notations=dict(read_table(file).notations))
    assert [(row["sales"], row["opened"]) for row in read.rows] == [("25.423", "2024-03-01"), ("1250.5", "2024-03-02")]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["1,250", "2,500", "3,000"], "column x: 1,250 is read as 1250, and could be 1.250"),
        (
            ["1", "2", "3", "4", "5", "unknown"],
            "column x: 5 of 6 values are numbers or dates, 'unknown' is not",
        ),
        (["12%", "0.5", "3%", "0.25"], "column x: numbers or dates in several notations, such as 12% and 0.5"),
        (["03/04/2024", "05/06/2024"], "read as day/month, and could be month/day"),
    ],
)
def test_columns_in_doubt_are_named(values: list[str], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("x\ty\n" + "".join(f"{value}\ta\n" for value in values))
    with caplog.at_level(logging.WARNING):
        read_table(path)
    [message] = caplog.messages
    assert words in message


def test_the_label_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,y\n1,1.000\n2,2.000\n")
    assert [row["y"] for row in read_table(path, texts=("y",)).rows] == ["1.000", "2.000"]
