"""Operations of administrators and of the service: users and keys, devices, retention. Each function is an operation of writer.py.

Every act of an administrator leaves a line in the audit log, in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from qpeft.errors import ServiceError
from qpeft.service.ids import new_id
from qpeft.service.store.audit import write_audit
from qpeft.service.store.ledger import AccountLedger, upsert
from qpeft.service.store.lifecycle import remove
from qpeft.service.store.quotas import BOUNDS
from qpeft.service.store.schema import (
    TERMINAL,
    Row,
    api_keys,
    batches,
    calibrations,
    counters,
    devices,
    idempotency,
    jobs,
    owners,
    programs,
    reservations,
    workers,
)
from qpeft.service.store.writer import Transaction

SCOPES: Final = ("submit", "read", "admin", "worker")
USED_S: Final = 86400.0  # a program's last use is written down once in half a day
DEVICE_STATES: Final = ("online", "draining", "maintenance")


@dataclass(frozen=True)
class NewKey:
    """A key for a user, who is made when there is none of that name; bounds that are given become the user's."""

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
    expires_at: float | None = None
    """Seconds since 1970 after which it is refused; None is never."""
    max_stored_bytes: int | None = None
    max_vendor_shots: int | None = None
    max_day_circuits: int | None = None
    max_day_shots: int | None = None


def probe(txn: Transaction, arguments: Sequence[None]) -> list[None]:
    """Write something, to know that the database can.

    Args:
        txn: transaction of the writer.
        arguments: one None per call.
    """
    txn.ticks()
    return [None for _ in arguments]


@dataclass(frozen=True)
class SetUser:
    """Change a user's bounds; None leaves one as it is. A disabled user's keys and sessions are refused, his queued jobs run.

    `reset` names bounds (of `BOUNDS`) that go back to the service's own.
    """

    actor: str
    user: str
    disabled: bool | None = None
    weight: float | None = None
    max_open_circuits: int | None = None
    max_stored_bytes: int | None = None
    max_vendor_shots: int | None = None
    max_day_circuits: int | None = None
    max_day_shots: int | None = None
    reset: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rotate:
    """A key to be replaced by a new one (`new_prefix`, `digest`) of the same user and scopes, and the seconds that it still works.

    `owner` is the user who asks, None for an administrator.
    """

    actor: str
    prefix: str
    new_prefix: str
    digest: bytes
    grace_s: float
    owner: str | None = None


@dataclass(frozen=True)
class Revoke:
    """Refuse a key from now on."""

    actor: str
    prefix: str


@dataclass(frozen=True)
class SetDevice:
    """Set a device to a state of `DEVICE_STATES`, with the reason that users see."""

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
    """Delete at most `part` finished jobs created before `jobs_before`, then idempotency keys older than `keys_before`."""

    jobs_before: float
    keys_before: float
    part: int = 64


def note_clock(txn: Transaction, times: Sequence[float]) -> list[None]:
    """Write down the time that the service believes in, so that the next start knows when it last ran.

    Args:
        txn: transaction of the writer.
        times: seconds since 1970, one per call.
    """
    insert = upsert(txn.connection.dialect.name, counters)
    seen = insert.on_conflict_do_update(index_elements=["name"], set_={"value": insert.excluded.value})
    txn.connection.execute(seen, {"name": "clock", "value": int(times[-1])})
    return [None for _ in times]


def start(txn: Transaction, configured: Sequence[tuple[str, ...]]) -> list[None]:
    """Make the counter and the configured devices; devices no longer configured stop being offered.

    Args:
        txn: transaction of the writer.
        configured: names of the devices, one tuple per call.
    """
    if txn.connection.execute(sa.select(counters.c.value).where(counters.c.name == "tick")).first() is None:
        raise ServiceError("the database was not migrated", status=0)
    for names in configured:
        known = {row.id for row in txn.connection.execute(sa.select(devices.c.id))}
        fresh = [{"id": name, "status": "online", "reason": "", "vtime": 0.0} for name in names if name not in known]
        if fresh:
            txn.connection.execute(devices.insert(), fresh)
    return [None for _ in configured]


