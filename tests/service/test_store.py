"""The store alone: what is committed once, what is kept for whom and for how long, what a database refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from qpeft.errors import ServiceError
from qpeft.service.clock import Clock
from qpeft.service.ids import new_key
from qpeft.service.store import admin, leases, lifecycle
from qpeft.service.store.database import Database
from qpeft.service.store.schema import flows, jobs, owners, programs, results
from qpeft.service.store.writer import Writer
from tests.service.engine import Engine

BACKENDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(params=BACKENDS)
def engine(request: pytest.FixtureRequest, make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(request.getfixturevalue("postgres_url") if request.param == "postgres" else None, max_stored_bytes=4096)


def finish(engine: Engine, owner: str, payload: bytes | None = b"r", reason: str = "") -> int:
    """Run what is queued; returns how many jobs that were."""
    worker, total = engine.hello(owner), 0
    while held := engine.lease(worker, owner).jobs:
        engine.complete(worker, owner, [leases.JobOutcome(j.seq, j.attempt, payload, reason, 0.01, None) for j in held])
        total += len(held)
    return total


def stored_bytes(engine: Engine, owner: str) -> int:
    with engine.database.reader.connect() as connection:
        return int(connection.execute(sa.select(owners.c.stored_bytes).where(owners.c.id == owner)).scalar_one())


def test_what_was_committed_is_never_run_again(make_engine: Callable[..., Engine]) -> None:
    """Also when telling the readers fails, which comes after the commit."""
    engine = make_engine()
    owner = engine.user("u")

    def fails(names: set[str]) -> None:
        raise RuntimeError(names)

    engine.writer.notify = fails
    first = engine.submit(engine.submission(owner))
    second = engine.submit(engine.submission(owner))
    with engine.database.reader.connect() as connection:
        found = connection.execute(sa.select(jobs.c.id)).scalars().all()
    assert sorted(found) == sorted([first.id, second.id])


def test_a_value_that_a_database_refuses_is_one_jobs_trouble(engine: Engine) -> None:
    """NUL and lone surrogates in a worker's reason are stored as marks; others in the group are not held up."""
    owner = engine.user("u")
    batch = engine.submit(engine.submission(owner, kind="batch", n=3))
    assert finish(engine, owner, None, "a\0b\ud800c") == 3
    (row, *_) = engine.queries.batch_results(batch.id, 0, 10, 1 << 20).rows
    assert row[0].reason == "a\ufffdb?c"


def test_bytes_are_a_quota_and_come_back(engine: Engine) -> None:
    owner, other = engine.user("u"), engine.user("other")
    batch = engine.submit(engine.submission(owner, kind="batch", n=2, rows=100))
    assert stored_bytes(engine, owner) == 2 * 800
    finish(engine, owner, b"x" * 1000)
    assert stored_bytes(engine, owner) == 2 * 1800
    with pytest.raises(ServiceError, match="bytes of parameters and results") as caught:
        engine.submit(engine.submission(owner, rows=100))
    assert (caught.value.status, caught.value.retry_after_s) == (429, 60)
    engine.submit(engine.submission(other, rows=100))
    engine.delete("batch", batch.id, owner)
    assert stored_bytes(engine, owner) == 0
    engine.submit(engine.submission(owner, rows=100))


def test_purging_goes_in_parts_and_keeps_what_is_needed(engine: Engine) -> None:
    owner = engine.user("u")
    batch = engine.submit(engine.submission(owner, kind="batch", n=8))
    finish(engine, owner)
    waiting = engine.submit(engine.submission(owner))
    purge = admin.Purge(engine.clock.now() + 3 * 86400, 0.0, part=3)
    assert engine.writer.call_sync(admin.purge, purge) == 3
    page = engine.queries.batch_results(batch.id, 0, 100, 1 << 20)
    assert [row.position for row, _ in page.rows] == [3, 4, 5, 6, 7]
    assert (page.following, page.complete) == (8, True)
    assert engine.queries.batch_view(owner, batch.id)["state"] == "succeeded"
    left = [engine.writer.call_sync(admin.purge, purge) for _ in range(3)]
    assert left == [3, 2, 0]
    with engine.database.reader.connect() as connection:
        assert connection.execute(sa.select(jobs.c.id)).scalars().all() == [waiting.id]
        assert connection.execute(sa.select(sa.func.count()).select_from(results)).scalar_one() == 0
        assert connection.execute(sa.select(sa.func.count()).select_from(programs)).scalar_one() == 1
    assert stored_bytes(engine, owner) == 8
    with pytest.raises(ServiceError, match="no such batch"):
        engine.queries.batch(owner, batch.id)
    assert finish(engine, owner) == 1


