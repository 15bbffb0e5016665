"""Paid jobs from intent to result, kept in a journal: sent once, waited for, attached to after a crash."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qpeft.backends.spending.budget import Budget, Cost
from qpeft.backends.spending.journal import Journal
from qpeft.backends.spending.submission import (
    Backoff,
    CannotAttachError,
    KeyRefusedError,
    Submission,
    VendorClient,
    poll_job,
    send_once,
)
from qpeft.errors import JobError

logger = logging.getLogger(__name__)


@dataclass
class JobRunner:
    """Sends jobs and waits for them. Times in seconds.

    `poll_s` is the first pause between polls; it grows to `longest_poll_s`. Without an answer for `patience_s`, or after
    `timeout_s` in all, JobError; the jobs stay in the journal, and asking again attaches to them.
    """

    client: VendorClient
    journal: Journal
    budget: Budget = field(default_factory=Budget)
    poll_s: float = 1.0
    longest_poll_s: float = 15.0
    patience_s: float = 600.0
    timeout_s: float = 24 * 3600.0

    def run(self, jobs: Sequence[tuple[Any, Cost]], snapshot: Callable[[], Any] = lambda: None) -> list[Any]:
        """Results of jobs `(payload, cost)` in order. Nothing is sent unless the budget covers all that is left to send.

        `snapshot()` is asked once if anything is sent and kept in the journal with each job: the chip's calibration.

        Raises:
            BudgetError: before anything is sent.
            JobError: a job failed, was cancelled or refused, got no answer, or its sending was cut off earlier.
        """
        keys, fresh = self.journal.keys([payload for payload, _ in jobs]), []
        for key, (payload, cost) in zip(keys, jobs, strict=True):
            state = self.journal.state(key)
            if state == "intent" and not self.client.idempotent:
                raise self._ambiguous(key)
            if state not in ("sent", "done"):
                fresh.append((key, payload, Cost() if state == "intent" else cost, cost))
        total = sum((added for _, _, added, _ in fresh), Cost())
        self.budget.check(self.journal.spent, total)
        if fresh:
            logger.info("sending %s", total)
            try:
                known = snapshot()
            except Exception as error:
                raise JobError(
                    f"the chip's calibration cannot be had: {error}", hint="nothing was sent; check address and key"
                ) from error
            for key, payload, _, cost in fresh:
                self._send(key, payload, cost, known)
        results = [self._wait(key) for key in keys]
        self.journal.delivered(keys)
        return results

    def _send(self, key: str, payload: Any, cost: Cost, snapshot: Any) -> None:
        sent = send_once(self.client, payload, key, _JournalLog(self.journal, key, cost, snapshot))
        if sent.state == "refused":
            raise JobError(f"the vendor did not take it: {sent.reason}", hint="nothing was spent; see the reason") from sent.error
        if sent.state == "intent":
            raise self._ambiguous(key, sent) from sent.error

    def _ambiguous(self, key: str, sent: Submission | None = None) -> JobError:
        why = f" ({sent.reason})" if sent is not None else ""
        return JobError(
            f"the vendor may or may not have the job{why}; it is not sent again",
            value=key,
            hint=f"look for it at the vendor's, then Journal({str(self.journal.path)!r}).resolve(key, job_id), or "
            "resolve(key, None) if it never arrived",
        )

    def _wait(self, key: str) -> Any:
        entry = self.journal.entries[key]
        if entry.state == "done":
            return entry.result
        started = answered = time.monotonic()
        backoff = Backoff(self.poll_s, self.longest_poll_s)
        while True:
            try:
                status = poll_job(self.client, entry.job)
            except KeyRefusedError as error:
                raise JobError(
                    f"the vendor no longer takes the key: {error}", job=entry.job, hint="the right key; then ask again"
                ) from error
            except CannotAttachError as error:
                raise JobError(
                    f"a job of an earlier process, which this client cannot look at ({error}); it is not sent again",
                    job=entry.job,
                    hint=f"look for it at the vendor's, then Journal({str(self.journal.path)!r}).ended({key!r}, 'done', "
                    "result=...), or ended(..., 'failed') to pay for it again",
                ) from error
            if isinstance(status, Exception):
                if time.monotonic() - answered > self.patience_s:
                    raise JobError(
                        f"no answer for {self.patience_s:g} s: {status}", job=entry.job, hint="ask again later"
                    ) from status
            else:
                answered = time.monotonic()
                if status.state == "done":
                    self.journal.ended(key, "done", result=status.result)
                    return status.result
                if status.state in ("failed", "cancelled"):
                    self.journal.ended(key, status.state, detail=status.detail)
                    raise JobError(f"{status.state}: {status.detail or 'the vendor gave no reason'}", job=entry.job)
            if time.monotonic() - started > self.timeout_s:
                raise JobError(f"not finished after {self.timeout_s:g} s", job=entry.job, hint="ask again later: it attaches")
            time.sleep(backoff.next_s())

    def cancel(self) -> list[str]:
        """Cancel every job under way; ids of those that the vendor agreed to cancel."""
        cancelled = []
        for key, entry in list(self.journal.entries.items()):
            if entry.state == "sent" and self.client.cancel(entry.job):
                self.journal.ended(key, "cancelled", detail="on request")
                cancelled.append(entry.job)
        return cancelled


@dataclass(frozen=True)
class _JournalLog:
    """One submission's `SubmissionLog` in a journal."""

    journal: Journal
    key: str
    cost: Cost
    snapshot: Any

    def intent(self) -> None:
        if self.journal.state(self.key) != "intent":  # else it is sent again to a vendor that recognises it
            self.journal.intent(self.key, self.cost, self.snapshot)

    def sent(self, job: str) -> None:
        self.journal.sent(self.key, job)

    def refused(self, reason: str) -> None:
        self.journal.ended(self.key, "refused", detail=reason)

    def ambiguous(self, reason: str) -> None:
        """The intent is on the disk already."""
        logger.error("job %s: %s", self.key, reason)
