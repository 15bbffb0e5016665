"""Numbers and dates as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpeft.applications.notation import Notation, find_notation


@pytest.mark.parametrize(
    ("values", "plain", "mark"),
    [
        (["3", "-4.50", "1e-3", ".5"], ["3", "-4.50", "1e-3", ".5"], ""),
        (["1,234", "12,345,678.9", "5"], ["1234", "12345678.9", "5"], ""),
        (["3,197", "0,222"], ["3.197", "0.222"], ""),
        (["1.234,56", "7"], ["1234.56", "7"], ""),
        (["1.234.567", "3"], ["1234567", "3"], ""),
        (["12 345,6", "1\u00a0000"], ["12345.6", "1000"], ""),
        (["1'234.50", "2"], ["1234.50", "2"], ""),
        (["12%", "3.5 %"], ["12", "3.5"], "%"),
        (["$1,200", "$-3.50", "-$4"], ["1200", "-3.50", "-4"], "$"),
        (["1.200,00 €", "3,5 €"], ["1200.00", "3.5"], "€"),
        (["(1,234.5)", "12"], ["-1234.5", "12"], ""),
        (["−3", "4", "–"], ["-3", "4", ""], ""),
        (["3", "inf", "-Infinity"], ["3", "", ""], ""),
        (["inf", "-"], ["", ""], ""),
        (["12,34,567.5", "1,23,456", "7"], ["1234567.5", "123456", "7"], ""),
    ],
)
def test_numbers(values: list[str], plain: list[str], mark: str) -> None:
    notation = find_notation(values)
    assert notation is not None
    assert [notation.plain(value) for value in values] == plain
    assert notation.mark == mark
    assert notation.doubt == ""
    assert all(float(value) == float(value) for value in plain if value)


def test_what_may_be_read_in_two_ways_is_said() -> None:
    assert find_notation(["3,197", "1,250"]) == Notation(doubt="3,197 is read as 3197, and could be 3.197")
    assert find_notation(["3,197", "1,250"], semicolons=True) == Notation(",", doubt="3,197 is read as 3.197, and could be 3197")
    assert find_notation(["3.197", "1.250"], semicolons=True) == Notation()


@pytest.mark.parametrize(
    ("values", "plain"),
    [
        (["2024-02-29", "2023-12-01"], "2024-02-29"),
        (["29.02.2024", "01.12.2023"], "2024-02-29"),
        (["29.2.24"], "2024-02-29"),
        (["02/29/2024", "12/01/2023"], "2024-02-29"),
        (["29/02/2024", "01/12/2023"], "2024-02-29"),
        (["29 Feb 2024"], "2024-02-29"),
        (["2024-02-29 13:45:00", "2024-03-01 00:00:00"], "2024-02-29"),
        (["2024-02-29T13:45:00Z", "2024-03-01T00:00:00+01:00"], "2024-02-29"),
        (["February 29, 2024"], "2024-02-29"),
        (["29/02/24"], "2024-02-29"),
        (["2/29/2024 1:45 PM"], "2024-02-29"),
    ],
)
def test_dates(values: list[str], plain: str) -> None:
    notation = find_notation(values)
    assert notation is not None
    assert notation.plain(values[0]) == plain
    assert notation.doubt == ""


def test_a_date_that_may_be_another_is_said() -> None:
    notation = find_notation(["03/04/2024", "05/06/2024"])
    assert notation is not None
    assert "03/04/2024 is read as day/month, and could be month/day" in notation.doubt
    assert notation.plain("03/04/2024") == "2024-04-03"


@pytest.mark.parametrize(
    "values", [["a", "1"], ["1,5", "2.5"], ["12%", "3"], ["$3", "3 €"], ["30.02.2024"], ["1-2"], ["-"], ["12,34,5"]]
)
def test_other_texts_are_neither(values: list[str]) -> None:
    assert find_notation(values) is None


@given(st.lists(st.floats(-1e9, 1e9).map(lambda x: round(x, 2)), min_size=1), st.sampled_from([(",", "."), (".", ",")]))
def test_columns_written_in_either_notation_come_back(numbers: list[float], marks: tuple[str, str]) -> None:
    texts = [f"{x:,.2f}".translate(str.maketrans({",": marks[0], ".": marks[1]})) for x in numbers]
    notation = find_notation(texts)
    assert notation is not None
    assert [float(notation.plain(text) or "nan") for text in texts] == numbers
