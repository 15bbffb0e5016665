"""Addresses that are told when jobs end. Each function is an operation of writer.py.

A webhook has a place `(changed, seq)` in its user's changes, as a stream of events has. What is beyond it is delivered in order.
The place moves after the other side has said 2xx. One process at a time delivers: it holds the webhook for `HOLD_S` seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from qpeft.errors import ServiceError
from qpeft.service.store.audit import write_audit
from qpeft.service.store.schema import Row, jobs, storable, webhooks
from qpeft.service.store.writer import Transaction

MOST_OF_ONE_USER: Final = 10
HOLD_S: Final = 60.0
LONGEST_DELAY_S: Final = 3600.0
GIVE_UP_S: Final = 3 * 86400.0


@dataclass(frozen=True)
class NewWebhook:
    """An address of a user's, and the secret that deliveries are signed with."""

    actor: str
    id: str
    owner: str
    url: str
    secret: bytes


@dataclass(frozen=True)
class RemoveWebhook:
    """A webhook to forget, and whose."""

    actor: str
    id: str
    owner: str


@dataclass(frozen=True)
class Delivery:
    """What became of a delivery up to the place `(changed, seq)`; `error` is empty when it was taken."""

    id: str
    changed: int
    seq: int
    error: str = ""


def add(txn: Transaction, arguments: Sequence[NewWebhook]) -> list[ServiceError | None]:
    """Store webhooks. They begin with the changes from now on.

    Args:
        txn: transaction of the writer.
        arguments: the webhooks.

    Returns:
        None for each, or the refusal for one too many of its user.
    """
    outcomes: list[ServiceError | None] = []
    for argument in arguments:
        count = sa.select(sa.func.count()).select_from(webhooks).where(webhooks.c.owner == argument.owner)
        if (n := int(txn.connection.execute(count).scalar_one())) >= MOST_OF_ONE_USER:
            outcomes.append(ServiceError("too many webhooks", status=429, code="quota", value=n + 1, bound=MOST_OF_ONE_USER))
            continue
        row = {"id": argument.id, "owner": argument.owner, "url": argument.url, "secret": argument.secret, "created_at": txn.now}
        place = {"changed": txn.ticks(), "seq": 0, "due_at": txn.now, "failures": 0, "error": ""}
        txn.connection.execute(webhooks.insert(), {**row, **place})
        write_audit(txn, argument.actor, "webhook.create", f"{argument.id}: {argument.url}")
        outcomes.append(None)
    return outcomes


def remove(txn: Transaction, arguments: Sequence[RemoveWebhook]) -> list[ServiceError | None]:
    """Delete webhooks.

    Args:
        txn: transaction of the writer.
        arguments: the webhooks by their ids and users.

    Returns:
        None for each, or the refusal.
    """
    outcomes: list[ServiceError | None] = []
    for argument in arguments:
        mine = (webhooks.c.id == argument.id, webhooks.c.owner == argument.owner)
        if txn.connection.execute(sa.delete(webhooks).where(*mine)).rowcount:
            write_audit(txn, argument.actor, "webhook.delete", argument.id)
            outcomes.append(None)
        else:
            outcomes.append(ServiceError("no such webhook", status=404, code="not_found", value=argument.id))
    return outcomes


def due(now: float) -> sa.Select[Any]:
    """Webhooks with something to deliver that nobody is delivering."""
    place = sa.tuple_(jobs.c.changed, jobs.c.seq) > sa.tuple_(webhooks.c.changed, webhooks.c.seq)
    news = sa.select(jobs.c.seq).where(jobs.c.owner == webhooks.c.owner, place)
    return sa.select(webhooks).where(webhooks.c.disabled_at.is_(None), webhooks.c.due_at <= now, news.exists()).limit(50)


def take_due(txn: Transaction, arguments: Sequence[None]) -> list[tuple[Row, ...]]:
    """Take the webhooks that are due. No other process gets them for `HOLD_S` seconds.

    Args:
        txn: transaction of the writer.
        arguments: one None per call.

    Returns:
        The rows of the webhooks for the first call, nothing for the others.
    """
    rows = tuple(txn.connection.execute(due(txn.now)))
    if rows:
        held = sa.update(webhooks).where(webhooks.c.id.in_([row.id for row in rows]))
        txn.connection.execute(held.values(due_at=txn.now + HOLD_S))
    return [rows if number == 0 else () for number in range(len(arguments))]


def settle(txn: Transaction, deliveries: Sequence[Delivery]) -> list[None]:
    """Record deliveries. After a failure the next try is 2 s later, doubled up to an hour. After three days of failures the webhook
    is disabled.

    Args:
        txn: transaction of the writer.
        deliveries: the webhooks with their new places, or the error.
    """
    for delivery in deliveries:
        row = txn.connection.execute(sa.select(webhooks).where(webhooks.c.id == delivery.id)).one_or_none()
        if row is None:
            continue
        update = sa.update(webhooks).where(webhooks.c.id == delivery.id)
        if not delivery.error:
            done = {"changed": delivery.changed, "seq": delivery.seq, "due_at": txn.now}
            txn.connection.execute(update.values(failures=0, failing_since=None, error="", **done))
            continue
        since = txn.now if row.failing_since is None else row.failing_since
        given_up = txn.now - since > GIVE_UP_S
        later = txn.now + min(2.0 ** min(row.failures + 1, 20), LONGEST_DELAY_S)
        values = {"failures": row.failures + 1, "failing_since": since, "due_at": later, "error": storable(delivery.error, 500)}
        txn.connection.execute(update.values(**values, disabled_at=txn.now if given_up else None))
        if given_up:
            write_audit(txn, "service", "webhook.disable", f"{delivery.id}: {delivery.error}")
    return [None for _ in deliveries]
