"""docs/extending/method.md: its packages, installed by pip into a folder, do what the page promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "extending" / "method.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
PYTHON, TOML = ([text for language, text in BLOCKS if language == wanted] for wanted in ("python", "toml"))
BUILD = (
    '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n\n[tool.setuptools]\npy-modules = [{}]\n\n'
)


def run(folder: Path, *arguments: str, **environment: str) -> str:
    """Run Python in a folder with `folder/site` installed; what it printed."""
    known = os.environ | {"PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, *arguments], env=known, cwd=folder, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which both packages of the page are installed, the real way."""
    folder = tmp_path_factory.mktemp("packages")
    for module, project in (("sine_adapter", TOML[0]), ("my_circuits", TOML[1])):
        package = folder / module
        package.mkdir()
        (package / "pyproject.toml").write_text(BUILD.format(f'"{module}"') + project)
        (package / f"{module}.py").write_text(PYTHON[0] if module == "sine_adapter" else PYTHON[-1])
        pip = ("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder / "site"))
        run(folder, *pip, str(package))
    return folder


def test_the_method_keeps_the_contract(site: Path) -> None:
    check = PYTHON[2].replace("r=3, **settings)", 'r=3, **settings), only=["starts_as_no_op", "saves_and_loads", "two_adapters"]')
    assert check != PYTHON[2]
    run(site, "-c", check)


def test_the_method_is_listed_like_the_others(site: Path) -> None:
    told = run(site, "-m", "qpeft.cli", "methods", "--rank", "4", "--json")
    assert '"method": "SINE"' in told
    assert '"summary": "a sine between two matrices"' in told


def test_the_circuit_family_takes_qthas_place(site: Path) -> None:
    script = """
import torch
from peft import get_peft_model
import qpeft
config = qpeft.QTHAConfig(circuit="reuploading", r=3, n_layers=2, target_modules=["0"])
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 5)), config)
(layer,) = [m for m in model.modules() if type(m).__name__ == "QuantumLayer"]
import my_circuits
assert layer.circuit == my_circuits.reuploading(3, 2)
print(sum(p.numel() for p in layer.parameters()))
"""
    assert run(site, "-c", script).strip() == "6"


def test_the_file_alone_is_a_plugin_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "sine_adapter.py").write_text(PYTHON[0] + "\n\n" + PYTHON[1])
    (tmp_path / "model").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    recipe = "plugins: [sine_adapter.py]\nmodel: {model_name_or_path: model}\nadapter: {peft_type: SINE, r: 8}\n"
    (tmp_path / "recipe.yaml").write_text(recipe + "data: {train: rows.jsonl}\n")
    script = "from qpeft.training.recipe.config import load_recipe; print(load_recipe('recipe.yaml').adapter['peft_type'])"
    assert run(tmp_path, "-c", script, QPEFT_ALLOW_PLUGINS="1").strip() == "SINE"
