"""Operations of users on jobs: submit, cancel, delete. Each function is an operation of writer.py.

A job is one program with `rows >= 1` rows of parameters, run as one piece. A batch is an ordered list of jobs; a sweep is a
batch whose jobs are slices of one matrix of parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from qpeft.backends.registry import is_origin_chip
from qpeft.errors import ServiceError
from qpeft.service.scheduling.fair_queueing import BULK, INTERACTIVE
from qpeft.service.scheduling.submission import SubmissionRequest
from qpeft.service.settings import Settings
from qpeft.service.store.access import may_use
from qpeft.service.store.bulk import execute_many
from qpeft.service.store.ledger import AccountLedger, upsert
from qpeft.service.store.quotas import DAY_CIRCUITS, DAY_SHOTS, OPEN_CIRCUITS, STORED_BYTES, VENDOR_SHOTS, seconds_left
from qpeft.service.store.schema import TERMINAL, batches, idempotency, jobs, programs, results, storable, vendor_members
from qpeft.service.store.writer import Transaction


@dataclass(frozen=True)
class Receipt:
    """`id` is an earlier submission's when the idempotency key was seen before (`replayed`)."""

    id: str
    replayed: bool
    ahead: int
    created_at: float


@dataclass(frozen=True)
class Target:
    """A job or a batch (`kind`), and whose."""

    kind: str
    id: str
    owner: str


