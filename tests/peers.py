"""Environments of their own for other people's clients, whose pins differ from ours: `.peers/NAME`, made by `make test-peers`."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / ".peers"
WANTED = "QPEFT_TEST_PEERS"


def peer_python(name: str, *requirements: str, ours: bool = True, bare: tuple[str, ...] = ()) -> str:
    """Python with `requirements` installed; skips the test where nobody asked for this environment.

    `QPEFT_TEST_PEERS` is 1 for all environments, or names of some, with commas.

    Args:
        name: of the environment's folder.
        requirements: what pip installs when the environment is made. A folder that is there is used as it is.
        ours: this environment's packages come after its own; without them a client runs as its users have it.
        bare: what pip installs without dependencies, after the others, for any version of Python.
    """
    folder = FOLDER / name
    python = folder / "bin" / "python"
    wanted = os.environ.get(WANTED, "")
    if wanted != "1" and name not in wanted.split(","):
        pytest.skip(f"other people's clients: make test-peers, or {WANTED}=1, or {WANTED}={name}")
    if not (folder / "made").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements], check=True)
        if bare:
            subprocess.run([*pip, "--no-deps", "--ignore-requires-python", *bare], check=True)
        if ours:
            where = subprocess.run(
                [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True, text=True
            ).stdout.strip()
            here = [path for path in sys.path if path.endswith("site-packages")] or site.getsitepackages()
            sources = [str(Path(__file__).parents[1] / "src"), *here]
            (Path(where) / "zz_ours.pth").write_text("\n".join(sources))
        (folder / "made").touch()
    return str(python)


def entry_points(folder: Path) -> Path:
    """qpeft's entry points as `pip install` writes them, for PYTHONPATH: this checkout may not be installed."""
    groups = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["entry-points"].items()
    info = folder / "qpeft-99.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: qpeft\nVersion: 99.0\n")
    text = "".join(f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in found.items()) for group, found in groups)
    (info / "entry_points.txt").write_text(text)
    return folder


def run_peer(python: str, script: str, **environment: str) -> str:
    """What a script prints; fails the test with its error output."""
    done = subprocess.run(
        [python, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
