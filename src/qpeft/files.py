"""Files and folders that are there whole or not at all, and locks between processes."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def atomic_write(path: Path, text: str) -> None:
    """Write a text file whole or not at all, whenever the process is killed; several processes may write the same file.

    Args:
        path: the file.
        text: its content, written as UTF-8.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A scratch folder next to `path` that takes its place when the block ends, or is removed when the block raises.

    No system swaps two folders in one step: a process that is killed between the two renames leaves the old folder as
    `.NAME.replaced`, which the next call puts back.
    """
    scratch, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.replaced")
    if old.exists() and not path.exists():
        os.replace(old, path)
    for left_over in (scratch, old):
        shutil.rmtree(left_over, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        if path.exists():
            os.replace(path, old)
        os.replace(scratch, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def lock_file(path: Path, *, timeout_s: float = -1.0) -> Iterator[None]:
    """Hold a lock that other processes respect; the system releases it when this process ends, however it ends.

    Args:
        path: the lock's own file, made if missing and left behind. Its content does not matter.
        timeout_s: how long to wait for another holder; 0 does not wait, negative waits for ever.

    Raises:
        TimeoutError: another process held the lock for `timeout_s`.
    """
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(str(path), timeout=timeout_s):
            yield
    except filelock.Timeout as error:
        raise TimeoutError(f"{path} is held by another process") from error


def append_line(target: Path, line: str) -> None:
    """Append a line and flush it to disk, so that a crash after the call loses nothing.

    Several processes may append to one file: each holds the lock `.NAME.lock` next to it while it writes. A last line without its
    newline was torn by a crash in mid-write and never acknowledged: it is cut off first.

    Args:
        target: the file; made if it is missing.
        line: the line, without its newline; written as UTF-8.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(target.with_name(f".{target.name}.lock")), open(target, "ab+") as stream:
        stream.seek(0)
        whole = stream.read()
        stream.truncate(whole.rfind(b"\n") + 1)
        stream.write(line.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
