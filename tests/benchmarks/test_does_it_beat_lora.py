"""docs/does-it-beat-lora.md and its details hold the tables that the committed records make."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from benchmarks.does_it_beat_lora import DETAILS, PAGE, TIMES, cases, main, reruns

from qpeft.study.records import StudyRecords

ROOT = Path(__file__).parents[2]


def test_the_committed_tables_are_those_of_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "docs" / "benchmarks").mkdir(parents=True)
    (tmp_path / "docs" / "images").mkdir()
    for page in (PAGE, DETAILS, TIMES):
        shutil.copy(page, tmp_path / page)
    main(["--docs", str(tmp_path / "docs")])
    for page in (PAGE, DETAILS, TIMES):
        made = (tmp_path / page).read_text(encoding="utf-8")
        assert made == page.read_text(encoding="utf-8"), "run: python -m benchmarks.does_it_beat_lora"
    for picture in (tmp_path / "docs" / "images").iterdir():
        assert picture.stat().st_size > 10_000


def test_the_answer_fits_one_screen() -> None:
    assert len((ROOT / PAGE).read_text(encoding="utf-8").splitlines()) <= 50


def test_percentages_are_of_mean_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = DETAILS.read_text(encoding="utf-8")
    for case in cases(Path("docs/benchmarks/study")):
        large, qtha = case.lines["LoRA r=8"], case.lines["QTHA"]
        means = [sum(line.values("loss")) / len(line.runs) for line in (qtha, large)]
        assert f"| {means[0]:.3f}; {means[1]:.3f} | {100 * (means[0] / means[1] - 1):+.1f}% " in text


def test_a_rerun_is_compared_with_its_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    kept = StudyRecords(Path("docs/benchmarks/study"), "breadth").runs
    some = [run for run in kept.values() if (run.label, run.group) == ("QTHA", "breadth: credit risk")][:2]
    records = StudyRecords(tmp_path / "rerun", "breadth")
    for run, factor in zip(some, (1.1, 0.7), strict=True):
        records.add_run(dataclasses.replace(run, metrics={**run.metrics, "loss": factor * run.metrics["loss"]}))
    shutil.copy("docs/benchmarks/study/breadth.jsonl", tmp_path)
    mean = sum(run.metrics["loss"] for run in some) / 2
    after = (1.1 * some[0].metrics["loss"] + 0.7 * some[1].metrics["loss"]) / 2
    assert reruns(tmp_path)[2:3] == [f"| credit risk | QTHA | 2 | {mean:.3f} | {after:.3f} | 30.0% |"]
