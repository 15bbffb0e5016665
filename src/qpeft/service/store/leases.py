"""Operations of workers on jobs: register, lease, heartbeat, complete. Each function is an operation of writer.py.

A lease is the pair (worker, attempt) in the job's row: every lease has a new attempt, so whoever comes back late writes nothing.
A worker is alive while its `beats` grow. It says with each lease request what it still holds; jobs given to it that it does not
hold (the answer was lost on the way) go back to the queue.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from qpeft.backends.registry import is_origin_chip
from qpeft.errors import ServiceError
from qpeft.service.scheduling.fair_queueing import BULK, INTERACTIVE, Candidate, Flow, select
from qpeft.service.settings import Settings
from qpeft.service.store.access import reserved_for
from qpeft.service.store.bulk import execute_many
from qpeft.service.store.ledger import AccountLedger
from qpeft.service.store.lifecycle import ACCOUNT, PARKED, finish
from qpeft.service.store.schema import (
    HELD_SQL,
    QUEUED_SQL,
    Row,
    calibrations,
    devices,
    jobs,
    programs,
    results,
    vendor_members,
    vendor_tasks,
    workers,
)
from qpeft.service.store.writer import Transaction


@dataclass(frozen=True)
class Hello:
    """A worker registers; `calibrations` are `(device, id, JSON)` of its current calibrations."""

    worker: str
    owner: str
    name: str
    devices: tuple[str, ...]
    calibrations: tuple[tuple[str, str, bytes], ...] = ()
    info: tuple[tuple[str, bytes], ...] = ()
    """For each device a JSON object of its limits and costs (wire.DeviceInfo)."""
    takes_over: bool = False


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life, with the `(seq, attempt)` of every job the worker holds and the `(seq, qubits)` of those on a chip now."""

    worker: str
    owner: str
    holding: tuple[tuple[int, int], ...]
    places: tuple[tuple[int, list[int]], ...] = ()


@dataclass(frozen=True)
class LeaseCommand:
    """A worker asks for at most `max_jobs` jobs on its devices; `holding` lists its leased jobs, as in Heartbeat.

    `interactive`: only jobs of the interactive lane.
    """

    worker: str
    owner: str
    devices: tuple[str, ...]
    holding: tuple[tuple[int, int], ...]
    max_jobs: int
    interactive: bool = False


@dataclass(frozen=True)
class Lease:
    """`jobs` are rows of the table joined with their programs' rows in `programs`; `drop` are held jobs to stop working on."""

    jobs: tuple[Row, ...]
    programs: dict[str, Row]
    drop: tuple[int, ...]
    calibration: str | None = None
    vendor: tuple[Row, ...] = ()
    """Which of the jobs are part of a vendor's task already."""


@dataclass(frozen=True)
class JobOutcome:
    """Outcome of one leased job. `payload` is its result (None: it failed, and `reason` says why)."""

    seq: int
    attempt: int
    payload: bytes | None
    reason: str
    device_s: float
    calibration: str | None
    released: bool = False
    """The worker gives the job back untouched."""
    slow: bool = False
    """With `released`: it takes longer than an interactive job may, at least `device_s`; it returns to the bulk lane."""
    parked: bool = False
    """Nobody knows whether the vendor has it: it waits without a worker until an administrator has looked."""


@dataclass(frozen=True)
class CompletionCommand:
    """A worker hands in what became of jobs."""

    worker: str
    owner: str
    endings: tuple[JobOutcome, ...]


@dataclass(eq=False)
class RegisterWorkers:
    """The operation `hello`: register workers, with the calibrations their devices run under."""

    settings: Settings

    def __call__(self, txn: Transaction, arguments: Sequence[Hello]) -> list[str]:
        for argument in arguments:
            if argument.takes_over:
                self._take_over(txn, argument)
        return _register(txn, arguments)

    def _take_over(self, txn: Transaction, argument: Hello) -> None:
        mine = (workers.c.owner == argument.owner, workers.c.name == argument.name, workers.c.lost.is_(False))
        for worker in txn.connection.execute(sa.select(workers.c.id).where(*mine)).scalars().all():
            txn.connection.execute(sa.update(workers).where(workers.c.id == worker).values(lost=True))
            ledger = AccountLedger(txn)
            release(txn, ledger, _held(txn, worker), "its worker was started anew", self.settings.max_attempts)
            ledger.close()


