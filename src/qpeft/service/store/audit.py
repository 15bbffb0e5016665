"""The audit log: who did what to what, in the transaction that did it."""

from __future__ import annotations

from qpeft.service.store.schema import audit, storable
from qpeft.service.store.writer import Transaction


def write_audit(txn: Transaction, actor: str, act: str, detail: str) -> None:
    """Add a line.

    Args:
        txn: the transaction that does what is told.
        actor: prefix of the key that asked for it, or the part of the service that did it.
        act: what was done, such as `key.create`.
        detail: to what.
    """
    row = {"seq": txn.ticks(), "at": txn.now, "actor": actor, "act": act, "detail": storable(detail, 1000)}
    txn.connection.execute(audit.insert(), row)
