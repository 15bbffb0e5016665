"""Vendor tasks, stored before they are sent. Each function is an operation of store/writer.py.

A vendor's task holds the programs of some jobs. Its states and their steps are those of qpeft.backends.spending.submission:
`intent`, then `sent` under `vendor_job`, `refused` or `absent` (how a sent task ends is stored with its jobs). While a task is an
intent nobody sends its jobs again, whatever dies: it may have arrived, and be paid for. A vendor that can be asked for its tasks
by our id would settle that by itself; Origin Quantum's client has no such call, it only carries the id (`batchNo`) to the vendor's
own pages, so an administrator looks it up and resolves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from qpeft.backends.spending.submission import PAID, TRANSITIONS
from qpeft.errors import ServiceError
from qpeft.service.settings import Settings
from qpeft.service.store.audit import write_audit
from qpeft.service.store.leases import alive, keep_calibration, release
from qpeft.service.store.ledger import AccountLedger
from qpeft.service.store.lifecycle import ACCOUNT, PARKED
from qpeft.service.store.schema import Row, jobs, storable, vendor_members, vendor_tasks
from qpeft.service.store.writer import Transaction

MANY_ATTEMPTS: Final = 1 << 30
"""What waited for an administrator is not given up for its number of attempts."""
TASK_STATES: Final = ("intent", *sorted(TRANSITIONS["intent"], reverse=True))


@dataclass(frozen=True)
class Intent:
    """`task` is the worker's choice, so that it may say the same again; `members` are `(seq, attempt, rows)`; `calibration` is
    `(id, JSON)` of what the chip tells of itself now."""

    worker: str
    owner: str
    task: str
    device: str
    shots: int
    members: tuple[tuple[int, int, int], ...]
    calibration: tuple[str, bytes] | None = None


@dataclass(frozen=True)
class VendorTaskUpdate:
    """From a worker. Not fenced: what happened at the vendor's is true whoever holds the jobs by now."""

    task: str
    state: str
    vendor_job: str
    reason: str


@dataclass(frozen=True)
class Resolution:
    """An administrator's word for what became of a task: the vendor's id, or None when it never arrived."""

    actor: str
    task: str
    vendor_job: str | None


@dataclass(eq=False)
class RecordIntent:
    """The operation `intend`: once it is committed, and not before, the worker may send."""

    settings: Settings

    def __call__(self, txn: Transaction, intents: Sequence[Intent]) -> list[str | ServiceError]:
        outcomes: list[str | ServiceError] = []
        for intent in intents:
            if _task(txn, intent.task) is not None:  # the answer to the same call was lost
                outcomes.append(intent.task)
                continue
            outcomes.append(alive(txn, intent.worker, intent.owner) or self._refusal(txn, intent) or self._write(txn, intent))
        return outcomes

    def _refusal(self, txn: Transaction, intent: Intent) -> ServiceError | None:
        seqs = [seq for seq, _, _ in intent.members]
        columns = (jobs.c.seq, jobs.c.attempt, jobs.c.worker, jobs.c.state, vendor_members.c.task)
        query = sa.select(*columns).join(vendor_members, vendor_members.c.seq == jobs.c.seq, isouter=True)
        rows = {row.seq: row for row in txn.connection.execute(query.where(jobs.c.seq.in_(seqs)))}
        for seq, attempt, _ in intent.members:
            row = rows.get(seq)
            if row is None or (row.worker, row.attempt, row.state) != (intent.worker, attempt, "running"):
                return ServiceError("a job is not the worker's any more", status=409, code="lease", value=seq)
            if row.task is not None:
                return ServiceError("a job is with the vendor already", status=409, code="forwarded", value=row.task)
        bound = self.settings.max_vendor_shots
        if bound is not None:
            paid = sa.select(sa.func.coalesce(sa.func.sum(vendor_tasks.c.shots), 0)).where(vendor_tasks.c.state.in_(sorted(PAID)))
            total = int(txn.connection.execute(paid).scalar_one()) + _shots(intent)
            if total > bound:
                return ServiceError(
                    "the budget for vendors is spent", status=409, code="budget", value=total, bound=f"{bound} shots"
                )
        return None

    def _write(self, txn: Transaction, intent: Intent) -> str:
        if intent.calibration is not None:
            keep_calibration(txn, intent.device, *intent.calibration)
        row = {
            "id": intent.task,
            "device": intent.device,
            "state": "intent",
            "vendor_job": "",
            "reason": "",
            "circuits": sum(rows for _, _, rows in intent.members),
            "shots": _shots(intent),
            "calibration": intent.calibration[0] if intent.calibration else None,
            "created_at": txn.now,
        }
        txn.connection.execute(vendor_tasks.insert(), row)
        position, members = 0, []
        for seq, _, rows in intent.members:
            members.append({"seq": seq, "task": intent.task, "position": position})
            position += rows
        txn.connection.execute(vendor_members.insert(), members)
        return intent.task


