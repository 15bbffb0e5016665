"""Paid jobs in a file: on disk before they are sent, so that a crash neither loses a job nor pays for it twice.

A journal is one piece of work, in one JSON Lines file. Each job leaves a line when it is about to be sent (`intent`), when the
vendor gave it an id (`sent`), and when it ended (`done` with its result, `failed`, `cancelled`, `refused`); submission.py has the
states. Every line is flushed to the disk before the next step. Opened again after a crash, the journal gives the same jobs their
results back, in the order they are asked for, and attaches to what is still under way; only what was never sent is sent.

A job of which there is an `intent` and nothing else may or may not have reached the vendor. It is never sent again by itself:
look it up at the vendor's, then call `resolve(key, job_id)`, or `resolve(key, None)` if it never arrived.
"""

from __future__ import annotations

import contextlib
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
from qpeft.backends.spending.submission import PAID, check_transition
from qpeft.errors import BackendError, JobError
from qpeft.files import lock_file

FORMAT = 1
OLD_EVENTS = {"abandoned": "absent"}  # names in files of earlier versions


@dataclass
class JournalEntry:
    """A job and how far it is. `state` is one of submission.py; `result` is there when done."""

    key: str
    state: str
    cost: Cost
    job: str = ""
    detail: str = ""
    result: Any = field(default=None, repr=False)


class Journal:
    """A file of jobs, used by one process at a time. `with Journal(path) as journal:` or `close()` releases it.

    Raises:
        BackendError: another process uses the file, or it is no journal.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._held = contextlib.ExitStack()
        try:
            self._held.enter_context(lock_file(self.path.with_name(f"{self.path.name}.lock"), timeout_s=0.0))
        except TimeoutError as error:
            raise BackendError("another process uses this journal", value=str(self.path), hint="wait, or another file") from error
        self._file = self._held.enter_context(open(self.path, "ab+"))  # noqa: SIM115 - open, and locked, until close()
        self.entries: dict[str, JournalEntry] = {}
        self._earlier = Cost()  # paid for, of jobs that ended without a result and were sent again
        self._delivered: Counter[str] = Counter()
        self._read()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and release its lock; closing twice is allowed."""
        self._held.close()

    def __del__(self) -> None:
        if hasattr(self, "_held"):
            self.close()

    @property
    def spent(self) -> Cost:
        """The cost of everything that may have reached the vendor, every attempt of a job that failed included."""
        return sum((entry.cost for entry in self.entries.values() if entry.state in PAID), self._earlier)

    def keys(self, payloads: Sequence[Any]) -> list[str]:
        """Names of jobs: the hash of a job's content, and which repeat of it this process asks for. What was asked for and not
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
        """The job of this name, None where the journal does not have it."""
        return self.entries.get(key)

    def state(self, key: str) -> str:
        """The state of a job, "" where nothing is known of it."""
        entry = self.entries.get(key)
        return "" if entry is None else entry.state

    def intent(self, key: str, cost: Cost, snapshot: Any = None) -> None:
        """Record that a job is about to be sent.

        Args:
            key: the job's key, from `keys`.
            cost: what it is charged against the budget.
            snapshot: the chip's calibration now, fit for JSON.
        """
        self._write({"event": "intent", "key": key, "cost": asdict(cost), "snapshot": snapshot})

    def sent(self, key: str, job: str) -> None:
        """Record that the vendor has a job.

        Args:
            key: the job's key.
            job: the vendor's id of it.
        """
        self._write({"event": "sent", "key": key, "job": job})

    def ended(self, key: str, state: str, *, detail: str = "", result: Any = None) -> None:
        """Record how a job ended.

        Args:
            key: the job's key.
            state: `done`, `failed`, `cancelled`, `refused` or `absent`.
            detail: the reason, where it did not succeed.
            result: the vendor's result of a job that is done, fit for JSON.
        """
        self._write({"event": state, "key": key, "detail": detail, "result": result})

    def resolve(self, key: str, job: str | None) -> None:
        """Record what became of an ambiguous job.

        Args:
            key: the job's key.
            job: the vendor's id of it, or None if it never arrived.

        Raises:
            JobError: the job is not ambiguous.
        """
        if self.state(key) != "intent":
            raise JobError(
                "no such open intent", value=key, bound=", ".join(k for k, e in self.entries.items() if e.state == "intent")
            )
        if job is None:
            self.ended(key, "absent", detail="never arrived")
        else:
            self.sent(key, job)

    def _write(self, line: dict[str, Any]) -> None:
        check_transition(self.state(line["key"]), line["event"])
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
                values["event"] = OLD_EVENTS.get(values["event"], values["event"])
                check_transition(self.state(values["key"]), values["event"])
                self._apply(values)
            except (ValueError, KeyError, TypeError) as error:
                self.close()
                raise BackendError("not a journal of jobs", value=f"{self.path}, line {number}: {error!r}") from error

    def _apply(self, line: dict[str, Any]) -> None:
        key, event = line["key"], line["event"]
        entry = self.entries.get(key)
        if event == "intent":
            if entry is not None and entry.state in PAID:
                self._earlier += entry.cost
            self.entries[key] = JournalEntry(key, "intent", Cost(**line["cost"]))
            return
        assert entry is not None  # no other step follows from nothing
        entry.state = event
        if event == "sent":
            entry.job = line["job"]
        else:
            entry.detail, entry.result = line["detail"], line["result"]
