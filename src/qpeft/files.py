"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def atomic_write(path: Path, text: str) -> None:
    """Write a text file whole or not at all, whenever the process is killed; several processes may write the same file."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
