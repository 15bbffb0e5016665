"""What an operator does to a database, and what the service must not do to it: check, migrate, go back, restore, a wrong clock."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
import sqlalchemy as sa

from qpeft.errors import ServiceError
from qpeft.service import maintenance
from qpeft.service.server import owned
from qpeft.service.store import access, leases
from qpeft.service.store.database import Database, revisions
from qpeft.service.store.schema import flows, jobs, owners, results
from tests.service.checks import RY, until
from tests.service.engine import Engine
from tests.service.postgres import Cluster, binaries
from tests.service.processes import Server

FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A store that the commands find: `maintenance.verify(folder_of(engine))`."""
    if request.param == "sqlite":
        return make_engine()
    url = request.getfixturevalue("postgres_url")
    monkeypatch.setenv("QPEFT_SERVICE_DATABASE", url)
    return make_engine(url)


def folder_of(engine: Engine) -> Path | None:
    return Path(str(engine.database.url.database)).parent if engine.database.sqlite else None


def test_verify_says_what_disagrees(engine: Engine) -> None:
    owner = engine.user("u")
    engine.submit(engine.submission(owner, kind="batch", n=3))
    worker = engine.hello(owner)
    held = engine.lease(worker, owner, max_jobs=2).jobs
    engine.complete(worker, owner, [leases.JobOutcome(job.seq, job.attempt, b"r", "", 0.01, None) for job in held])
    assert maintenance.verify(folder_of(engine)) == []
    with engine.database.writer.connect() as connection:
        engine.database.begin(connection)
        connection.execute(sa.delete(results).where(results.c.seq == held[0].seq))
        connection.execute(sa.update(owners).where(owners.c.id == owner).values(open_circuits=7))
        connection.execute(sa.update(flows).values(queued=5))
        connection.commit()
    wrong = "\n".join(maintenance.verify(folder_of(engine)))
    assert "1 jobs succeeded and have no result" in wrong
    assert "u: 7 open circuits are counted, 1 are there" in wrong
    assert "5 jobs" in wrong


def test_back_to_an_older_schema_and_forward(engine: Engine) -> None:
    folder, newest = folder_of(engine), revisions()[-1]
    owner = engine.user("u")
    kept = engine.submit(engine.submission(owner)).id
    for wrong in ("9999", newest, "head"):
        with pytest.raises(ServiceError, match="not an older revision"):
            maintenance.rollback(folder, wrong)
    engine.writer.call_sync(access.set_access, access.SetAccess("test", "simulator", ("u",)))
    with pytest.raises(ServiceError, match="restricted devices would be open"):
        maintenance.rollback(folder, "0007")
    assert engine.database.revision() == newest
    engine.writer.call_sync(access.set_access, access.SetAccess("test", "simulator", None))
    with pytest.raises(ServiceError, match="no such revision"):
        maintenance.migrate(folder, "nonsense")
    for back in (maintenance.rollback, maintenance.migrate) if folder is not None else ():
        with owned(folder), pytest.raises(ServiceError, match="a server uses the database"):
            back(folder, "0007")
    assert maintenance.rollback(folder, "0007") == "0007"
    assert maintenance.migrate(folder) == newest
    with engine.database.reader.connect() as connection:
        assert connection.execute(sa.select(jobs.c.id, jobs.c.priority)).all() == [(kept, 0)]
    assert engine.lease(engine.hello(owner), owner).jobs[0].id == kept


@pytest.mark.postgres
def test_isolation_and_durability_are_the_services_own(postgres_url: str) -> None:
    """Whatever the database's defaults are."""
    name = sa.make_url(postgres_url).database
    database = Database(postgres_url)
    with database.reader.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for setting in ("default_transaction_isolation = 'serializable'", "synchronous_commit = off"):
            connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET {setting}')
    database.dispose()
    database = Database(postgres_url)
    for engine in (database.writer, database.reader):
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    database.dispose()


