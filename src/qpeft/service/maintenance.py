"""Maintenance of the database, with or without a running server: keys, migrations, consistency check."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import sqlalchemy as sa

from qpeft.errors import ServiceError
from qpeft.service.clock import Clock
from qpeft.service.ids import new_key
from qpeft.service.settings import Settings
from qpeft.service.store import admin
from qpeft.service.store.database import Database, revisions
from qpeft.service.store.schema import TERMINAL, flows, jobs, owners, results
from qpeft.service.store.writer import Writer


@contextlib.contextmanager
def opened(data_dir: Path | None) -> Iterator[Database]:
    """The database of a data folder, or the one that QPEFT_SERVICE_DATABASE names. ServiceError when there is none."""
    settings = Settings.load() if data_dir is None else Settings.load(data_dir=data_dir)
    if settings.database is None and not (settings.data_dir / "service.sqlite").is_file():
        hint = "qpeft serve makes one; for PostgreSQL set QPEFT_SERVICE_DATABASE"
        raise ServiceError("no database here", status=0, value=str(settings.data_dir), hint=hint)
    database = Database(settings.database_url)
    try:
        yield database
    except sa.exc.OperationalError as error:
        first_line = str(error.orig).strip().splitlines()[0]
        raise ServiceError(f"the database cannot be used: {first_line}", status=0, hint="is it running?") from error
    finally:
        database.dispose()


def create_key(data_dir: Path | None, user: str, scopes: Sequence[str]) -> str:
    """A new key, for whoever may write the database and lost the administrator's.

    Args:
        data_dir: the folder of a SQLite database; None takes the database from QPEFT_SERVICE_DATABASE.
        user: made when there is none of that name.
        scopes: of `admin.SCOPES`.
    """
    if unknown := [scope for scope in scopes if scope not in admin.SCOPES]:
        raise ServiceError("no such scope", status=0, value=unknown[0], bound=", ".join(admin.SCOPES))
    with opened(data_dir) as database:
        writer = Writer(database, Clock())
        try:
            key, prefix, digest = new_key()
            writer.call_sync(admin.create_key, admin.NewKey("local", prefix, digest, user, tuple(scopes)))
            return key
        finally:
            writer.close()


def migrate(data_dir: Path | None, revision: str = "head") -> str:
    """Bring the schema to a revision, forward or back.

    Args:
        data_dir: the service's data folder; default the one in the settings.
        revision: revision of Alembic.

    Returns:
        The revision that the schema has then.

    Raises:
        ServiceError: there is no such revision; or back, while a server runs or where going back would lose or open something.
    """
    known = revisions()
    if revision not in (*known, "head"):
        raise ServiceError("no such revision", status=0, value=revision, bound=", ".join([*known, "head"]))
    with opened(data_dir) as database:
        if revision in known[:-1]:
            _check_stopped(database)
        try:
            database.migrate(revision)
        except RuntimeError as error:
            raise ServiceError(f"the schema is not taken back: {error}", status=0, value=revision) from error
        return database.revision()


def rollback(data_dir: Path | None, revision: str) -> str:
    """Take the schema back to an older revision.

    Args:
        data_dir: the folder of a SQLite database; None takes the database from QPEFT_SERVICE_DATABASE.
        revision: an older one.

    Returns:
        The revision that the database has then.

    Raises:
        ServiceError: there is no such older revision, a server runs, or going back would lose or open something.
    """
    known = revisions()
    with opened(data_dir) as database:
        current = database.revision()
        if revision not in known or current not in known or known.index(revision) >= known.index(current):
            older = known[: known.index(current)] if current in known else []
            raise ServiceError("not an older revision", status=0, value=revision, bound=", ".join(older) or "none")
        _check_stopped(database)
        try:
            database.migrate(revision)
        except RuntimeError as error:
            raise ServiceError(f"the schema is not taken back: {error}", status=0, value=revision) from error
        return database.revision()


def _check_stopped(database: Database) -> None:
    if database.is_served():
        raise ServiceError("a server uses the database", status=0, hint="stop every server before you take the schema back")


def verify(data_dir: Path | None) -> list[str]:
    """Inconsistencies of a database, one line each; empty if there are none. The server may be running."""
    wrong: list[str] = []
    with opened(data_dir) as database, database.reader.connect() as connection:
        if database.sqlite:
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
            wrong += [f"integrity: {line}" for line in found if line != "ok"]
        else:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        lost = sa.select(sa.func.count()).select_from(jobs.outerjoin(results, results.c.seq == jobs.c.seq))
        n = connection.execute(lost.where(jobs.c.state == "succeeded", results.c.seq.is_(None))).scalar_one()
        wrong += [f"{n} jobs succeeded and have no result"] if n else []
        orphans = sa.select(sa.func.count()).select_from(results.outerjoin(jobs, results.c.seq == jobs.c.seq))
        n = connection.execute(orphans.where(sa.or_(jobs.c.seq.is_(None), jobs.c.state != "succeeded"))).scalar_one()
        wrong += [f"{n} results belong to no job that succeeded"] if n else []
        alive = sa.select(jobs.c.owner, sa.func.sum(jobs.c.rows)).where(jobs.c.state.not_in(TERMINAL)).group_by(jobs.c.owner)
        counted = {owner: int(rows) for owner, rows in connection.execute(alive)}
        for row in connection.execute(sa.select(owners.c.id, owners.c.name, owners.c.open_circuits)):
            if row.open_circuits != counted.get(row.id, 0):
                wrong.append(f"{row.name}: {row.open_circuits} open circuits are counted, {counted.get(row.id, 0)} are there")
        key = (jobs.c.device, jobs.c.owner, jobs.c.lane)
        queued = sa.select(*key, sa.func.count()).where(jobs.c.state == "queued").group_by(*key)
        there = {tuple(row[:3]): int(row[3]) for row in connection.execute(queued)}
        kept = {(row.device, row.owner, row.lane): int(row.queued) for row in connection.execute(sa.select(flows))}
        wrong += [
            f"{flow[0]}: {kept.get(flow, 0)} jobs of {flow[1]} are counted as queued, {there.get(flow, 0)} are there"
            for flow in sorted(there.keys() | kept.keys())
            if kept.get(flow, 0) != there.get(flow, 0)
        ]
    return wrong