def _register(txn: Transaction, arguments: Sequence[Hello]) -> list[str]:
    for argument in arguments:
        values = {"owner": argument.owner, "name": argument.name, "devices": "\n".join(argument.devices)}
        row = {**values, "id": argument.worker, "beats": 0, "seen_at": txn.now, "lost": False}
        txn.connection.execute(sa.delete(workers).where(workers.c.id == argument.worker, workers.c.owner == argument.owner))
        txn.connection.execute(workers.insert(), row)
        for device, name, data in argument.calibrations:
            keep_calibration(txn, device, name, data)
        for device, info in argument.info:
            txn.connection.execute(sa.update(devices).where(devices.c.id == device).values(info=info))
        txn.changed.add("devices")
    return [argument.worker for argument in arguments]


def keep_calibration(txn: Transaction, device: str, name: str, data: bytes) -> None:
    """Store a worker's calibration of a device. An administrator's calibration has priority.

    Args:
        txn: transaction of the writer.
        device: name of the device.
        name: id of the calibration.
        data: the chip file.
    """
    known = sa.select(calibrations.c.id).where(calibrations.c.device == device, calibrations.c.id == name)
    if txn.connection.execute(known).first() is None:
        calibration = {"device": device, "id": name, "created_at": txn.now, "data": data}
        txn.connection.execute(calibrations.insert(), calibration)
    free = sa.update(devices).where(devices.c.id == device, devices.c.pinned.is_(False))
    txn.connection.execute(free.values(calibration=name))


def alive(txn: Transaction, worker: str, owner: str) -> ServiceError | None:
    """Count a worker's sign of life.

    Args:
        txn: transaction of the writer.
        worker: id of the worker.
        owner: id of the user whose key it has.

    Returns:
        None, or the refusal when the worker is not known or was given up.
    """
    if txn.connection.execute(_BEAT, {"b_worker": worker, "b_owner": owner, "now": txn.now}).rowcount:
        return None
    return ServiceError(
        "not a registered worker, or given up as lost", status=410, code="worker_lost", value=worker, hint="register again"
    )


def _held(txn: Transaction, worker: str) -> Sequence[Row]:
    return txn.connection.execute(_HELD, {"worker": worker}).all()