@dataclass(eq=False)
class SubmitJobs:
    """The operation `submit`: accept submissions, all of one group at once."""

    settings: Settings

    def __call__(self, txn: Transaction, submissions: Sequence[SubmissionRequest]) -> list[Receipt | ServiceError]:
        ledger = AccountLedger(txn)
        seen = _earlier(txn, submissions)
        outcomes: list[Receipt | ServiceError] = []
        rows: dict[str, list[dict[str, Any]]] = {"jobs": [], "batches": [], "keys": [], "programs": []}
        for submission in submissions:
            try:
                outcomes.append(self._accept(txn, ledger, submission, seen, rows))
            except ServiceError as refusal:
                outcomes.append(refusal)
        self._write(txn, rows)
        ledger.close()
        return outcomes

    def _accept(
        self,
        txn: Transaction,
        ledger: AccountLedger,
        submission: SubmissionRequest,
        seen: dict[tuple[str, str], tuple[bytes, str]],
        rows: dict[str, list[dict[str, Any]]],
    ) -> Receipt:
        owner, key = submission.owner, submission.key
        if key is not None and (owner, key) in seen:
            digest, target = seen[owner, key]
            if digest != submission.digest:
                raise ServiceError(
                    "this idempotency key came with another body", status=409, code="idempotency", value=key, hint="use a new key"
                )
            return Receipt(target, True, 0, txn.now)
        device = ledger.device(submission.device)
        if device.status == "draining":
            reason = f"the device takes no new work: {device.reason or device.status}"
            raise ServiceError(reason, status=503, code="draining", value=submission.device, retry_after_s=60)
        if device.restricted and not may_use(txn, submission.device, owner):
            hint = "an administrator lists users: qpeft service access DEVICE --user NAME"
            raise ServiceError("you may not use this device", status=403, code="device_access", value=submission.device, hint=hint)
        self._check_quota(ledger, submission)
        self._check_day(txn, ledger, submission)
        if is_origin_chip(submission.device):
            self._reserve_vendor_shots(ledger, submission)
        lane = self._lane(ledger, submission)
        ahead = ledger.enqueue((submission.device, owner, lane), len(submission.items))
        ledger.open(owner, submission.circuits)
        ledger.store(owner, submission.bytes)
        ledger.submit(owner, submission.circuits, submission.shots, txn.now)
        txn.changed.add(f"owner:{owner}")
        if key is not None:
            seen[owner, key] = (submission.digest, submission.id)
            values = {"owner": owner, "key": key, "digest": submission.digest, "target": submission.id, "created_at": txn.now}
            rows["keys"].append(values)
        if submission.kind != "job":
            rows["batches"].append(_batch_row(submission, txn.now))
        rows["programs"] += [{**vars(program), "used_at": txn.now} for program in submission.programs]
        rows["jobs"] += _job_rows(txn, submission, lane)
        return Receipt(submission.id, False, ahead, txn.now)

    def _check_quota(self, ledger: AccountLedger, submission: SubmissionRequest) -> None:
        owner = ledger.owner(submission.owner)
        bound, used = OPEN_CIRCUITS.of(owner, self.settings), ledger.open_circuits(submission.owner)
        if bound is not None and used + submission.circuits > bound:
            raise ServiceError(
                "too many circuits queued or running",
                status=429,
                code="quota",
                value=used + submission.circuits,
                bound=bound,
                hint="wait for some to finish, cancel some, or ask an administrator: qpeft service quota NAME --open-circuits N",
                retry_after_s=10,
            )
        bound, used = STORED_BYTES.of(owner, self.settings), ledger.stored_bytes(submission.owner)
        if bound is not None and used + submission.bytes > bound:
            raise ServiceError(
                "too many bytes of parameters and results are kept for you",
                status=429,
                code="quota",
                value=used + submission.bytes,
                bound=f"{bound} bytes",
                hint="delete finished jobs and batches, or ask an administrator: qpeft service quota NAME --stored-bytes N",
                retry_after_s=60,
            )

    def _check_day(self, txn: Transaction, ledger: AccountLedger, submission: SubmissionRequest) -> None:
        owner = ledger.owner(submission.owner)
        bounds = {"circuits": DAY_CIRCUITS.of(owner, self.settings), "shots": DAY_SHOTS.of(owner, self.settings)}
        if not any(bound is not None for bound in bounds.values()):
            return
        used = dict(zip(bounds, ledger.submitted_today(submission.owner), strict=True))
        for what, wanted in (("circuits", submission.circuits), ("shots", submission.shots)):
            bound = bounds[what]
            if bound is None or used[what] + wanted <= bound:
                continue
            raise ServiceError(
                f"your daily quota of {what} is used up" if used[what] >= bound else f"more {what} than your daily quota leaves",
                status=403 if wanted > bound else 429,
                code="day_quota",
                value=f"{used[what]:,} today and {wanted:,} more",
                bound=f"{bound:,} {what} a day (UTC)",
                hint=f"an administrator sets it: qpeft service quota NAME --day-{what} N",
                retry_after_s=None if wanted > bound else seconds_left(txn.now),
            )

    def _reserve_vendor_shots(self, ledger: AccountLedger, submission: SubmissionRequest) -> None:
        bound = VENDOR_SHOTS.of(ledger.owner(submission.owner), self.settings)
        wanted = ledger.vendor_shots(submission.owner) + submission.shots
        if bound is not None and wanted > bound:
            raise ServiceError(
                "this device costs money, and more than you may spend",
                status=403,
                code="vendor_shots",
                value=f"{wanted} shots",
                bound=bound,
                hint="an administrator sets it: qpeft service budget NAME --vendor-shots N",
            )
        ledger.spend(submission.owner, submission.shots)

    def _lane(self, ledger: AccountLedger, submission: SubmissionRequest) -> int:
        if submission.kind != "job" or submission.items[0].estimate_s > self.settings.interactive_s:
            return BULK
        queued = ledger.flow((submission.device, submission.owner, INTERACTIVE)).queued
        return INTERACTIVE if queued < self.settings.interactive_open else BULK

    def _write(self, txn: Transaction, rows: dict[str, list[dict[str, Any]]]) -> None:
        if unique := {row["hash"]: row for row in rows["programs"]}:
            txn.connection.execute(_keep_programs(txn.connection.dialect.name), list(unique.values()))
        if rows["batches"]:
            txn.connection.execute(batches.insert(), rows["batches"])
        if rows["keys"]:
            execute_many(txn.connection, _INSERT_KEY, rows["keys"])
        if rows["jobs"]:
            execute_many(txn.connection, _INSERT_JOB, rows["jobs"])


def _earlier(txn: Transaction, submissions: Sequence[SubmissionRequest]) -> dict[tuple[str, str], tuple[bytes, str]]:
    keys: dict[str, list[str]] = {}
    for submission in submissions:
        if submission.key is not None:
            keys.setdefault(submission.owner, []).append(submission.key)
    seen: dict[tuple[str, str], tuple[bytes, str]] = {}
    for owner, names in keys.items():
        for row in txn.connection.execute(_KEYS, {"owner": owner, "names": names}):
            seen[owner, row.key] = (bytes(row.digest), row.target)
    return seen


_KEYS = sa.select(idempotency.c.key, idempotency.c.digest, idempotency.c.target).where(
    idempotency.c.owner == sa.bindparam("owner"), idempotency.c.key.in_(sa.bindparam("names", expanding=True))
)


_INSERT_JOB, _INSERT_KEY = jobs.insert(), idempotency.insert()


@functools.cache
def _keep_programs(dialect: str) -> Any:
    """Store programs; those that are there are noted as used, twice a day at most."""
    insert = upsert(dialect, programs)
    stale = programs.c.used_at < insert.excluded.used_at - 43200.0
    return insert.on_conflict_do_update(index_elements=["hash"], set_={"used_at": insert.excluded.used_at}, where=stale)


