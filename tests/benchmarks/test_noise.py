"""The page on shots and noise comes from its lines alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.noise import ARMS, PLACES, SHOTS, page

ROOT = Path(__file__).parents[2]


def test_the_committed_page_is_what_its_lines_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines, committed = Path("docs/benchmarks/noise.jsonl"), Path("docs/benchmarks/noise.md")
    page(lines, tmp_path / "noise.md", tmp_path / "noise.png")
    made = (tmp_path / "noise.md").read_text(encoding="utf-8").replace(str(tmp_path / "noise.md"), str(committed))
    assert made == committed.read_text(encoding="utf-8")
    rows = [line for line in made.splitlines() if line.startswith("| ") and not line.startswith("| measured")]
    assert len(rows) == len(ARMS) * len(PLACES) * len(SHOTS)
    assert (tmp_path / "noise.png").stat().st_size > 10_000
