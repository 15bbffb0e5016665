"""Circuits, and checks of a service's database and state, that several tests use."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import httpx
import sqlalchemy as sa

from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.service.store.database import Database
from qpeft.service.store.schema import jobs, results

RY = Circuit(1, (Op("ry", (0,), Angle(0)),), 1, 1)
SLOW = Circuit(14, tuple(Op("ry", (q,), Angle(0)) for q in range(14)) + tuple(Op("cx", (q, q + 1)) for q in range(13)), 1, 1)
SHORT_LEASE = {"QPEFT_SERVICE_LEASE_S": "1.5"}


def audit_database(url: str, expected: int) -> None:
    """Every acknowledged job once, succeeded, with one result, in a sound database."""
    database = Database(url)
    with database.reader.connect() as connection:
        states = dict(connection.execute(sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)).all())
        assert states == {"succeeded": expected}
        assert connection.execute(sa.select(sa.func.count()).select_from(results)).scalar_one() == expected
        if database.sqlite:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    database.dispose()


def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def health_s(url: str, n: int = 10) -> float:
    """Median seconds of `GET /healthz` on a new connection each."""
    seconds = []
    for _ in range(n):
        start = time.monotonic()
        assert httpx.get(f"{url}/healthz", timeout=20).status_code == 200
        seconds.append(time.monotonic() - start)
    return statistics.median(seconds)
