"""Programs on a device that is paid for: cut into jobs, kept in a journal, held to a budget. The same for every vendor."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qpeft.backends.spending.budget import Budget, Cost
from qpeft.backends.spending.jobs import JobRunner
from qpeft.backends.spending.journal import Journal
from qpeft.backends.spending.submission import VendorClient
from qpeft.errors import BackendError, JobError

SECONDS_PER_SHOT = 100e-6  # measured on Wukong-72; stands in where a vendor does not say

JournalFile = str | os.PathLike[str] | Journal


def open_journal(who: str, journal: JournalFile | None) -> Journal:
    """The journal of a paid backend; BackendError, beginning with `who`, where none is given."""
    if journal is None:
        raise BackendError(f"{who} needs a journal, so that a crash loses no job", hint='journal="jobs.jsonl"')
    return journal if isinstance(journal, Journal) else Journal(journal)


class PaidDevice:
    """Runs programs of one device as jobs of at most `per_job` programs.

    Args:
        client: the vendor's. Payloads are `{**head, "programs": [...], "shots": n}`.
        journal: where jobs are recorded, closed with the device.
        budget: checked, with what the journal says was spent, before anything is sent.
        per_job: programs that a job may hold; None is no limit.
        seconds: chip time of `(programs, shots)`, for costs.
        poll_s, patience_s, timeout_s: see `JobRunner`.
    """

    def __init__(
        self,
        client: VendorClient,
        journal: Journal,
        budget: Budget | None,
        *,
        per_job: int | None,
        seconds: Callable[[int, int], float],
        poll_s: float = 1.0,
        patience_s: float = 600.0,
        timeout_s: float = 24 * 3600.0,
    ) -> None:
        self.client, self.journal, self.per_job, self.seconds = client, journal, per_job, seconds
        self.runner = JobRunner(client, journal, budget or Budget(), poll_s=poll_s, patience_s=patience_s, timeout_s=timeout_s)
        self.sample = ""

    def run(
        self,
        head: Mapping[str, Any],
        programs: Sequence[Any],
        shots: int | None,
        *,
        extract: Callable[[Any], Any] = lambda result: result,
        snapshot: Callable[[], Any] = lambda: None,
    ) -> list[Any]:
        """The vendor's result of every program, in order.

        Args:
            head: what the vendor needs besides programs and shots; part of a job's name in the journal.
            programs: the programs, fit for JSON.
            shots: repetitions of each program; None for exact outcomes.
            extract: makes of a job's result a list with one entry per program.
            snapshot: the chip's calibration now, stored with what is sent.

        Raises:
            BudgetError: before anything is sent.
            JobError: a job failed, was refused, is ambiguous, or its result has another length.
        """
        jobs: list[tuple[dict[str, Any], Cost]] = []
        size = self.per_job or max(len(programs), 1)
        for start in range(0, len(programs), size):
            part = list(programs[start : start + size])
            n = len(part)
            cost = Cost(circuits=n, shots=n * (shots or 0), programs=n, jobs=1, seconds=self.seconds(n, shots or 0))
            payload = {**head, "programs": part, "shots": shots}
            if self.sample:  # for the journal alone: clients leave it out of what they send
                payload["sample"] = self.sample
            jobs.append((payload, cost))
        results: list[Any] = []
        for (payload, _), result in zip(jobs, self.runner.run(jobs, snapshot), strict=True):
            try:
                found = list(extract(result))
            except (KeyError, TypeError) as error:
                raise JobError(f"the vendor's result cannot be read: {type(error).__name__}: {error}") from error
            if len(found) != len(payload["programs"]):
                raise JobError("the vendor returned another number of results", value=len(found), bound=len(payload["programs"]))
            results += found
        return results

    def cancel(self) -> list[str]:
        """Cancel the jobs under way; ids of those that could be."""
        return self.runner.cancel()

    def close(self) -> None:
        """Release the journal."""
        self.journal.close()
