"""Killing a process of a test where it hurts."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def kill_when_there(code: str, sign: Path, *arguments: object, after_s: float = 0.0) -> None:
    """Run Python code, and SIGKILL it `after_s` seconds after a file is there; it must not have ended before."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not sign.exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(after_s)
    process.kill()
    process.wait()