def _batch_row(submission: SubmissionRequest, now: float) -> dict[str, Any]:
    return {
        "id": submission.id,
        "owner": submission.owner,
        "device": submission.device,
        "kind": submission.kind,
        "name": submission.name,
        "n_jobs": len(submission.items),
        "n_circuits": submission.circuits,
        "created_at": now,
    }


def _job_rows(txn: Transaction, submission: SubmissionRequest, lane: int) -> list[dict[str, Any]]:
    first = txn.ticks(len(submission.items))
    common = {
        "owner": submission.owner,
        "device": submission.device,
        "lane": lane,
        "batch": None if submission.kind == "job" else submission.id,
        "state": "queued",
        "reason": "",
        "exclusive": submission.exclusive,
        "priority": submission.priority,
        "attempt": 0,
        "device_s": 0.0,
        "created_at": txn.now,
        "expires_at": None if submission.expires_s is None else txn.now + submission.expires_s,
    }
    return [
        {
            **common,
            **vars(item),
            "seq": first + position,
            "changed": first + position,
            "position": position,
            "bytes": len(item.params),
        }
        for position, item in enumerate(submission.items)
    ]


PARKED = "vendor"
"""In place of a worker: the job waits for an administrator's word about its vendor's task, and no worker holds it."""

_FINISH = (
    sa.update(jobs)
    .where(jobs.c.seq == sa.bindparam("b_seq"))
    .values(
        state=sa.bindparam("b_state"),
        reason=sa.bindparam("b_reason"),
        finished_at=sa.bindparam("b_now"),
        changed=sa.bindparam("b_changed"),
        device_s=sa.bindparam("b_device_s"),
        calibration=sa.bindparam("b_calibration"),
        bytes=jobs.c.bytes + sa.bindparam("b_bytes"),
    )
)
ACCOUNT: tuple[sa.Column[Any], ...] = (
    jobs.c.seq, jobs.c.id, jobs.c.owner, jobs.c.device, jobs.c.lane, jobs.c.batch, jobs.c.rows, jobs.c.shots,
    jobs.c.state, jobs.c.attempt, jobs.c.worker, jobs.c.estimate_s, jobs.c.bytes,
    jobs.c.created_at,
)  # fmt: skip
"""Columns that a state change of a job reads."""


def finish(
    txn: Transaction,
    ledger: AccountLedger,
    endings: Sequence[tuple[Any, str, str, float, str | None]],
    sizes: Mapping[int, int] | None = None,
) -> None:
    """Move jobs to a terminal state. No other function does.

    Args:
        txn: transaction of the writer.
        ledger: accounts of the operation.
        endings: `(row of ACCOUNT, state, reason, device_s, calibration)` for each job.
        sizes: bytes of results that are stored, by `seq`.
    """
    if not endings:
        return
    changed, sizes = txn.ticks(), sizes or {}
    updates = []
    at_vendors = [row.seq for row, *_ in endings if is_origin_chip(row.device)]
    sent = sa.select(vendor_members.c.seq).where(vendor_members.c.seq.in_(at_vendors))
    unsent = set(at_vendors) - set(txn.connection.execute(sent).scalars()) if at_vendors else set()
    for row, state, reason, device_s, calibration in endings:
        key = (row.device, row.owner, row.lane)
        if row.state == "queued":
            ledger.dequeue(key)
            ledger.submit(row.owner, -row.rows, -(row.shots or 0) * row.rows, row.created_at)
        else:
            ledger.charge(key, device_s - row.estimate_s)
            shots = (row.shots or 0) * row.rows if state == "succeeded" else 0
            ledger.use(row.owner, row.device, jobs=1, circuits=row.rows, shots=shots, device_s=device_s)
        ledger.open(row.owner, -row.rows)
        if row.seq in unsent:
            ledger.spend(row.owner, -(row.shots or 0) * row.rows)
        txn.changed.update((row.id, row.batch or row.id, f"owner:{row.owner}"))
        updates.append(
            {
                "b_seq": row.seq,
                "b_state": state,
                "b_reason": storable(reason, 1000),
                "b_now": txn.now,
                "b_changed": changed,
                "b_device_s": device_s,
                "b_calibration": calibration,
                "b_bytes": sizes.get(row.seq, 0),
            }
        )
    execute_many(txn.connection, _FINISH, updates)


def _of(target: Target) -> sa.ColumnElement[bool]:
    column = jobs.c.id if target.kind == "job" else jobs.c.batch
    return sa.and_(column == target.id, jobs.c.owner == target.owner)


def not_found(target: Target) -> ServiceError:
    """The refusal for a job or batch that is not there, or is another user's."""
    return ServiceError(f"no such {target.kind}", status=404, code="not_found", value=target.id)