def create_key(txn: Transaction, arguments: Sequence[NewKey]) -> list[str | ServiceError]:
    """Store keys, and their users where there is none of that name.

    Args:
        txn: transaction of the writer.
        arguments: the keys.

    Returns:
        The user's id for each key, or the refusal.
    """
    outcomes: list[str | ServiceError] = []
    for argument in arguments:
        if argument.only_first and txn.connection.execute(sa.select(api_keys.c.prefix).limit(1)).first():
            outcomes.append(ServiceError("keys exist already", status=409, code="not_first"))
            continue
        owner = txn.connection.execute(sa.select(owners.c.id).where(owners.c.name == argument.user)).scalar_one_or_none()
        limits = {name: getattr(argument, name) for name in ("weight", *BOUNDS)}
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
        key = {
            "prefix": argument.prefix,
            "digest": argument.digest,
            "owner": owner,
            "scopes": scopes,
            "created_at": txn.now,
            "expires_at": argument.expires_at,
        }
        txn.connection.execute(api_keys.insert(), key)
        write_audit(txn, argument.actor, "key.create", f"{argument.prefix} for {argument.user}: {scopes}")
        outcomes.append(owner)
    return outcomes


def set_user(txn: Transaction, arguments: Sequence[SetUser]) -> list[ServiceError | None]:
    """Change users' bounds, disable users and let them in again.

    Args:
        txn: transaction of the writer.
        arguments: the users and what changes.

    Returns:
        None for each user, or the refusal.
    """
    outcomes: list[ServiceError | None] = []
    for argument in arguments:
        named = {name: value for name in ("weight", *BOUNDS) if (value := getattr(argument, name)) is not None}
        told = " ".join(f"{name}={value}" for name, value in {**named, **dict.fromkeys(argument.reset, "default")}.items())
        values = {**named, **dict.fromkeys(argument.reset)}
        if argument.disabled is not None:
            values["disabled_at"] = txn.now if argument.disabled else None
            told = f"{'disabled' if argument.disabled else 'enabled'} {told}".rstrip()
        known = sa.select(owners.c.id).where(owners.c.name == argument.user)
        if (owner := txn.connection.execute(known).scalar_one_or_none()) is None:
            outcomes.append(ServiceError("no such user", status=404, code="not_found", value=argument.user))
            continue
        if values:
            txn.connection.execute(sa.update(owners).where(owners.c.id == owner).values(**values))
            write_audit(txn, argument.actor, "user.set", f"{argument.user}: {told}")
        outcomes.append(None)
    return outcomes


def revoke_key(txn: Transaction, arguments: Sequence[Revoke]) -> list[ServiceError | None]:
    """Revoke keys.

    Args:
        txn: transaction of the writer.
        arguments: the keys by their prefixes.

    Returns:
        None for each key, or the refusal for one that is not in use.
    """
    outcomes: list[ServiceError | None] = []
    for argument in arguments:
        update = sa.update(api_keys).where(api_keys.c.prefix == argument.prefix, api_keys.c.revoked_at.is_(None))
        if txn.connection.execute(update.values(revoked_at=txn.now)).rowcount:
            write_audit(txn, argument.actor, "key.revoke", argument.prefix)
            outcomes.append(None)
        else:
            outcomes.append(ServiceError("no such key in use", status=404, code="not_found", value=argument.prefix))
    return outcomes


def rotate_key(txn: Transaction, arguments: Sequence[Rotate]) -> list[Row | ServiceError]:
    """Replace keys. A new key is valid for as long as the old one was made for; the old one stays valid for a grace period.

    Args:
        txn: transaction of the writer.
        arguments: the old keys by their prefixes, the new keys and the grace periods in seconds.

    Returns:
        The row of each new key, or the refusal.
    """
    outcomes: list[Row | ServiceError] = []
    for argument in arguments:
        row = txn.connection.execute(sa.select(api_keys).where(api_keys.c.prefix == argument.prefix)).one_or_none()
        ended = row is None or row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= txn.now)
        if row is None or ended or argument.owner not in (None, row.owner):
            outcomes.append(ServiceError("no such key in use", status=404, code="not_found", value=argument.prefix))
            continue
        life_s = None if row.expires_at is None else row.expires_at - row.created_at
        new = {"prefix": argument.new_prefix, "digest": argument.digest, "owner": row.owner, "scopes": row.scopes}
        times = {"created_at": txn.now, "expires_at": None if life_s is None else txn.now + life_s}
        txn.connection.execute(api_keys.insert(), {**new, **times})
        ends = txn.now + argument.grace_s if row.expires_at is None else min(row.expires_at, txn.now + argument.grace_s)
        txn.connection.execute(sa.update(api_keys).where(api_keys.c.prefix == row.prefix).values(expires_at=ends))
        write_audit(
            txn, argument.actor, "key.rotate", f"{row.prefix} by {argument.new_prefix}, the old one for {argument.grace_s:.0f} s"
        )
        outcomes.append(txn.connection.execute(sa.select(api_keys).where(api_keys.c.prefix == argument.new_prefix)).one())
    return outcomes


