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


def commands() -> list[str]:
    """Lines of the README's shell blocks, installation first."""
    found = blocks(README, "sh")
    assert {block.marked for block in found} == MARKS
    found.sort(key=lambda block: "installs PyTorch" not in block.marked)
    return [block.text for block in found]


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 115  # a screen and a half, with its tables


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_every_command_runs_on_a_clean_clone(tmp_path: Path) -> None:
    """Needs a package index; about as long as `make demo` and two installations."""
    clone = tmp_path / "qpeft"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    script = "set -eux\n" + "\n".join(commands())
    for command, other in INSTEAD.items():
        script = script.replace(command, other)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(["bash", "-c", script], cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert (clone / "runs" / "demo" / "report" / "report.html").exists()
    assert (clone / "runs" / "mine" / "adapter").exists()
