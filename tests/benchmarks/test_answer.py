"""docs/does-it-beat-lora.md holds the tables that the committed records make."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from benchmarks.study.answer import PAGE, cases, main

ROOT = Path(__file__).parents[2]


def test_the_committed_tables_are_those_of_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = tmp_path / "page.md"
    shutil.copy(PAGE, page)
    main(["--page", str(page), "--image", str(tmp_path / "page.png")])
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8"), "run: python -m benchmarks.study.answer"
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_percentages_are_of_mean_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = PAGE.read_text(encoding="utf-8")
    for case in cases(Path("docs/benchmarks/study")):
        large, qtha = case.lines["LoRA r=8"], case.lines["QTHA"]
        means = [sum(line.values("loss")) / len(line.runs) for line in (qtha, large)]
        assert f"| {means[0]:.3f} beside {means[1]:.3f} | {100 * (means[0] / means[1] - 1):+.1f}% " in text