def _drop(held: Sequence[Row], holding: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Held jobs to stop working on: those being cancelled and those that are the worker's no more."""
    keep = {(row.seq, row.attempt) for row in held if row.state == "running"}
    return tuple(seq for seq, attempt in holding if (seq, attempt) not in keep)


def heartbeat(txn: Transaction, beats: Sequence[Heartbeat]) -> list[tuple[int, ...] | ServiceError]:
    """Count workers' signs of life.

    Args:
        txn: transaction of the writer.
        beats: the signs of life, with the jobs that each worker holds.

    Returns:
        For each the held jobs to stop, or the refusal when the worker was given up.
    """
    outcomes: list[tuple[int, ...] | ServiceError] = []
    for beat in beats:
        refusal = alive(txn, beat.worker, beat.owner)
        if refusal is None:
            _set_places(txn, beat)
        outcomes.append(refusal or _drop(_held(txn, beat.worker), beat.holding))
    return outcomes


def _set_places(txn: Transaction, beat: Heartbeat) -> None:
    """Keep what the worker's chips are occupied by; written only when it changed."""
    text = json.dumps(beat.places, separators=(",", ":")) if beat.places else ""
    changed = sa.update(workers).where(workers.c.id == beat.worker, workers.c.places != text)
    if txn.connection.execute(changed.values(places=text)).rowcount:
        txn.changed.add("places")


def _members(txn: Transaction, seqs: Sequence[int]) -> Sequence[Row]:
    return txn.connection.execute(sa.select(vendor_members).where(vendor_members.c.seq.in_(seqs))).all()


def release(txn: Transaction, ledger: AccountLedger, rows: Sequence[Row], why: str, max_attempts: int) -> None:
    """Take jobs from a worker: back to the queue, or to their end when they were being cancelled or were tried often enough.

    What a vendor has is taken up again however often workers were lost meanwhile: giving it up would lose what was paid for.

    Args:
        txn: transaction of the writer.
        ledger: accounts of the operation.
        rows: the jobs' rows.
        why: the reason, shown to the jobs' owners.
        max_attempts: attempts after which a job fails.
    """
    endings, back = [], []
    tired = [row.seq for row in rows if row.attempt >= max_attempts]
    at_vendor = {row.seq for row in _members(txn, tired)} if tired else set()
    for row in rows:
        if row.state == "cancelling":
            endings.append((row, "cancelled", "cancelled by its owner", 0.0, None))
        elif row.attempt >= max_attempts and row.seq not in at_vendor:
            reason = f"{why}, at attempt {row.attempt} of {max_attempts}: the job may be what ends its workers"
            endings.append((row, "failed", reason, row.estimate_s, None))
        else:
            back.append(row)
    finish(txn, ledger, endings)
    if back:
        for row in back:
            ledger.enqueue((row.device, row.owner, row.lane), 1)
        changed = txn.ticks()
        update = sa.update(jobs).where(jobs.c.seq.in_([row.seq for row in back]))
        txn.connection.execute(
            update.values(state="queued", worker=None, started_at=None, changed=changed, reason=f"{why}; queued again")
        )
        for row in back:
            txn.changed.update((row.id, f"owner:{row.owner}"))


@dataclass(eq=False)
class LeaseJobs:
    """The operation `lease`: give each worker the jobs whose turn it is on one of its devices."""

    settings: Settings
    budget_s: Callable[[str, float], float] = lambda device, default: default
    """Device seconds to give out in one lease on a device."""
    turn: int = 0

    def __call__(self, txn: Transaction, requests: Sequence[LeaseCommand]) -> list[Lease | ServiceError]:
        outcomes: list[Lease | ServiceError] = []
        for request in requests:
            refusal = alive(txn, request.worker, request.owner)
            outcomes.append(refusal or self._lease(txn, request))
        return outcomes

    def _lease(self, txn: Transaction, request: LeaseCommand) -> Lease:
        ledger = AccountLedger(txn)
        held, holding = _held(txn, request.worker), set(request.holding)
        if lost := [row for row in held if (row.seq, row.attempt) not in holding]:
            release(txn, ledger, lost, "the lease did not reach the worker", self.settings.max_attempts)
        self.turn += 1
        order = [request.devices[(self.turn + k) % len(request.devices)] for k in range(len(request.devices))]
        leased: tuple[Row, ...] = ()
        for device in order:
            if leased := self._lease_device(txn, ledger, request, device):
                break
        ledger.close()
        hashes = {row.program for row in leased}
        found = txn.connection.execute(_PROGRAMS, {"hashes": list(hashes)}).all() if hashes else ()
        pinned = txn.connection.execute(_PINNED, {"device": leased[0].device}).scalar_one_or_none() if leased else None
        sent = tuple(_members(txn, [row.seq for row in leased])) if leased and is_origin_chip(leased[0].device) else ()
        return Lease(leased, {row.hash: row for row in found}, _drop(held, request.holding), pinned, sent)

    def _lease_device(self, txn: Transaction, ledger: AccountLedger, request: LeaseCommand, device: str) -> tuple[Row, ...]:
        status = txn.connection.execute(_STATUS, {"device": device}).scalar_one_or_none()
        if status not in ("online", "draining"):
            return ()
        states = ledger.flows_of(device)
        if (user := reserved_for(txn, device)) is not None:
            states = {key: state for key, state in states.items() if key[1] == user}
        if request.interactive:
            states = {key: state for key, state in states.items() if key[2] == INTERACTIVE}
        selection_flows = [Flow(key[1], key[2], state.vtime, state.weight) for key, state in states.items()]

        def peek(flow: Flow, limit: int) -> list[Candidate]:
            values = {"device": device, "owner": flow.owner, "lane": flow.lane, "limit": limit, "offset": flow.taken}
            return [Candidate(*row) for row in txn.connection.execute(_PEEK, values)]

        selection = select(
            selection_flows,
            peek,
            budget_s=self.budget_s(device, self.settings.lease_budget_s),
            max_jobs=min(request.max_jobs, self.settings.lease_jobs),
            share=self.settings.interactive_share,
        )
        if selection.start_tag is None:
            return ()
        for flow in selection_flows:
            if flow.taken:
                key = (device, flow.owner, flow.lane)
                states[key].vtime = flow.vtime
                ledger.dequeue(key, flow.taken)
        ledger.served(device, selection.start_tag)
        if any(state.queued > 0 for state in states.values()):
            txn.changed.add(f"device:{device}")  # there is more: the next worker is woken
        if any(state.queued > 0 and key[2] == INTERACTIVE for key, state in states.items()):
            txn.changed.add(f"interactive:{device}")
        values = {"worker": request.worker, "now": txn.now, "changed": txn.ticks(), "seqs": list(selection.jobs)}
        txn.connection.execute(_LEASE, values)
        rows = tuple(txn.connection.execute(_LEASED, {"seqs": list(selection.jobs)}))
        for row in rows:
            txn.changed.update((row.id, f"owner:{row.owner}"))
        return rows


_BEAT = (
    sa.update(workers)
    .where(workers.c.id == sa.bindparam("b_worker"), workers.c.owner == sa.bindparam("b_owner"), workers.c.lost.is_(False))
    .values(beats=workers.c.beats + 1, seen_at=sa.bindparam("now"))
)
_HELD = sa.select(*ACCOUNT).where(jobs.c.worker == sa.bindparam("worker"), HELD_SQL)
_PROGRAMS = sa.select(programs).where(programs.c.hash.in_(sa.bindparam("hashes", expanding=True)))
_STATUS = sa.select(devices.c.status).where(devices.c.id == sa.bindparam("device"))
_PINNED = sa.select(devices.c.calibration).where(devices.c.id == sa.bindparam("device"), devices.c.pinned.is_(True))
_PEEK = (
    sa.select(jobs.c.seq, jobs.c.estimate_s, jobs.c.attempt)
    .where(*(jobs.c[name] == sa.bindparam(name) for name in ("device", "owner", "lane")), QUEUED_SQL)
    .order_by(jobs.c.priority, jobs.c.seq)
    .limit(sa.bindparam("limit"))
    .offset(sa.bindparam("offset"))
)
_SEQS = jobs.c.seq.in_(sa.bindparam("seqs", expanding=True))
_LEASE = (
    sa.update(jobs)
    .where(_SEQS)
    .values(
        state="running",
        reason="",
        worker=sa.bindparam("worker"),
        attempt=jobs.c.attempt + 1,
        started_at=sa.bindparam("now"),
        changed=sa.bindparam("changed"),
    )
)
_LEASED = sa.select(jobs).where(_SEQS).order_by(jobs.c.priority, jobs.c.seq)
_INSERT_RESULT = results.insert()
UNBOUNDED = 1 << 31  # attempts
SLOW_S = 1.0  # the least estimate of a job that was returned to the bulk lane: its next lease is a long one
_ACCOUNTS = sa.select(*ACCOUNT).where(_SEQS)


@dataclass(eq=False)
class CompleteJobs:
    """The operation `complete`: keep results of leased jobs. For each ending True, or False when the lease was no longer valid.

    Sending the same completion again is True again and changes nothing.
    """

    settings: Settings

    def __call__(self, txn: Transaction, completions: Sequence[CompletionCommand]) -> list[list[bool] | ServiceError]:
        ledger = AccountLedger(txn)
        outcomes: list[list[bool] | ServiceError] = []
        for completion in completions:
            refusal = alive(txn, completion.worker, completion.owner)
            outcomes.append(refusal or self._complete(txn, ledger, completion))
        ledger.close()
        return outcomes

    def _complete(self, txn: Transaction, ledger: AccountLedger, completion: CompletionCommand) -> list[bool]:
        seqs = [ending.seq for ending in completion.endings]
        rows = {row.seq: row for row in txn.connection.execute(_ACCOUNTS, {"seqs": seqs})}
        accepted, endings, payloads = [], [], []
        sizes: dict[int, int] = {}
        released: dict[str, list[Row]] = {}
        parked: list[Row] = []
        slow: list[tuple[Row, float, str]] = []
        for ending in completion.endings:
            row = rows.pop(ending.seq, None)
            mine = row is not None and row.worker == completion.worker and row.attempt == ending.attempt
            accepted.append(mine)
            if row is None or not mine or row.state not in ("running", "cancelling"):
                continue
            if ending.parked and row.state == "running":
                parked.append(row)
            elif ending.slow and row.state == "running":
                slow.append((row, ending.device_s, ending.reason))
            elif ending.released or ending.parked:
                released.setdefault(ending.reason, []).append(row)
            elif row.state == "cancelling":
                endings.append((row, "cancelled", "cancelled by its owner", ending.device_s, ending.calibration))
            elif ending.payload is None:
                endings.append((row, "failed", ending.reason, ending.device_s, ending.calibration))
            else:
                endings.append((row, "succeeded", "", ending.device_s, ending.calibration))
                payloads.append({"seq": row.seq, "payload": ending.payload})
                sizes[row.seq] = len(ending.payload)
                ledger.store(row.owner, len(ending.payload))
        finish(txn, ledger, endings, sizes)
        execute_many(txn.connection, _INSERT_RESULT, payloads)
        if slow:
            self._slow_down(txn, ledger, slow)
        if parked:
            self._park(txn, ledger, parked)
        for why, rows_back in released.items():  # without a reason it was not begun: that says nothing about the job
            release(txn, ledger, rows_back, why or "its worker gave it back", self.settings.max_attempts if why else UNBOUNDED)
        return accepted

    def _slow_down(self, txn: Transaction, ledger: AccountLedger, rows: Sequence[tuple[Row, float, str]]) -> None:
        """Return jobs to the bulk lane that took longer than an interactive job may; their users pay for what they took."""
        changed = txn.ticks()
        for row, device_s, reason in rows:
            ledger.charge((row.device, row.owner, row.lane), device_s - row.estimate_s)
            ledger.enqueue((row.device, row.owner, BULK), 1)
            values = {"lane": BULK, "estimate_s": max(row.estimate_s, device_s, SLOW_S), "state": "queued", "worker": None}
            update = sa.update(jobs).where(jobs.c.seq == row.seq)
            txn.connection.execute(update.values(**values, started_at=None, changed=changed, reason=f"{reason}; queued again"))
            txn.changed.update((row.id, f"owner:{row.owner}"))

    def _park(self, txn: Transaction, ledger: AccountLedger, rows: Sequence[Row]) -> None:
        """Take jobs from their worker whose vendor's task nobody knows the fate of; back to the queue when somebody does by now."""
        seqs = [row.seq for row in rows]
        query = sa.select(vendor_members.c.seq).join(vendor_tasks, vendor_tasks.c.id == vendor_members.c.task)
        unknown = set(
            txn.connection.execute(query.where(vendor_members.c.seq.in_(seqs), vendor_tasks.c.state == "intent")).scalars()
        )
        waiting = [row for row in rows if row.seq in unknown]
        if waiting:
            reason = "the vendor may or may not have it: an administrator has to find out"
            update = sa.update(jobs).where(jobs.c.seq.in_([row.seq for row in waiting]))
            txn.connection.execute(update.values(worker=PARKED, reason=reason, changed=txn.ticks()))
            for row in waiting:
                txn.changed.update((row.id, f"owner:{row.owner}"))
        known = [row for row in rows if row.seq not in unknown]
        release(txn, ledger, known, "its vendor's task was resolved", self.settings.max_attempts)


@dataclass(eq=False)
class ExpireLease:
    """The operation `lose`: give up a worker that was not heard of, unless it was heard of since: `(worker, beats)`."""

    settings: Settings

    def __call__(self, txn: Transaction, silent: Sequence[tuple[str, int]]) -> list[int]:
        outcomes = []
        for worker, beats in silent:
            lost = sa.update(workers).where(workers.c.id == worker, workers.c.beats == beats, workers.c.lost.is_(False))
            if not txn.connection.execute(lost.values(lost=True)).rowcount:
                outcomes.append(0)
                continue
            ledger = AccountLedger(txn)
            held = _held(txn, worker)
            release(txn, ledger, held, "its worker was lost", self.settings.max_attempts)
            ledger.close()
            outcomes.append(len(held))
        return outcomes
