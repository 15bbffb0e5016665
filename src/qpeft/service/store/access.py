"""Who may use a device, and when: access lists and reservations. Each function is an operation of writer.py.

A restricted device takes submissions of listed users only. While a reservation runs, only its user's jobs are leased on the device;
others' jobs wait in the queue, and what was leased before runs to its end. Reservations of one device do not overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from qpeft.errors import ServiceError
from qpeft.service.store.audit import write_audit
from qpeft.service.store.schema import device_users, devices, owners, reservations
from qpeft.service.store.writer import Transaction

MOST_S = 31 * 86400.0  # of one reservation


@dataclass(frozen=True)
class SetAccess:
    """A device's access list: everybody when `users` is None, else these and no others."""

    actor: str
    device: str
    users: tuple[str, ...] | None


@dataclass(frozen=True)
class Reserve:
    """A device for one user from `starts_at` to `ends_at`, in seconds since 1970."""

    actor: str
    id: str
    device: str
    user: str
    starts_at: float
    ends_at: float
    note: str


@dataclass(frozen=True)
class CancelReservation:
    """A reservation to end."""

    actor: str
    id: str


def _owners(txn: Transaction, users: Sequence[str]) -> dict[str, str]:
    """Ids by name; ServiceError 404 for a name that no user has."""
    found = {
        row.name: row.id for row in txn.connection.execute(sa.select(owners.c.id, owners.c.name).where(owners.c.name.in_(users)))
    }
    if missing := [name for name in users if name not in found]:
        raise ServiceError("no such user", status=404, code="not_found", value=", ".join(missing)[:200])
    return found


def _check_device(txn: Transaction, device: str) -> None:
    if txn.connection.execute(sa.select(devices.c.id).where(devices.c.id == device)).first() is None:
        raise ServiceError("no such device", status=404, code="no_device", value=device)


def set_access(txn: Transaction, arguments: Sequence[SetAccess]) -> list[ServiceError | None]:
    """Replace devices' access lists.

    Args:
        txn: transaction of the writer.
        arguments: the devices and the users that may use each; None for every user.

    Returns:
        None for each device, or the refusal.
    """
    outcomes: list[ServiceError | None] = []
    for argument in arguments:
        try:
            _check_device(txn, argument.device)
            found = _owners(txn, argument.users or ())
        except ServiceError as refusal:
            outcomes.append(refusal)
            continue
        txn.connection.execute(sa.delete(device_users).where(device_users.c.device == argument.device))
        if found:
            txn.connection.execute(device_users.insert(), [{"device": argument.device, "owner": owner} for owner in found.values()])
        update = sa.update(devices).where(devices.c.id == argument.device)
        txn.connection.execute(update.values(restricted=argument.users is not None))
        told = "everybody" if argument.users is None else ", ".join(argument.users) or "nobody"
        write_audit(txn, argument.actor, "device.access", f"{argument.device}: {told}")
        outcomes.append(None)
    return outcomes


def may_use(txn: Transaction, device: str, owner: str) -> bool:
    """Whether the user is on a restricted device's list.

    Args:
        txn: transaction of the writer.
        device: name of the device.
        owner: id of the user.
    """
    listed = sa.select(device_users.c.owner).where(device_users.c.device == device, device_users.c.owner == owner)
    return txn.connection.execute(listed).first() is not None


def reserve(txn: Transaction, arguments: Sequence[Reserve]) -> list[ServiceError | None]:
    """Make reservations.

    Args:
        txn: transaction of the writer.
        arguments: the reservations.

    Returns:
        None for each, or the refusal for one that overlaps another, lies in the past or is too long.
    """
    outcomes: list[ServiceError | None] = []
    for argument in arguments:
        try:
            _check_device(txn, argument.device)
            owner = _owners(txn, [argument.user])[argument.user]
            _check_times(txn, argument)
        except ServiceError as refusal:
            outcomes.append(refusal)
            continue
        row = {"id": argument.id, "device": argument.device, "owner": owner, "note": argument.note}
        txn.connection.execute(reservations.insert(), {**row, "starts_at": argument.starts_at, "ends_at": argument.ends_at})
        seconds = argument.ends_at - argument.starts_at
        write_audit(
            txn, argument.actor, "reservation.create", f"{argument.id}: {argument.device} for {argument.user}, {seconds:.0f} s"
        )
        outcomes.append(None)
    return outcomes


def _check_times(txn: Transaction, argument: Reserve) -> None:
    seconds = argument.ends_at - argument.starts_at
    if argument.ends_at <= txn.now or not 0 < seconds <= MOST_S:
        bound = f"ends in the future, at most {MOST_S / 86400:g} days long"
        raise ServiceError("a reservation cannot have these times", status=422, code="times", value=f"{seconds:.0f} s", bound=bound)
    overlap = sa.select(reservations.c.id).where(
        reservations.c.device == argument.device,
        reservations.c.ends_at > argument.starts_at,
        reservations.c.starts_at < argument.ends_at,
    )
    if (other := txn.connection.execute(overlap).scalar()) is not None:
        raise ServiceError("the device is reserved then", status=409, code="reserved", value=other, hint="choose another time")


def cancel_reservation(txn: Transaction, arguments: Sequence[CancelReservation]) -> list[ServiceError | None]:
    """End reservations. Jobs that wait for their end are served at once.

    Args:
        txn: transaction of the writer.
        arguments: the reservations by their ids.

    Returns:
        None for each, or the refusal.
    """
    outcomes: list[ServiceError | None] = []
    for argument in arguments:
        device = txn.connection.execute(sa.select(reservations.c.device).where(reservations.c.id == argument.id)).scalar()
        if device is None:
            outcomes.append(ServiceError("no such reservation", status=404, code="not_found", value=argument.id))
            continue
        txn.connection.execute(sa.delete(reservations).where(reservations.c.id == argument.id))
        txn.changed.add(f"device:{device}")
        write_audit(txn, argument.actor, "reservation.cancel", f"{argument.id}: {device}")
        outcomes.append(None)
    return outcomes


_RUNNING = sa.select(reservations.c.owner).where(
    reservations.c.device == sa.bindparam("device"),
    reservations.c.ends_at > sa.bindparam("now"),
    reservations.c.starts_at <= sa.bindparam("now"),
)


def reserved_for(txn: Transaction, device: str) -> str | None:
    """The user whose reservation of the device runs now.

    Args:
        txn: transaction of the writer.
        device: name of the device.

    Returns:
        The user's id, or None.
    """
    found: str | None = txn.connection.execute(_RUNNING, {"device": device, "now": txn.now}).scalar()
    return found