def set_device(txn: Transaction, arguments: Sequence[SetDevice]) -> list[ServiceError | None]:
    """Set the status of devices. "online" takes and runs jobs; "draining" runs what is queued and takes nothing; "maintenance"
    takes jobs and runs nothing.

    Args:
        txn: transaction of the writer.
        arguments: the devices, their status and the reason.

    Returns:
        None for each device, or the refusal.
    """
    outcomes: list[ServiceError | None] = []
    for argument in arguments:
        update = sa.update(devices).where(devices.c.id == argument.device)
        if txn.connection.execute(update.values(status=argument.status, reason=argument.reason)).rowcount:
            write_audit(txn, argument.actor, "device.status", f"{argument.device}: {argument.status} {argument.reason}".rstrip())
            txn.changed.update(("devices", f"device:{argument.device}"))
            outcomes.append(None)
        else:
            outcomes.append(ServiceError("no such device", status=404, code="no_device", value=argument.device))
    return outcomes


def set_calibration(txn: Transaction, arguments: Sequence[SetCalibration]) -> list[ServiceError | None]:
    """Set calibrations. Running jobs end under the previous one; later leases use the new one.

    Args:
        txn: transaction of the writer.
        arguments: the devices and their calibrations.

    Returns:
        None for each calibration, or the refusal.
    """
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
        write_audit(txn, argument.actor, "device.calibration", f"{argument.device}: {argument.id}")
        txn.changed.update(("devices", f"device:{argument.device}"))
        outcomes.append(None)
    return outcomes


def purge(txn: Transaction, arguments: Sequence[Purge]) -> list[int]:
    """Delete a part of what is older than the retention.

    Args:
        txn: transaction of the writer.
        arguments: the retentions.

    Returns:
        How many jobs were deleted. Call again until that is 0.
    """
    return [_purge(txn, argument) for argument in arguments]


def _purge(txn: Transaction, argument: Purge) -> int:
    execute = txn.connection.execute
    first_kept = _first_since(txn, argument.jobs_before)
    old = sa.select(jobs.c.seq, jobs.c.owner, jobs.c.bytes).where(jobs.c.seq < first_kept, jobs.c.state.in_(TERMINAL))
    rows = execute(old.order_by(jobs.c.seq).limit(argument.part)).all()
    remove(txn, [row.seq for row in rows])
    ledger = AccountLedger(txn)
    for row in rows:
        ledger.store(row.owner, -row.bytes)
    ledger.close()
    if rows:
        return len(rows)
    execute(sa.delete(idempotency).where(idempotency.c.created_at < argument.keys_before))
    used = sa.select(jobs.c.batch).where(jobs.c.batch == batches.c.id)
    execute(sa.delete(batches).where(batches.c.created_at < argument.jobs_before, ~used.exists()))
    waiting = sa.select(jobs.c.program).where(jobs.c.seq < first_kept)  # old jobs that have not ended
    unused = programs.c.used_at < argument.jobs_before - USED_S
    execute(sa.delete(programs).where(unused, programs.c.hash.not_in(waiting)))
    execute(sa.delete(reservations).where(reservations.c.ends_at < argument.jobs_before))
    execute(sa.delete(workers).where(workers.c.lost.is_(True), workers.c.seen_at < argument.keys_before))
    return 0


def _first_since(txn: Transaction, time: float) -> int:
    """The first `seq` not created before `time`: found by halves, since `created_at` grows with `seq`."""
    low, high = 0, txn.tick
    while low < high:
        middle = (low + high) // 2
        row = txn.connection.execute(_FROM, {"seq": middle}).first()
        if row is None or row.created_at >= time:
            high = middle
        else:
            low = row.seq + 1
    return low


_FROM = sa.select(jobs.c.seq, jobs.c.created_at).where(jobs.c.seq >= sa.bindparam("seq")).order_by(jobs.c.seq).limit(1)
