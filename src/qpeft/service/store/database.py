"""Engines, migrations and backup for SQLite and PostgreSQL.

SQLite before 3.51.3 (3.50.7 and 3.44.6 among the older lines) can corrupt a database when its write-ahead log is reset, so the
service refuses it. Python's own build is often older; the package `pysqlite3` brings a newer one and is preferred.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool, QueuePool

from qpeft.errors import ServiceError
from qpeft.service.clock import Clock

SQLITE_GOOD, SQLITE_PATCHED = (3, 51, 3), {(3, 50): 7, (3, 44): 6}
TCP = {"connect_timeout": 5, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 15_000}
"""PostgreSQL's network options: a connection whose other side was cut off ends within seconds (the last in milliseconds)."""
SESSION = {
    "lock_timeout": "30s",
    "statement_timeout": "60s",
    "synchronous_commit": "on",
    "idle_in_transaction_session_timeout": "15s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}
"""Settings of each PostgreSQL connection. A process that is stopped or cut off in a transaction does not keep the writer's lock."""
SERVER = "qpeft-server"
"""Name of servers' connections at PostgreSQL."""
WRITER_LOCK = 0x71706566  # "qpef": the key of PostgreSQL's advisory lock that makes one writer of many processes


def sqlite_module() -> Any:
    """The DB-API module with the newest SQLite; raises ServiceError when that is one that corrupts its log."""
    found: list[Any] = [sqlite3]
    with contextlib.suppress(ImportError):
        found.append(importlib.import_module("pysqlite3.dbapi2"))
    best = max(found, key=lambda module: tuple(module.sqlite_version_info))
    if not sqlite_is_safe(tuple(best.sqlite_version_info)):
        raise ServiceError(
            "this SQLite can corrupt a database when its write-ahead log is reset",
            status=0,
            code="old_sqlite",
            value=best.sqlite_version,
            bound="3.51.3 or newer, 3.50.7, 3.44.6",
            hint='pip install "pysqlite3>=0.6.1", or use --database postgresql+psycopg://...',
        )
    return best


def sqlite_is_safe(version: tuple[int, ...]) -> bool:
    """Whether that version of SQLite is free of the WAL-reset bug."""
    return version >= SQLITE_GOOD or version[2] >= SQLITE_PATCHED.get((version[0], version[1]), 1 << 30)


def parse_url(text: str) -> sa.URL:
    """A database's address; ServiceError for what is none, without repeating it, since it may hold a password."""
    try:
        return sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError) as error:
        bound = "postgresql+psycopg://USER@HOST/DATABASE"
        raise ServiceError("the database's address cannot be read", status=0, bound=bound) from error


def has_password(url: sa.URL) -> bool:
    """Whether a password is part of the address."""
    return url.password is not None or any("password" in name.lower() for name in url.query)


def shown_url(url: sa.URL) -> str:
    """The address without its password."""
    secret = [name for name in url.query if "password" in name.lower()]
    return url.difference_update_query(secret).render_as_string(hide_password=True)


