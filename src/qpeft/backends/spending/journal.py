"""What was sent to a vendor, on disk before it is sent, so that a crash neither loses a job nor pays for it twice.

A journal is one piece of work, in one JSON Lines file. Each job leaves a line when it is about to be sent (`intent`), when the
vendor gave it an id (`sent`), and when it ended (`done` with its result, `failed`, `cancelled`, `refused`). Every line is flushed
to the disk before the next step. Opened again after a crash, the journal gives the same jobs their results back, in the order they
are asked for, and attaches to what is still under way; only what was never sent is sent.

A job of which there is an `intent` and nothing else may or may not have reached the vendor. It is never sent again by itself:
look it up at the vendor's, then say `resolve(key, job_id)`, or `resolve(key, None)` if it never arrived.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qpeft.backends.spending.budget import Cost
from qpeft.errors import BackendError, JobError

FORMAT = 1
ENDED = frozenset({"done", "failed", "cancelled", "refused", "abandoned"})


@dataclass
class JournalEntry:
    """One job's story so far. `state`: intent, sent, or one of `ENDED`; `result` is there when done."""

    key: str
    state: str
    cost: Cost
    job: str = ""
    detail: str = ""
    result: Any = field(default=None, repr=False)


class Journal:
    """A file of jobs; one process at a time. `with Journal(path) as journal:` or `close()` lets go of it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab+")  # noqa: SIM115 - held, and locked, until close()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise BackendError("another process uses this journal", value=str(self.path), hint="wait, or another file") from error
        self.entries: dict[str, JournalEntry] = {}
        self._delivered: Counter[str] = Counter()
        self._read()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()

    @property
    def spent(self) -> Cost:
        """The cost of all jobs that may have reached the vendor."""
        return sum((e.cost for e in self.entries.values() if e.state not in ("refused", "abandoned")), Cost())

    def keys(self, payloads: Sequence[Any]) -> list[str]:
        """Names of jobs: a job's content, and the how-manieth sample of it this process is to get. What was asked for and not
        delivered, because something went wrong, has the same name when it is asked for again."""
        counts, keys = self._delivered.copy(), []
        for payload in payloads:
            content = hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:32]
            counts[content] += 1
            keys.append(f"{content}-{counts[content]}")
        return keys

    def delivered(self, keys: Sequence[str]) -> None:
        """The results of these jobs have been handed out: asking again is asking for another sample."""
        self._delivered.update(key.rpartition("-")[0] for key in keys)

    def entry(self, key: str) -> JournalEntry | None:
        return self.entries.get(key)

    def intent(self, key: str, cost: Cost, snapshot: Any = None) -> None:
        """About to be sent. `snapshot` is what shall be known of the chip at this time (its calibration)."""
        self._write({"event": "intent", "key": key, "cost": asdict(cost), "snapshot": snapshot})

    def sent(self, key: str, job: str) -> None:
        self._write({"event": "sent", "key": key, "job": job})

    def ended(self, key: str, state: str, *, detail: str = "", result: Any = None) -> None:
        self._write({"event": state, "key": key, "detail": detail, "result": result})

    def resolve(self, key: str, job: str | None) -> None:
        """Say what became of an intent whose sending was cut off: the vendor's id of it, or None if it never arrived."""
        entry = self.entries.get(key)
        if entry is None or entry.state != "intent":
            raise JobError(
                "no such open intent", value=key, bound=", ".join(k for k, e in self.entries.items() if e.state == "intent")
            )
        if job is None:
            self.ended(key, "abandoned", detail="never arrived")
        else:
            self.sent(key, job)

    def _write(self, line: dict[str, Any]) -> None:
        stamped = {"format": FORMAT, "time": round(time.time(), 3), **line}
        self._file.write(json.dumps(stamped, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._apply(line)

    def _read(self) -> None:
        """Take in the lines; a torn last line, written by a crash, is cut off."""
        self._file.seek(0)
        whole = self._file.read()
        self._file.truncate(whole.rfind(b"\n") + 1)
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                values = json.loads(line)
                if values["format"] != FORMAT:
                    raise ValueError(f"format {values['format']}")
                self._apply(values)
            except (ValueError, KeyError, TypeError) as error:
                self.close()
                raise BackendError("not a journal of jobs", value=f"{self.path}, line {number}: {error!r}") from error

    def _apply(self, line: dict[str, Any]) -> None:
        key, event = line["key"], line["event"]
        if event == "intent":
            self.entries[key] = JournalEntry(key, "intent", Cost(**line["cost"]))
        elif event == "sent":
            self.entries[key].state, self.entries[key].job = "sent", line["job"]
        elif event in ENDED:
            entry = self.entries[key]
            entry.state, entry.detail, entry.result = event, line["detail"], line["result"]
        else:
            raise ValueError(f"event {event!r}")
