"""The README's commands, one after the other, on a clean clone with an environment of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.docs_blocks import ROOT, blocks

README = ROOT / "README.md"
MARKS = {"not run: installs PyTorch, then trains for minutes", "run", "not run: installs packages"}
# what stands in for a command: a test inside `make test` cannot run `make test`
INSTEAD = {"make test": "make check"}
# the start of a command and what it must have written
WRITES = {"make demo": "runs/demo/report/report.html", "qpeft train": "runs/mine/adapter"}


def commands() -> list[str]:
    """Lines of the README's shell blocks, installation first."""
    found = blocks(README, "sh")
    assert {block.marked for block in found} == MARKS
    found.sort(key=lambda block: "installs PyTorch" not in block.marked)
    return [line.split("  # ")[0].strip() for block in found for line in block.text.splitlines() if line.strip()]


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 115  # a screen and a half, with its tables


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean clone, the same for all commands; QPEFT_README_CLONE names its place, for runs of one command at a time."""
    folder = Path(os.environ.get("QPEFT_README_CLONE") or tmp_path_factory.mktemp("readme") / "qpeft")
    if not folder.exists():
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", commands())
def test_every_command_runs_on_a_clean_clone(command: str, clone: Path) -> None:
    """In the README's order, each in the environment that the first one made. Needs a package index."""
    script = f"set -eu\n[ ! -f .venv/bin/activate ] || . .venv/bin/activate\n{INSTEAD.get(command, command)}"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(["bash", "-c", script], cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    for start, written in WRITES.items():
        if command.startswith(start):
            assert (clone / written).exists()
