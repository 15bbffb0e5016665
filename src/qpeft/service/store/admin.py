"""What administrators and the service itself do: users and keys, devices, retention. Each function is an operation of writer.py.

Every act of an administrator leaves a line in the audit log, in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from qpeft.errors import ServiceError
from qpeft.service.ids import new_id
from qpeft.service.store.lifecycle import remove
from qpeft.service.store.schema import (
    TERMINAL,
    api_keys,
    audit,
    batches,
    calibrations,
    counters,
    devices,
    idempotency,
    jobs,
    owners,
    programs,
    workers,
)
from qpeft.service.store.writer import Transaction

SCOPES: Final = ("submit", "read", "admin", "worker")
DEVICE_STATES: Final = ("online", "draining", "maintenance")


@dataclass(frozen=True)
class NewKey:
    actor: str
    prefix: str
    digest: bytes
    user: str
    scopes: tuple[str, ...]
    weight: float | None = None
    max_open_circuits: int | None = None
    only_first: bool = False
    """Refuse when any key exists: the key printed at the first start."""
    only_one: bool = False
    """Revoke the user's other keys."""


@dataclass(frozen=True)
class Revoke:
    actor: str
    prefix: str


@dataclass(frozen=True)
class SetDevice:
    actor: str
    device: str
    status: str
    reason: str


@dataclass(frozen=True)
class SetCalibration:
    """Run a device under calibration `id` from now on; `data` is its JSON, None for one that is stored."""

    actor: str
    device: str
    id: str
    data: bytes | None


@dataclass(frozen=True)
class Purge:
    """Delete finished jobs created before `jobs_before` and idempotency keys older than `keys_before`."""

    jobs_before: float
    keys_before: float


def note(txn: Transaction, actor: str, act: str, detail: str) -> None:
    row = {"seq": txn.ticks(), "at": txn.now, "actor": actor, "act": act, "detail": detail[:1000]}
    txn.connection.execute(audit.insert(), row)


def start(txn: Transaction, configured: Sequence[tuple[str, ...]]) -> list[None]:
    """Make the counter and the configured devices; devices no longer configured stop being offered."""
    if txn.connection.execute(sa.select(counters.c.value).where(counters.c.name == "tick")).first() is None:
        raise ServiceError("the database was not migrated", status=0)
    for names in configured:
        known = {row.id for row in txn.connection.execute(sa.select(devices.c.id))}
        fresh = [{"id": name, "status": "online", "reason": "", "vtime": 0.0} for name in names if name not in known]
        if fresh:
            txn.connection.execute(devices.insert(), fresh)
    return [None for _ in configured]


def create_key(txn: Transaction, arguments: Sequence[NewKey]) -> list[str | ServiceError]:
    """Store a key, and its user when there is none of that name; returns the user's id."""
    outcomes: list[str | ServiceError] = []
    for argument in arguments:
        if argument.only_first and txn.connection.execute(sa.select(api_keys.c.prefix).limit(1)).first():
            outcomes.append(ServiceError("keys exist already", status=409, code="not_first"))
            continue
        owner = txn.connection.execute(sa.select(owners.c.id).where(owners.c.name == argument.user)).scalar_one_or_none()
        limits = {"weight": argument.weight, "max_open_circuits": argument.max_open_circuits}
        given = {name: value for name, value in limits.items() if value is not None}
        if owner is None:
            owner = new_id("u")
            row = {"id": owner, "name": argument.user, "open_circuits": 0, "created_at": txn.now, "weight": 1.0, **given}
            txn.connection.execute(owners.insert(), row)
        elif given:
            txn.connection.execute(sa.update(owners).where(owners.c.id == owner).values(**given))
        if argument.only_one:
            others = sa.update(api_keys).where(api_keys.c.owner == owner, api_keys.c.revoked_at.is_(None))
            txn.connection.execute(others.values(revoked_at=txn.now))
        scopes = " ".join(argument.scopes)
        key = {"prefix": argument.prefix, "digest": argument.digest, "owner": owner, "scopes": scopes, "created_at": txn.now}
        txn.connection.execute(api_keys.insert(), key)
        note(txn, argument.actor, "key.create", f"{argument.prefix} for {argument.user}: {scopes}")
        outcomes.append(owner)
    return outcomes


