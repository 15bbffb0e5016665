"""Stores and servers for the service's tests. Nothing here stands in for a part of the service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qpeft.service.clock import Clock
from qpeft.service.store.database import Database
from tests.service.engine import Engine
from tests.service.processes import Server


@pytest.fixture
def make_engine(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(url: str | None = None, **settings: object) -> Engine:
        url = url or f"sqlite:///{tmp_path / 'service.sqlite'}"
        database = Database(url)
        database.migrate()
        engines.append(Engine(database, Clock(), **settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


STORES = ["sqlite", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow])]


def database_arguments(request: pytest.FixtureRequest, store: str) -> list[str]:
    """Arguments of `qpeft serve` for a store of `STORES`: a new database."""
    return ["--database", request.getfixturevalue("postgres_cluster").create()] if store == "postgres" else []


@pytest.fixture(scope="session", params=STORES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with one worker process, shared by the tests that only use it; on both databases, as `fresh_server`."""
    started = Server(tmp_path_factory.mktemp("service"), *database_arguments(request, request.param)).start()
    yield started
    started.close()
    assert started.stop() == 0, started.output()


def _made(tmp_path: Path, new_database: Callable[[], str] | None) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(*arguments: str, wait: bool = True, **settings: object) -> Server:
        folder = tmp_path / f"server{len(made)}"
        folder.mkdir()
        if new_database is not None and "--database" not in arguments:
            arguments = (*arguments, "--database", new_database())
        made.append(Server(folder, *arguments, **settings))  # type: ignore[arg-type]
        return made[-1].start(wait)

    yield make
    for one in made:
        one.close()
        one.kill()


@pytest.fixture(params=STORES)
def fresh_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers of a test's own, which it may kill; on SQLite and, among the slow tests, on PostgreSQL."""
    new = request.getfixturevalue("postgres_cluster").create if request.param == "postgres" else None
    yield from _made(tmp_path, new)


@pytest.fixture
def sqlite_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """As `fresh_server`, for what concerns SQLite's file or names its database itself."""
    yield from _made(tmp_path, None)


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[object]:
    """A PostgreSQL of this test run's own, from the machine's packages, on a socket in a temporary folder."""
    from tests.service.postgres import Cluster, binaries

    folder = binaries()
    if folder is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    cluster = Cluster(folder)
    cluster.start()
    yield cluster
    if cluster.running():
        cluster.stop("immediate")
    cluster.remove()


@pytest.fixture
def postgres_url(postgres_cluster: object) -> str:
    """The address of a new, empty database."""
    from tests.service.postgres import Cluster

    assert isinstance(postgres_cluster, Cluster)
    return postgres_cluster.create()
