"""Data sets of other packages, added as docs/extending/dataset.md says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qpeft.applications.data_sets import DATA_SETS, find
from qpeft.errors import DataError
from qpeft.training.recipe.config import load_recipe

PAGE = Path(__file__).parents[2] / "docs" / "extending" / "dataset.md"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The page's package, laid out as pip installs it."""
    blocks = dict(re.findall(r"^```(python|toml)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    project = tomllib.loads(blocks["toml"])["project"]
    folder = tmp_path / "site"
    info = folder / f"iris_data-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    text = "".join(f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in found.items()) for group, found in groups)
    (info / "entry_points.txt").write_text(text)
    (folder / "iris_data.py").write_text(blocks["python"])
    return folder


def test_the_page_s_package_brings_a_data_set(package: Path, tmp_path: Path) -> None:
    def qpeft(*arguments: str) -> str:
        command = [sys.executable, "-m", "qpeft.cli", *arguments]
        environment = os.environ | {"PYTHONPATH": str(package)}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "iris" in qpeft("data", "list")
    qpeft("data", "prepare", "iris")
    rows = [json.loads(line) for line in (tmp_path / "data" / "iris" / "test.jsonl").read_text().splitlines()]
    assert {row["label"] for row in rows} == {"setosa", "versicolor", "virginica"}
    assert "petal length is" in rows[0]["messages"][0]["content"]
    assert "scikit-learn" in (tmp_path / "data" / "iris" / "CARD.md").read_text()
    recipe = load_recipe(tmp_path / "data" / "iris" / "recipe.yaml")
    assert Path(str(recipe.data.train)).name == "train.jsonl"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="german-credit"):
        find("germany")
    assert "iris" not in DATA_SETS
