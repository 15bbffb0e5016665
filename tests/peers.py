"""Environments of their own for other people's clients, whose pins differ from ours: `.peers/NAME`, made by `make test-peers`."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / ".peers"
WANTED = "QPEFT_TEST_PEERS"


def peer_python(name: str, *requirements: str) -> str:
    """Python with `requirements` installed in front of this environment's packages; skips the test where nobody asked for it.

    Args:
        name: of the environment's folder.
        requirements: what pip installs when the environment is made. A folder that is there is used as it is.
    """
    folder = FOLDER / name
    python = folder / "bin" / "python"
    if not os.environ.get(WANTED):
        pytest.skip(f"other people's clients: make test-peers, or {WANTED}=1")
    if not (folder / "made").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
        where = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True, text=True
        ).stdout.strip()
        here = [path for path in sys.path if path.endswith("site-packages")] or site.getsitepackages()
        sources = [str(Path(__file__).parents[1] / "src"), *here]
        (Path(where) / "zz_ours.pth").write_text("\n".join(sources))
        (folder / "made").touch()
    return str(python)


def run_peer(python: str, script: str, **environment: str) -> str:
    """What a script prints; fails the test with its error output."""
    done = subprocess.run(
        [python, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=280,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
