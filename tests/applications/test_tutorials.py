"""The tutorial scripts run as they stand, on a tiny model and a few rows."""

from __future__ import annotations

import csv
import io
import json
import runpy
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"


@pytest.mark.parametrize("name", ["own_data"])
def test_a_tutorial(name: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(TUTORIALS / f"{name}.py"))
    script["main"](["--out", str(tmp_path / "out"), "--model", str(tiny_model), "--steps", "1", "--rows", "4"])
    out = tmp_path / "out"
    assert (out / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "run" / "task-evaluation.json").read_text())["rows"] == 4
    answers = list(csv.DictReader(io.StringIO((out / "answers.csv").read_text(encoding="utf-8"))))
    assert all(bool(row["label"]) != bool(row["refused"]) for row in answers)
    assert "$ qpeft predict" in capsys.readouterr().out