class Database:
    """One engine to write, one to read; call `migrate()` before the first use.

    Args:
        url: its SQLAlchemy address.
        application: the name of its connections at PostgreSQL; `SERVER` marks those of servers.
    """

    def __init__(self, url: str, application: str = "qpeft") -> None:
        self.url = parse_url(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        if self.sqlite:
            module = sqlite_module()
            arguments = {"check_same_thread": False, "timeout": 10.0, "isolation_level": None}
            if self.url.database:
                Path(self.url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.writer = sa.create_engine(
                self.url, module=module, connect_args=arguments, poolclass=QueuePool, pool_size=1, max_overflow=0
            )
            self.reader = sa.create_engine(
                self.url, module=module, connect_args=arguments, poolclass=QueuePool, pool_size=8, max_overflow=0
            )
            self._checkpointer = sa.create_engine(self.url, module=module, connect_args=arguments, poolclass=NullPool)
            sa.event.listen(self.writer, "connect", _pragmas)
            sa.event.listen(self.reader, "connect", _read_pragmas)
        elif self.url.drivername in ("postgresql", "postgresql+psycopg"):
            session = " ".join(f"-c {name}={value}" for name, value in SESSION.items())
            common: dict[str, Any] = {
                "pool_pre_ping": True,
                "isolation_level": "READ COMMITTED",
                "connect_args": {**TCP, "options": session, "application_name": application},
            }
            self.writer = sa.create_engine(self.url, pool_size=1, max_overflow=1, **common)
            self.reader = sa.create_engine(self.url, pool_size=8, max_overflow=0, **common)
        else:
            raise ServiceError("unknown database", status=0, value=self.url.drivername, bound="sqlite, postgresql+psycopg")

    def begin(self, connection: sa.Connection) -> None:
        """Start a write transaction: the only one in the whole service until it ends."""
        if self.sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")

    def now(self, connection: sa.Connection, clock: Clock) -> float:
        """Seconds since 1970 for what is written now: PostgreSQL's clock, which all API hosts share, or this process's own.

        Args:
            connection: the writing connection.
            clock: this process's clock.
        """
        if self.sqlite:
            return clock.now()
        return float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())

    def migrate(self, revision: str = "head") -> None:
        """Bring the schema to a revision, forward or back ("base" is an empty database)."""
        if self.sqlite and self.url.database:
            descriptor = os.open(self.url.database, os.O_CREAT | os.O_RDWR, 0o600)
            os.close(descriptor)
        if revision == "head" and self._is_newest():
            return
        from alembic import command, migration, script

        config = _alembic_config()
        with self.writer.connect() as connection:
            self.begin(connection)
            config.attributes["connection"] = connection
            current = migration.MigrationContext.configure(connection).get_current_revision()
            scripts = script.ScriptDirectory.from_config(config)
            target = scripts.get_current_head() if revision == "head" else None if revision == "base" else revision
            known = [entry.revision for entry in scripts.walk_revisions()]
            if current is not None and current not in known:
                raise ServiceError(
                    "the database is newer than this program", status=0, value=current, bound=known[0], hint="update qpeft"
                )
            if current != target:
                older = target is None or (current is not None and known.index(target) > known.index(current))
                (command.downgrade if older else command.upgrade)(config, revision)
            connection.commit()

    def _is_newest(self) -> bool:
        """True when nothing is to be done, said without loading Alembic: a service that was killed is back sooner."""
        newest = revisions()[-1]
        version = sa.table("alembic_version", sa.column("version_num"))
        with self.writer.connect() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return False
            return connection.execute(sa.select(version)).scalars().all() == [newest]

    def revision(self) -> str:
        """The schema's revision."""
        with self.reader.connect() as connection:
            return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one())

    def is_served(self) -> bool:
        """Whether a server uses the database now."""
        if not self.sqlite:
            mine = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = :name"
            with self.reader.connect() as connection:
                return bool(connection.execute(sa.text(mine), {"name": SERVER}).scalar_one())
        import fcntl  # POSIX, as servers are

        lock = Path(self.url.database or "").parent / "lock"
        if not lock.exists():
            return False
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def checkpoint(self) -> None:
        """Move what SQLite's log holds into its file, as far as readers and the writer let it, without holding them up."""
        with self._checkpointer.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def backup(self, target: Path) -> None:
        """Copy a live SQLite database, consistently and while it is written to. Raises for PostgreSQL (use pg_dump)."""
        if not self.sqlite or not self.url.database:
            raise ServiceError("a backup of PostgreSQL is its own tools' work", status=0, hint="pg_dump --format=custom")
        backup_sqlite(Path(self.url.database), target)

    def dispose(self) -> None:
        """Close every connection."""
        self.writer.dispose()
        self.reader.dispose()


def backup_sqlite(source: Path, target: Path) -> None:
    """Copy a database that may be in use to a file that does not exist yet, and check the copy.

    Args:
        source: file of the database.
        target: file of the copy.

    Raises:
        ServiceError: no database, an existing target, or a damaged copy.
    """
    module = sqlite_module()
    if not source.is_file():
        raise ServiceError("no database to back up", status=0, value=str(source))
    if target.exists():
        raise ServiceError("the backup's file exists", status=0, value=str(target), hint="name another file")
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    with contextlib.closing(module.connect(str(source))) as live, contextlib.closing(module.connect(str(target))) as copy:
        live.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")
        (verdict,) = copy.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            raise ServiceError("the backup is damaged", status=0, value=verdict)


def revisions() -> list[str]:
    """Every revision of the schema, the oldest first."""
    return sorted(path.name[1:5] for path in (Path(__file__).parent / "migrations" / "versions").glob("v*.py"))


def _alembic_config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def _pragmas(connection: Any, _record: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-65536", "wal_autocheckpoint=16000"):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def _read_pragmas(connection: Any, _record: object) -> None:
    for pragma in ("query_only=ON", "cache_size=-16384", "wal_autocheckpoint=0"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