def test_purging_by_a_clock_that_was_wrong_keeps_what_is_young(engine: Engine) -> None:
    """Jobs that were stored while the clock was years ahead do not make later ones old."""
    owner = engine.user("u")
    engine.submit(engine.submission(owner))
    engine.submit(engine.submission(owner))
    finish(engine, owner)
    with engine.database.writer.begin() as connection:
        first = connection.execute(sa.select(sa.func.min(jobs.c.seq))).scalar_one()
        connection.execute(sa.update(jobs).where(jobs.c.seq == first).values(created_at=engine.clock.now() + 1e8))
    assert engine.writer.call_sync(admin.purge, admin.Purge(engine.clock.now() - 86400, 0.0)) == 0


def test_keys_end_and_users_are_disabled(engine: Engine) -> None:
    now = engine.clock.now()
    _, prefix, digest = new_key()
    scopes = ("read",)
    engine.writer.call_sync(admin.create_key, admin.NewKey("test", prefix, digest, "u", scopes, expires_at=now + 100))
    assert engine.queries.key(digest, now) is not None
    assert engine.queries.key(digest, now + 101) is None
    engine.writer.call_sync(admin.set_user, admin.SetUser("test", "u", disabled=True))
    assert engine.queries.key(digest, now) is None
    engine.writer.call_sync(admin.set_user, admin.SetUser("test", "u", disabled=False))
    assert engine.queries.key(digest, now) is not None
    with pytest.raises(ServiceError, match="no such user"):
        engine.writer.call_sync(admin.set_user, admin.SetUser("test", "nobody", disabled=True))


def test_users_of_one_database_share_its_clock(engine: Engine) -> None:
    """Two API hosts whose clocks are days apart: on PostgreSQL what is written has the database's time."""
    if engine.database.sqlite:
        pytest.skip("SQLite has one API process")

    class Wrong(Clock):
        def now(self) -> float:
            return super().now() + 5 * 86400

    other = Writer(Database(engine.database.url.render_as_string(hide_password=False)), Wrong())
    try:
        owner = engine.user("u")
        submission = engine.submission(owner, expires_s=3600.0)
        receipt = other.call_sync(engine.submit_operation, submission)
        assert abs(receipt.created_at - engine.clock.now()) < 60
        other.call_sync(lifecycle.expire, None)
        assert engine.queries.job(owner, receipt.id).state == "queued"
    finally:
        other.close()
        other.database.dispose()


def test_an_interactive_job_that_takes_long_waits_with_the_longer_ones(engine: Engine) -> None:
    """A worker with a long job takes interactive jobs only; one that turns out long returns to the bulk lane, and its user pays."""
    owner = engine.user("u")
    long = engine.submit(engine.submission(owner, estimate_s=5.0)).id
    small = engine.submit(engine.submission(owner, estimate_s=0.01)).id
    worker = engine.hello(owner)
    (job,) = engine.lease(worker, owner, interactive=True).jobs
    assert job.id == small
    held = ((job.seq, job.attempt),)
    assert engine.lease(worker, owner, held, interactive=True).jobs == ()
    slow = leases.JobOutcome(job.seq, job.attempt, None, "it takes more than 2.0 s", 2.0, None, released=True, slow=True)
    assert engine.complete(worker, owner, [slow]) == [True]
    assert engine.lease(worker, owner, interactive=True).jobs == ()
    row = engine.queries.job(owner, small)
    assert (row.state, row.lane, row.estimate_s, row.worker, row.attempt) == ("queued", 1, 2.0, None, 1)
    assert "queued again" in row.reason
    with engine.database.reader.connect() as connection:
        kept = {row.lane: (row.queued, row.vtime) for row in connection.execute(sa.select(flows))}
    assert (kept[0][0], kept[1][0]) == (0, 2)
    assert kept[0][1] >= 2.0
    assert finish(engine, owner) == 2
    assert {engine.queries.job(owner, one).state for one in (long, small)} == {"succeeded"}
