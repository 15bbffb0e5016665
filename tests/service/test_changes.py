"""Who is woken by a change: one worker for work, everybody for the rest, in every process that shares a PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from qpeft.service.core import Service
from qpeft.service.settings import Settings
from qpeft.service.store.changes import ChangeHub
from tests.service.checks import RY, until
from tests.service.engine import Engine
from tests.service.processes import Server


def test_work_wakes_one_and_is_passed_on() -> None:
    async def story() -> None:
        hub = ChangeHub()
        with hub.listen("device:a", "worker:1") as first, hub.listen("device:a") as second, hub.listen("device:b") as other:
            hub.wake({"device:a"})
            assert [event.is_set() for event in (first, second, other)] == [True, False, False]
            hub.wake({"device:a"})
            assert second.is_set()
            second.clear()
            hub.wake({"worker:1"})
            assert not second.is_set()
        with hub.listen("device:a") as left:
            with hub.listen("device:a") as went:
                left.set()
                hub.wake({"device:a"})
                left.clear()
                assert went.is_set()
            assert left.is_set()  # told to one that left, then to the next
        with hub.listen("job") as one, hub.listen("job") as two:
            hub.wake({"job"})
            assert one.is_set()
            assert two.is_set()

    asyncio.run(story())


def test_a_lease_tells_that_there_is_more(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    told: list[set[str]] = []
    engine.writer.notify = told.append
    owner = engine.user("u")
    engine.submit(engine.submission(owner, kind="batch", n=3))
    worker = engine.hello(owner)
    held: list[tuple[int, int]] = []
    for left in (True, True, False):
        told.clear()
        (job,) = engine.lease(worker, owner, holding=tuple(held), max_jobs=1).jobs
        held.append((job.seq, job.attempt))
        assert ("device:simulator" in {name for names in told for name in names}) is left


@pytest.mark.postgres
def test_processes_that_share_a_database_hear_each_other(postgres_url: str, tmp_path: Path) -> None:
    """Also after the listening connection was ended from the database's side."""

    async def heard(one: Service, other: Service) -> float:
        with other.hub.listen("device:simulator") as event:
            event.clear()
            start = time.monotonic()
            one.writer.notify = None  # in one process nobody but the database tells
            await one.writer.call(_say, "device:simulator")
            await asyncio.wait_for(event.wait(), 5)
            return time.monotonic() - start

    async def story() -> None:
        settings = Settings(database=postgres_url, data_dir=tmp_path, devices=("simulator",))
        one, other = Service(settings), Service(settings)
        for service in (one, other):
            service.start()
        try:
            await _until(lambda: one.hub.poll_s is None and other.hub.poll_s is None)
            assert await heard(one, other) < 2
            await one.ask(_end_listeners, one)
            await _until(lambda: other.hub.poll_s is not None)
            await _until(lambda: other.hub.poll_s is None)
            assert await heard(one, other) < 2
            with other.hub.listen("job-of-many") as event:
                event.clear()
                names = {*(f"j{k:026d}" for k in range(3000)), "job-of-many"}
                await one.writer.call(_say, names)
                await asyncio.wait_for(event.wait(), 5)
        finally:
            for service in (one, other):
                await service.stop()
                service.close()

    asyncio.run(story())


def _say(txn, arguments):  # type: ignore[no-untyped-def]
    for names in arguments:
        txn.changed.update({names} if isinstance(names, str) else names)
    return [None for _ in arguments]


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen in time")


def _end_listeners(service: Service) -> None:
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
    with service.database.reader.connect() as connection:
        assert len(connection.execute(sa.text(ended)).all()) == 2


@pytest.mark.slow
@pytest.mark.postgres
def test_idle_workers_cost_nothing_and_one_gets_the_job(sqlite_server: Callable[..., Server], postgres_url: str) -> None:
    """Two API processes, three workers: a job that is submitted to either process starts at once."""
    server = sqlite_server("--executors", "0", "--workers", "2", "--database", postgres_url)
    key = server.new_key("workers", "worker")
    workers = [server.worker(key, f"worker{k}") for k in range(3)]
    client = server.client()
    try:
        until(lambda: client.devices()[0]["workers"] == 3, 60)
        seconds = []
        for k in range(20):
            start = time.monotonic()
            client.result(client.submit(RY, device="simulator", params=[0.1 * k], shots=5)["id"])
            seconds.append(time.monotonic() - start)
        assert sorted(seconds)[10] < 2.0
    finally:
        for worker in workers:
            worker.kill()