def cancel(txn: Transaction, targets: Sequence[Target]) -> list[int | ServiceError]:
    """Cancel unfinished jobs. Queued jobs end at once, running jobs are asked to stop.

    Args:
        txn: transaction of the writer.
        targets: jobs and batches of users.

    Returns:
        For each target the number of jobs that were cancelled, or the refusal.
    """
    ledger = AccountLedger(txn)
    outcomes: list[int | ServiceError] = []
    for target in targets:
        alive = txn.connection.execute(sa.select(*ACCOUNT).where(_of(target), jobs.c.state.not_in(TERMINAL))).all()
        if not alive and not txn.connection.execute(sa.select(jobs.c.seq).where(_of(target)).limit(1)).first():
            outcomes.append(not_found(target))
            continue
        finish(txn, ledger, [(row, "cancelled", "cancelled by its owner", 0.0, None) for row in alive if row.state == "queued"])
        parked = [row for row in alive if row.state == "running" and row.worker == PARKED]
        why = "cancelled by its owner; whether the vendor has it is not known"
        finish(txn, ledger, [(row, "cancelled", why, 0.0, None) for row in parked])
        if running := [row for row in alive if row.state == "running" and row.worker != PARKED]:
            update = sa.update(jobs).where(jobs.c.seq.in_([row.seq for row in running]))
            txn.connection.execute(update.values(state="cancelling", changed=txn.ticks(), reason="the worker is told to stop"))
            for row in running:
                txn.changed.update((row.id, f"owner:{row.owner}", f"worker:{row.worker}"))
        outcomes.append(sum(row.state != "cancelling" for row in alive))
    ledger.close()
    return outcomes


def delete(txn: Transaction, targets: Sequence[Target]) -> list[int | ServiceError]:
    """Delete finished jobs with their results. A job of a batch is deleted with its batch only.

    Args:
        txn: transaction of the writer.
        targets: jobs and batches of users.

    Returns:
        For each target the number of jobs that were deleted, or the refusal.
    """
    outcomes: list[int | ServiceError] = []
    for target in targets:
        rows = txn.connection.execute(sa.select(jobs.c.seq, jobs.c.state, jobs.c.batch, jobs.c.bytes).where(_of(target))).all()
        if not rows:
            outcomes.append(not_found(target))
        elif alive := [row for row in rows if row.state not in TERMINAL]:
            outcomes.append(
                ServiceError(
                    "not finished yet",
                    status=409,
                    code="not_terminal",
                    value=alive[0].state,
                    bound=", ".join(TERMINAL),
                    hint="cancel it first",
                )
            )
        elif target.kind == "job" and rows[0].batch is not None:
            outcomes.append(
                ServiceError("part of a batch", status=409, code="in_batch", hint=f"DELETE /v1/batches/{rows[0].batch}")
            )
        else:
            remove(txn, [row.seq for row in rows])
            _free(txn, target.owner, sum(row.bytes for row in rows))
            if target.kind == "batch":
                txn.connection.execute(sa.delete(batches).where(batches.c.id == target.id))
            outcomes.append(len(rows))
    return outcomes


def _free(txn: Transaction, owner: str, n: int) -> None:
    ledger = AccountLedger(txn)
    ledger.store(owner, -n)
    ledger.close()


def remove(txn: Transaction, seqs: Sequence[int]) -> None:
    """Delete jobs with their results; the caller gives their bytes back to their owners.

    Args:
        txn: transaction of the writer.
        seqs: the jobs' numbers.
    """
    for start in range(0, len(seqs), 5000):
        part = list(seqs[start : start + 5000])
        txn.connection.execute(sa.delete(results).where(results.c.seq.in_(part)))
        txn.connection.execute(sa.delete(vendor_members).where(vendor_members.c.seq.in_(part)))
        txn.connection.execute(sa.delete(jobs).where(jobs.c.seq.in_(part)))


def expire(txn: Transaction, arguments: Sequence[None]) -> list[int | ServiceError]:
    """End queued jobs whose time to wait is over.

    Args:
        txn: transaction of the writer.
        arguments: one None per call.

    Returns:
        For each call how many jobs were ended, 5000 at most.
    """
    ledger = AccountLedger(txn)
    due = sa.select(*ACCOUNT).where(sa.text("state = 'queued' AND expires_at IS NOT NULL"), jobs.c.expires_at < txn.now).limit(5000)
    rows = txn.connection.execute(due).all()
    finish(txn, ledger, [(row, "expired", "nobody ran it before its time to wait was over", 0.0, None) for row in rows])
    ledger.close()
    return [len(rows) for _ in arguments]
