"""The pages docs/extending/backend.md and chip.md: their packages, installed by pip, do what the pages promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "extending"
Command = Callable[..., str]


def blocks(page: str) -> list[tuple[str, str]]:
    """The code blocks of a page: language and text."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def install(page: str, folder: Path, files: dict[str, str]) -> None:
    """Write the page's package, `files` and its pyproject.toml, and let pip install it into `folder`."""
    package = folder.parent / page.removesuffix(".md")
    project = next(text for language, text in blocks(page) if language == "toml")
    for name, content in {**files, "pyproject.toml": project}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder))
    done = subprocess.run([*pip, str(package)], cwd=folder.parent, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def python(tmp_path: Path) -> Command:
    """Run Python with the package in `tmp_path/site` installed."""

    def run(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_page_s_backend(tmp_path: Path, python: Command) -> None:
    pytest.importorskip("qiskit")
    module, check = (text for language, text in blocks("backend.md") if language == "python")
    install("backend.md", tmp_path / "site", {"my_backend.py": module})
    script = """
import numpy as np
from qpeft.backends.registry import get_backend
from qpeft.circuits import ansatz
circuit = ansatz.qtha(3, 1)
rows = np.random.default_rng(0).normal(size=(4, circuit.n_params))
found, exact = (get_backend(name).compile(circuit).run(rows, None).probabilities() for name in ("statevector", "simulator"))
print(abs(found - exact).max() < 1e-12)
"""
    assert python("-c", f"{check}\n{script}").strip() == "True"  # the page's own test passes too


@pytest.mark.slow
def test_the_page_s_chip(tmp_path: Path, python: Command) -> None:
    files = {
        "my_chips/__init__.py": next(text for language, text in blocks("chip.md") if language == "python"),
        "my_chips/my-line-3.json": next(text for language, text in blocks("chip.md") if language == "json"),
    }
    install("chip.md", tmp_path / "site", files)
    assert "emulator:my-line-3" in python("-m", "qpeft.cli", "devices")
    script = """
import numpy as np
from qpeft.backends.registry import get_backend
from qpeft.circuits.ir import Circuit, Op
bell = Circuit(2, (Op("h", (0,)), Op("cx", (0, 1))))
print(get_backend("emulator:my-line-3").compile(bell).run(np.empty((1, 0)), None).probabilities()[0, 0])
"""
    assert 0.4 < float(python("-c", script)) < 0.5
