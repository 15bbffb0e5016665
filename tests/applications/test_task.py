from __future__ import annotations

from pathlib import Path

import pytest

from qpeft.applications.columns import Field, infer_fields, spelled
from qpeft.applications.task import Group, Task, group_order
from qpeft.errors import DataError

ROWS = [
    {"Age": str(20 + i), "job_title": "clerk" if i % 2 else "BOSS", "TSH": "" if i == 3 else f"{i / 4}", "remark": f"text {i}"}
    for i in range(12)
]


@pytest.fixture
def task() -> Task:
    fields = infer_fields(
        ROWS, ["Age", "job_title", "TSH"], units={"Age": "years"}, values={"job_title": {"clerk": "office clerk"}}
    )
    return Task(
        name="t", title="T", kind="classification", instruction="Ill?", target="ill", fields=fields, labels={"1": "yes", "0": "no"}
    )


def test_groups_are_in_the_order_of_their_edges() -> None:
    group = Group(name="age", field="age", edges=(5, 30, 100))
    names = {group.of({"age": age}) for age in ("1", "7", "40", "200", "")} | {"female"}
    assert sorted(names, key=group_order) == ["below 5", "5 to below 30", "30 to below 100", "100 and above", "female", "unknown"]


def test_a_row_is_one_sentence(task: Task) -> None:
    row = {"Age": "31.0", "job_title": "clerk", "TSH": "", "ill": "1"}
    assert task.sentence(row) == "Age is 31 years; job title is office clerk; TSH is not known."
    assert task.prompt(row).startswith("Ill?\n\nAge is")
    assert task.answer(row) == "yes"


def test_the_schema_is_that_of_the_rows() -> None:
    age, job, tsh, remark = infer_fields(ROWS, ["Age", "job_title", "TSH", "remark"])
    assert (age.kind, age.low, age.high, age.optional) == ("number", 20, 31, False)
    assert (job.kind, dict(job.values)) == ("category", {"BOSS": "BOSS", "clerk": "clerk"})
    assert (tsh.kind, tsh.optional) == ("number", True)
    assert remark.kind == "text"
    assert [spelled(n) for n in ("creditAmount", "TSH_measured", "x")] == ["credit amount", "TSH measured", "x"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Age": "old"}, "not a number"),
        ({"Age": "nan"}, "outside|not a number"),
        ({"Age": "inf"}, "not a number"),
        ({"Age": ""}, "Age is missing"),
        ({"job_title": "pilot"}, "'pilot', which no training row had"),
    ],
)
def test_a_row_out_of_the_schema_is_refused(task: Task, change: dict[str, str], words: str) -> None:
    row = {"Age": "25", "job_title": "clerk", "TSH": ""}
    assert task.refusals(row) == []
    (reason,) = task.refusals(row | change)
    assert any(word in reason for word in words.split("|"))


@pytest.mark.parametrize("age", ["19", "31.5"])
def test_a_number_out_of_range_is_answered_with_a_warning(task: Task, age: str) -> None:
    row = {"Age": age, "job_title": "clerk", "TSH": ""}
    assert task.refusals(row) == []
    assert task.warnings(row) == [f"Age is {age}, outside 20 to 31 of the training rows"]
    assert task.warnings(row | {"Age": "25"}) == []


def test_long_text_is_cut_at_a_space() -> None:
    f = Field(name="x", words="x", kind="text", max_text=12)
    assert f.say("one two three four") == "one two ..."
    assert f.say("short") == "short"
    assert f.warning("one two three four") == "x was cut from 18 to 12 characters"
    assert Field(name="x", words="x", kind="text", max_text=0).say("word " * 500) == ("word " * 500).strip()


def test_groups() -> None:
    age = Group(name="age", field="a", edges=(25, 40))
    assert [age.of({"a": v}) for v in ("24.9", "25", "40", "", "?")] == [
        "below 25",
        "25 to below 40",
        "40 and above",
        "unknown",
        "unknown",
    ]
    assert Group(name="sex", field="s", values={"F": "female"}).of({"s": "F"}) == "female"


def test_a_task_reads_back(task: Task, tmp_path: Path) -> None:
    task.write(tmp_path)
    assert Task.read(tmp_path / "task.json") == task
    (tmp_path / "task.json").write_text('{"name": 1, "colour": 2}')
    with pytest.raises(DataError, match="not a task"):
        Task.read(tmp_path / "task.json")
