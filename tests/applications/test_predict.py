"""Predictions from files as people have them: broken, large, interrupted."""

from __future__ import annotations

import csv
import re
import time
from pathlib import Path

import pytest

from qpeft.applications import predict as module
from qpeft.applications.columns import number
from qpeft.applications.predict import Decision, predict
from qpeft.applications.preparation.own_table import own_data
from qpeft.applications.preparation.prepare import prepare, read_part, read_task
from qpeft.applications.table import read_table
from qpeft.errors import DataError, RunError
from tests.applications.clinic import write_csv


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


HEAD, ROW = "visit_age,smoker,Glucose", "40,y,100"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        (f"{HEAD}\n", "holds no rows"),
        ("visit_age,smoker\n40,y\n", r"columns are missing.*|Glucose"),
        (f"{HEAD}\n{ROW},7\n", "4 cells"),
        (f"{HEAD}\n40,y\n", "2 cells"),
        (f"{HEAD},\n{ROW},\n", "column names, each once and none empty"),
        (f'{HEAD}\n40,"y,100\n', "not CSV"),
        (f"{HEAD},smoker\n{ROW},y\n", "each once"),
    ],
)
def test_files_that_are_no_table_of_the_task(text: str, words: str, run: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text(text)
    with pytest.raises(DataError, match=words):
        predict(run, source, tmp_path / "out.csv")
    assert not list(tmp_path.glob("out.csv*"))


def test_files_from_spreadsheets(run: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    text = f'id,{HEAD},remark\r\n1,40,y,100,"a ""quoted"" remark,\nwith a second line"\r\n2, 41 ,n,NA,\r\n3,42,y,?,x\r\n'
    source.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert predict(run, source, tmp_path / "out.csv") == {"rows": 3, "warned": 0, "refused": 0}
    out = read(tmp_path / "out.csv")
    assert [row["id"] for row in out] == ["1", "2", "3"]  # the byte order mark is no part of a name
    assert out[0]["remark"] == 'a "quoted" remark,\nwith a second line'
    assert out[1]["Glucose"] == out[2]["Glucose"] == ""
    assert all(row["label"] in ("yes", "no") for row in out)
    source.write_bytes(text.encode("utf-16"))
    predict(run, source, tmp_path / "other.csv")
    assert read(tmp_path / "other.csv") == out


def test_a_killed_prediction_goes_on(run: Path, clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row["values"] for part in ("test", "train") for row in read_part(clinic, part)][:22]
    source, target = write_csv(tmp_path / "in.csv", rows), tmp_path / "out.csv"
    predict(run, source, tmp_path / "whole.csv")
    monkeypatch.setattr(module, "CHUNK", 4)
    calls, answer = [], module.label_probabilities

    def dying(model: object, tokenizer: object, task: object, prompts: list[str], **more: object) -> object:
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(model, tokenizer, task, prompts, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "label_probabilities", dying)
    with pytest.raises(KeyboardInterrupt):
        predict(run, source, target)
    assert not target.exists()
    [part] = tmp_path.glob("out.csv.*.part")
    part.write_text(part.read_text() + "cut sho")  # a line that the kill cut in two
    assert predict(run, source, target) == {"rows": 22, "warned": 0, "refused": 0}
    assert len(calls) == 3 + 4  # two chunks of six were there already
    assert not list(tmp_path.glob("*.part"))
    assert [row["label"] for row in read(target)] == [row["label"] for row in read(tmp_path / "whole.csv")]

    part.write_text((tmp_path / "out.csv").read_text())  # what another input left is not believed
    calls.clear()
    calls += [0] * 3
    predict(run, write_csv(tmp_path / "in.csv", rows[::-1]), target, overwrite=True)
    assert len(calls) == 3 + 6


def test_a_large_file_is_refused_row_by_row_without_a_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qpeft.progress.EVERY_S", 0.0)
    source = tmp_path / "in.csv"
    source.write_text(f"{HEAD}\n" + "40,maybe,100\n" * 100_000)
    began = time.monotonic()
    assert predict(run, source, tmp_path / "out.csv", progress=True) == {"rows": 100_000, "warned": 0, "refused": 100_000}
    assert time.monotonic() - began < 60
    assert "100,000/100,000" in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_text().count("\n") == 100_001


def test_numbers_and_missing_values_as_people_write_them(tmp_path: Path) -> None:
    assert [number(text) for text in ("1,234", "-12,345.5", "1,23", "1 234", "12%", "nan", "1e400", " 7 ")] == [
        1234,
        -12345.5,
        None,
        None,
        None,
        None,
        None,
        7,
    ]
    kinds = ("plain", 'with "quotes", and commas', "on two\nlines")
    rows = [{"weight": "5", "note": "nobody knows", "kind": "NA"}]
    rows += [
        {"weight": f"{1000 + i:,}" if i % 9 else "NA", "note": f"{kinds[i % 3]} {i}", "kind": "rare" if i % 12 == 0 else "common"}
        for i in range(120)
    ]
    file = write_csv(tmp_path / "a.csv", rows)
    assert [row["note"] for row in read_table(file).rows] == [row["note"] for row in rows]
    made = prepare(own_data(file, "kind", groups=("weight",)), tmp_path / "out")
    assert made.left_out == 1  # a row without a label
    task = read_task(made.folder)
    [weight, note] = task.fields
    assert (weight.kind, weight.optional, note.kind) == ("number", True, "text")
    assert weight.low is not None
    assert 1000 <= weight.low < 1010
    assert task.positive == "rare"
    assert task.sentence({"weight": "1050", "note": "x"}) == "Weight is 1050; note is x."
    assert len(task.groups[0].edges) == 3


def test_probabilities_warnings_and_the_input_s_own_columns(run: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(f"{HEAD},label\n{ROW},mine\n95,y,100,mine\n40,maybe,100,mine\n")
    assert predict(run, source, target) == {"rows": 3, "warned": 1, "refused": 1}
    first, second, third = read(target)
    probabilities = ["probability_no", "probability_yes"]
    assert list(first) == [*HEAD.split(","), "label", "predicted_label", "probability", *probabilities, "warnings", "refused"]
    assert {row["label"] for row in (first, second, third)} == {"mine"}
    assert float(first["probability_no"]) + float(first["probability_yes"]) == pytest.approx(1, abs=2e-6)
    assert first["probability"] == first[f"probability_{first['predicted_label']}"]
    assert re.fullmatch(r"visit_age is 95, outside \d+ to \d+ of the training rows", second["warnings"])
    assert second["predicted_label"] in ("yes", "no")
    assert third["refused"].startswith("smoker is 'maybe'")
    assert third["probability_yes"] == ""


def test_a_threshold_and_costs_move_the_label(run: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text(f"{HEAD}\n" + "".join(f"{age},y,{glucose}\n" for age in (30, 50, 70) for glucose in (80, 140, 190)))

    def labels(decision: Decision) -> list[str]:
        predict(run, source, tmp_path / "out.csv", decision=decision, overwrite=True)
        return [row["label"] for row in read(tmp_path / "out.csv")]

    predict(run, source, tmp_path / "plain.csv")
    likely = sorted(float(row["probability_yes"]) for row in read(tmp_path / "plain.csv"))
    middle = (likely[3] + likely[4]) / 2
    assert labels(Decision(threshold=middle)).count("yes") == 5
    assert set(labels(Decision(threshold=0.0))) == {"yes"}
    cost = {"yes": {"no": (1 - middle) / middle}, "no": {"yes": 1.0}}  # of equal cost at the threshold
    assert labels(Decision(cost=cost)) == labels(Decision(threshold=middle))
    with pytest.raises(RunError, match="decide twice"):
        labels(Decision(threshold=0.5, cost=cost))
    with pytest.raises(RunError, match="no such answer; got 'perhaps'; allowed: no, yes"):
        labels(Decision(cost={"perhaps": {"no": 1.0}}))


def test_the_input_is_never_overwritten(run: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text(f"{HEAD}\n{ROW}\n")
    (tmp_path / "link.csv").symlink_to(source)
    for target in (source, tmp_path / "link.csv"):
        with pytest.raises(DataError, match="the output is the input"):
            predict(run, source, target, overwrite=True)
    assert source.read_text() == f"{HEAD}\n{ROW}\n"