def _shots(intent: Intent) -> int:
    return intent.shots * sum(rows for _, _, rows in intent.members)


def _task(txn: Transaction, task: str) -> Row | None:
    return txn.connection.execute(sa.select(vendor_tasks).where(vendor_tasks.c.id == task)).one_or_none()


def _set(txn: Transaction, task: str, **values: Any) -> None:
    txn.connection.execute(sa.update(vendor_tasks).where(vendor_tasks.c.id == task).values(**values))


def _let_go(txn: Transaction, task: str) -> None:
    """Its jobs may be sent again."""
    txn.connection.execute(sa.delete(vendor_members).where(vendor_members.c.task == task))


def _requeue(txn: Transaction, task: str) -> None:
    """Its parked jobs go back to the queue, where the next worker takes the task up or sends them again."""
    members = sa.select(vendor_members.c.seq).where(vendor_members.c.task == task)
    parked = sa.select(*ACCOUNT).where(jobs.c.seq.in_(members), jobs.c.worker == PARKED, jobs.c.state == "running")
    ledger = AccountLedger(txn)
    release(txn, ledger, txn.connection.execute(parked).all(), "its vendor's task was resolved", MANY_ATTEMPTS)
    ledger.close()


def settle(txn: Transaction, reports: Sequence[VendorTaskUpdate]) -> list[str | ServiceError]:
    """Take workers' updates of tasks. The same update again changes nothing.

    Args:
        txn: transaction of the writer.
        reports: the updates.

    Returns:
        The state of each task, or the refusal.
    """
    outcomes: list[str | ServiceError] = []
    for news in reports:
        row = _task(txn, news.task)
        if row is None:
            outcomes.append(ServiceError("no such task", status=404, code="not_found", value=news.task))
        elif row.state == "intent":
            _set(txn, news.task, state=news.state, vendor_job=news.vendor_job, reason=storable(news.reason, 1000))
            if news.state in ("sent", "refused"):
                _requeue(txn, news.task)  # the news came late, from a worker that was given up
            if news.state == "refused":
                _let_go(txn, news.task)
            outcomes.append(news.state)
        else:
            if row.state == "absent" and news.state == "sent":
                said = f"said to be absent, but the vendor has it as {news.vendor_job}"
                _set(txn, news.task, vendor_job=news.vendor_job, reason=said)
                write_audit(txn, "service", "vendor.contradiction", f"{news.task}: {said}")
            outcomes.append(row.state)
    return outcomes


def resolve(txn: Transaction, resolutions: Sequence[Resolution]) -> list[str | ServiceError]:
    """Take an administrator's word for what became of intents.

    Args:
        txn: transaction of the writer.
        resolutions: the tasks, and the vendor's id of each or None.

    Returns:
        The state of each task, or the refusal.
    """
    outcomes: list[str | ServiceError] = []
    for resolution in resolutions:
        row = _task(txn, resolution.task)
        if row is None:
            outcomes.append(ServiceError("no such task", status=404, code="not_found", value=resolution.task))
            continue
        if row.state != "intent":
            outcomes.append(
                ServiceError("the task needs no resolving", status=409, code="resolved", value=row.state, bound="intent")
            )
            continue
        state = "absent" if resolution.vendor_job is None else "sent"
        _set(txn, resolution.task, state=state, vendor_job=resolution.vendor_job or "", reason="resolved by an administrator")
        _requeue(txn, resolution.task)
        if state == "absent":
            _let_go(txn, resolution.task)
        write_audit(txn, resolution.actor, "vendor.resolve", f"{resolution.task}: {resolution.vendor_job or 'never arrived'}")
        outcomes.append(state)
    return outcomes
