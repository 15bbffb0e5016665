"""The notebooks run from top to bottom on a slice: the tiny model, few steps and rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.applications.published import skip_unless_fetched

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
DATA = {"credit_risk": "german-credit", "diagnosis": "pima-diabetes"}


def cells(path: Path, kind: str) -> list[str]:
    """Sources of a notebook's cells of one kind."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_there_is_a_notebook_for_each_door() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"quickstart", "own_circuit", "credit_risk", "diagnosis"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_what_it_needs_and_holds_no_output(path: Path) -> None:
    (first, *_), text = cells(path, "markdown"), path.read_text(encoding="utf-8")
    assert "pip install" in first
    assert "minutes" in first
    assert all(cell.get("outputs", []) == [] for cell in json.loads(text)["cells"])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    path: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if path.stem in DATA:
        skip_unless_fetched(DATA[path.stem])
    if path.stem == "own_circuit":
        pytest.importorskip("qiskit")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QPEFT_SLICE", "1")
    monkeypatch.setenv("QPEFT_MODEL", str(tiny_model))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(cells(path, "code")):
        exec(compile(source, f"{path.name}[{number}]", "exec"), namespace)
    assert capsys.readouterr().out.strip()