@pytest.mark.slow
@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed (Debian: apt-get install faketime)")
@pytest.mark.parametrize("days", [400, -400])
def test_a_wrong_clock_at_the_start_deletes_nothing(fresh_server: Callable[..., Server], days: int) -> None:
    """Nor after a second start with it, nor, of what was made meanwhile, once the clock is right again.

    With PostgreSQL the database's clock counts, which is right here.
    """
    server = fresh_server()
    doubts = server.database_url.startswith("sqlite")
    client = server.client()
    jobs: list[str] = []

    def run_one() -> None:
        jobs.append(client.submit(RY, device="simulator", params=[0.1], shots=5)["id"])
        client.result(jobs[-1])

    run_one()
    server.stop()
    right = server.environment
    fake = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"{days:+d}d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    for starts in (1, 2):
        server.environment = {**right, **fake}
        server.start()
        until(lambda: server.output().count("nothing is deleted") == starts * doubts, 60)  # noqa: B023 - called at once
        run_one()
        server.stop()
    server.environment = right
    server.start()
    time.sleep(2)  # old jobs are looked for at the start
    assert [client.job(job)["state"] for job in jobs] == ["succeeded"] * 3
    assert server.output().count("nothing is deleted") == 2 * doubts


@pytest.mark.slow
@pytest.mark.postgres
def test_processes_of_one_server_count_together_and_show_no_password(
    sqlite_server: Callable[..., Server], postgres_url: str
) -> None:
    """Two API processes: `/metrics` of either tells what both did. The database's password is in no command line."""
    secret = "pass-of-the-database-77"
    url = postgres_url.replace("qpeft@", f"qpeft:{secret}@")
    server = sqlite_server("--workers", "2", environment={"QPEFT_SERVICE_DATABASE": url})
    for _ in range(24):  # a connection each, so that both processes serve some
        with server.client() as client:
            client.submit(RY, device="simulator", params=[0.1], shots=5)
    told = {counted(server) for _ in range(8)}
    assert told == {24.0}
    assert server.process is not None
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    assert len(processes) >= 4
    assert not [one for one in processes if secret in " ".join(one.cmdline())]
    assert secret not in server.output()


def counted(server: Server) -> float:
    text = httpx.get(f"{server.url}/metrics", timeout=20).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("qpeft_jobs_submitted_total{"))


@pytest.mark.slow
@pytest.mark.postgres
def test_a_dump_of_postgresql_restores(
    sqlite_server: Callable[..., Server], postgres_cluster: Cluster, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restored service has what the dump has; whoever may write the database may make a key."""
    server = sqlite_server("--database", postgres_url)
    client = server.client()
    before = [client.submit(RY, device="simulator", params=[0.1 * k], shots=5)["id"] for k in range(20)]
    folder, dump = binaries(), server.folder / "service.dump"
    assert folder is not None

    place = ["-h", str(postgres_cluster.data), "-U", "qpeft"]

    def run(program: str, *arguments: str) -> None:
        subprocess.run([str(folder / program), *place, *arguments], check=True, timeout=120)

    run("pg_dump", "--format=custom", f"--file={dump}", str(sa.make_url(postgres_url).database))
    server.stop()
    restored_url = postgres_cluster.create()
    run("pg_restore", "--no-owner", "-d", str(sa.make_url(restored_url).database), str(dump))
    monkeypatch.setenv("QPEFT_SERVICE_DATABASE", restored_url)
    assert maintenance.verify(None) == []
    rescue = maintenance.create_key(None, "rescue", ("admin",))
    monkeypatch.delenv("QPEFT_SERVICE_DATABASE")
    restored = sqlite_server("--database", restored_url)
    there = restored.client(server.key)
    with monkeypatch.context() as patched:
        patched.setenv("QPEFT_SERVICE_DATABASE", restored_url)
        with pytest.raises(ServiceError, match="a server uses the database"):
            maintenance.rollback(None, "0008")
    until(lambda: there.usage()["open_circuits"] == 0, 60)
    assert {there.job(job)["state"] for job in before} == {"succeeded"}
    assert "rescue" in {one["user"] for one in restored.client(rescue).users()}