def revoke_key(txn: Transaction, arguments: Sequence[Revoke]) -> list[ServiceError | None]:
    outcomes: list[ServiceError | None] = []
    for argument in arguments:
        update = sa.update(api_keys).where(api_keys.c.prefix == argument.prefix, api_keys.c.revoked_at.is_(None))
        if txn.connection.execute(update.values(revoked_at=txn.now)).rowcount:
            note(txn, argument.actor, "key.revoke", argument.prefix)
            outcomes.append(None)
        else:
            outcomes.append(ServiceError("no such key in use", status=404, code="not_found", value=argument.prefix))
    return outcomes


def set_device(txn: Transaction, arguments: Sequence[SetDevice]) -> list[ServiceError | None]:
    """online: takes and runs; draining: runs what is queued, takes nothing; maintenance: takes, runs nothing."""
    outcomes: list[ServiceError | None] = []
    for argument in arguments:
        update = sa.update(devices).where(devices.c.id == argument.device)
        if txn.connection.execute(update.values(status=argument.status, reason=argument.reason)).rowcount:
            note(txn, argument.actor, "device.status", f"{argument.device}: {argument.status} {argument.reason}".rstrip())
            txn.changed.update(("devices", f"device:{argument.device}"))
            outcomes.append(None)
        else:
            outcomes.append(ServiceError("no such device", status=404, code="no_device", value=argument.device))
    return outcomes


def set_calibration(txn: Transaction, arguments: Sequence[SetCalibration]) -> list[ServiceError | None]:
    """What is leased from now on runs under it; what is running ends under the one before."""
    outcomes: list[ServiceError | None] = []
    for argument in arguments:
        known = sa.select(calibrations.c.id).where(calibrations.c.device == argument.device, calibrations.c.id == argument.id)
        if txn.connection.execute(known).first() is None:
            if argument.data is None:
                outcomes.append(ServiceError("no such calibration", status=404, code="not_found", value=argument.id))
                continue
            row = {"device": argument.device, "id": argument.id, "created_at": txn.now, "data": argument.data}
            txn.connection.execute(calibrations.insert(), row)
        update = sa.update(devices).where(devices.c.id == argument.device)
        txn.connection.execute(update.values(calibration=argument.id, pinned=True))
        note(txn, argument.actor, "device.calibration", f"{argument.device}: {argument.id}")
        txn.changed.update(("devices", f"device:{argument.device}"))
        outcomes.append(None)
    return outcomes


@dataclass(eq=False)
class PurgeOld:
    """The operation `purge`; forgets which programs are known stored, since it deletes those that no job uses."""

    known: set[str]

    def __call__(self, txn: Transaction, arguments: Sequence[Purge]) -> list[int]:
        execute = txn.connection.execute
        outcomes = []
        for argument in arguments:
            old = sa.select(jobs.c.seq).where(jobs.c.created_at < argument.jobs_before, jobs.c.state.in_(TERMINAL))
            oldest = execute(sa.select(jobs.c.created_at).order_by(jobs.c.seq).limit(1)).scalar_one_or_none()
            due = oldest is not None and oldest < argument.jobs_before  # else every job would be looked at for nothing
            seqs = list(execute(old.order_by(jobs.c.seq).limit(20_000)).scalars()) if due else []
            remove(txn, seqs)
            execute(sa.delete(idempotency).where(idempotency.c.created_at < argument.keys_before))
            if seqs:
                used = sa.select(jobs.c.batch).where(jobs.c.batch == batches.c.id)
                execute(sa.delete(batches).where(batches.c.created_at < argument.jobs_before, ~used.exists()))
                self.known.clear()
                execute(sa.delete(programs).where(programs.c.hash.not_in(sa.select(jobs.c.program).distinct())))
            silent = sa.delete(workers).where(workers.c.lost.is_(True), workers.c.seen_at < argument.keys_before)
            execute(silent)
            outcomes.append(len(seqs))
        return outcomes
