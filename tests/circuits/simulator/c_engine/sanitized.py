"""The kernel's C code alone, driven by a program under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qpeft.circuits.simulator.c_engine import library

SANITIZERS = ["-O0", "-g", "-std=gnu11", "-w", "-DVARIANT=baseline", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def gcc() -> str:
    """The compiler, or the test is skipped."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    return compiler


def drive(folder: Path, driver: str, *sources: str) -> str:
    """Compile a driver beside this file with sources of the kernel, run it, and return what it says."""
    source, program = Path(library.__file__).parent, folder / "driver"
    files = [*(source / name for name in sources), Path(__file__).with_name(driver)]
    subprocess.run([gcc(), *SANITIZERS, "-I", source, *files, "-pthread", "-lm", "-o", program], check=True)
    done = subprocess.run([program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
