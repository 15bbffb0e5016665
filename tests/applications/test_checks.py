"""Findings about a table, each with the column's name, and none about a sound one."""

from __future__ import annotations

import random

import pytest

from qpeft.applications.columns import infer_fields
from qpeft.applications.preparation.checks import findings, lost_texts

COLUMNS = ("age", "town", "note")


def rows(n: int = 200) -> list[dict[str, str]]:
    rng = random.Random(0)
    made = []
    for index in range(n):
        age = rng.randint(18, 80)
        bad = (age < 40) ^ (rng.random() < 0.2)
        made.append({"age": str(age), "town": rng.choice("ABC"), "note": f"case {index} seen", "y": "bad" if bad else "good"})
    return made


def test_a_sound_table_has_no_findings() -> None:
    assert findings(rows(), COLUMNS, "y") == []


def changed(column: str, value: object) -> list[dict[str, str]]:
    return [row | {column: str(value(row, index) if callable(value) else value)} for index, row in enumerate(rows())]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("town", lambda row, i: "closed" if row["y"] == "bad" else "open", "column town gives the label y away"),
        ("age", lambda row, i: 700 + i % 90 if row["y"] == "bad" else i % 600, "column age gives the label y away"),
        ("note", lambda row, i: f"case {i} turned out {row['y']}", "column note gives the label y away"),
        ("town", "here", "column town: 'here' in every row"),
        ("town", "", "column town: empty in every row"),
        ("age", lambda row, i: 1000 + i, "column age: another value in each row; if it is an identifier: --drop age"),
        ("y", lambda row, i: row["y"] if i % 9 else f"{row['y'].upper()}.", "the labels 'BAD.' and 'bad' differ by case"),
        ("y", lambda row, i: row["y"] if i > 2 else "ugly", "column y: the class 'ugly' has 3 rows"),
    ],
)
def test_findings(column: str, value: object, words: str) -> None:
    found = findings(changed(column, value), COLUMNS, "y")
    assert any(words in finding for finding in found), found


def test_rows_with_another_label() -> None:
    given = [*rows(), *(row | {"y": "good"} for row in rows() if row["y"] == "bad")]
    bad = sum(row["y"] == "bad" for row in rows())
    assert findings(given, COLUMNS, "y") == [f"column y: {2 * bad} of {200 + bad} rows equal a row with another label"]


def test_few_rows() -> None:
    assert findings(rows(12), COLUMNS, "y")[0] == "12 rows, too few to learn from or to measure anything"


def test_a_leak_in_labels_that_differ_by_case() -> None:
    given = [row | {"town": row["y"], "y": row["y"].upper() if index % 50 == 0 else row["y"]} for index, row in enumerate(rows())]
    assert any("gives the label" in finding for finding in findings(given, COLUMNS, "y"))


def test_texts_that_are_cut_are_counted() -> None:
    given = [{"note": "word " * (10 + index)} for index in range(20)]
    assert lost_texts(given, infer_fields(given, ["note"], max_text=100)) == [
        "column note: 9 of 20 texts are cut to 100 characters; the longest has 145"
    ]
    assert lost_texts(given, infer_fields(given, ["note"], max_text=0)) == []
