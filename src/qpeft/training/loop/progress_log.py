"""What a run tells while it trains, a line of JSON each in the run folder's `progress.jsonl`, and how it is asked to pause.

The lines: `begin` with the process that trains, `log` with the numbers of a log entry (loss, tokens_per_s, peak_memory_gib, what
circuits spent, eval_loss), `end` with how it ended. `time` is seconds since 1970.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRESS, PAUSE = "progress.jsonl", "pause"


@contextlib.contextmanager
def told_progress(folder: Path, first: bool) -> Iterator[None]:
    """Record that a run began, and its end: "ok", "paused" (asked for, or interrupted) or "failed".

    Args:
        folder: the run's folder.
        first: whether this is the process that writes; the others record nothing.
    """
    if not first:
        yield
        return
    import psutil

    (folder / PAUSE).unlink(missing_ok=True)
    tell(folder, "begin", pid=os.getpid(), started=psutil.Process().create_time())
    ending = "failed"
    try:
        yield
        ending = "ok"
    except KeyboardInterrupt:
        ending = "paused"
        raise
    finally:
        if ending == "ok" and (folder / PAUSE).exists():
            ending = "paused"
        (folder / PAUSE).unlink(missing_ok=True)
        tell(folder, "end", status=ending)


def tell(folder: Path, event: str, **values: Any) -> None:
    """Add a line; a full or read-only disk does not end a training run.

    Args:
        folder: the run's folder.
        event: name of the event.
        **values: further fields of the line.
    """
    line = json.dumps({"event": event, "time": round(time.time(), 3), **values}, default=str)
    with contextlib.suppress(OSError), (folder / PROGRESS).open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")


@dataclass
class Progress:
    """What a run has told: whether its process is alive, how it ended last, and its log entries."""

    running: bool = False
    pid: int | None = None
    ended: str = ""
    entries: list[dict[str, Any]] = field(default_factory=list)


def read_progress(folder: Path) -> Progress:
    """The folder's progress; steps that were trained again after a crash count once."""
    found, process = Progress(), None
    try:
        text = (folder / PROGRESS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return found
    by_step: dict[tuple[int, bool], dict[str, Any]] = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # torn by a crash
        if not isinstance(entry, dict):
            continue
        if entry.get("event") == "begin":
            process, found.ended = (entry.get("pid"), entry.get("started")), ""
        elif entry.get("event") == "end":
            process, found.ended = None, str(entry.get("status", ""))
        elif entry.get("event") == "log" and isinstance(entry.get("step"), int):
            place = entry["step"], "eval_loss" in entry
            by_step[place] = by_step.get(place, {}) | entry  # the end of training is one more entry of the last step
    found.entries = sorted(by_step.values(), key=lambda entry: entry["step"])
    if process is not None and isinstance(process[0], int):
        found.running, found.pid = _alive(process[0], process[1]), process[0]
    return found


def _alive(pid: int, started: Any) -> bool:
    """Whether this very process is still there: pids are used again."""
    import psutil

    try:
        process = psutil.Process(pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - float(started or 0)) < 2)
    except (psutil.Error, ValueError):
        return False
