"""Making a key from the database's side: for whoever may write the data folder, and lost the administrator's key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qpeft.errors import ServiceError
from qpeft.service.clock import Clock
from qpeft.service.ids import new_key
from qpeft.service.settings import Settings
from qpeft.service.store import admin
from qpeft.service.store.database import Database
from qpeft.service.store.writer import Writer


def create_key(data_dir: Path, user: str, scopes: Sequence[str]) -> str:
    """A new key, stored in the SQLite database of `data_dir`, whether or not a server uses it."""
    if unknown := [scope for scope in scopes if scope not in admin.SCOPES]:
        raise ServiceError("no such scope", status=0, value=unknown[0], bound=", ".join(admin.SCOPES))
    settings = Settings(data_dir=data_dir)
    if not (data_dir / "service.sqlite").is_file():
        raise ServiceError("no database here", status=0, value=str(data_dir), hint="qpeft serve makes one")
    database = Database(settings.database_url)
    writer = Writer(database, Clock())
    try:
        key, prefix, digest = new_key()
        writer.call_sync(admin.create_key, admin.NewKey("local", prefix, digest, user, tuple(scopes)))
        return key
    finally:
        writer.close()
        database.dispose()
