"""Many rows into one statement without SQLAlchemy's work on every row; the statement itself is compiled by SQLAlchemy, once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa


@functools.lru_cache(maxsize=64)
def _compiled(statement: Any, keys: tuple[str, ...], engine: sa.Engine) -> tuple[str, tuple[str, ...] | None]:
    compiled = statement.compile(engine, column_keys=list(keys))
    return str(compiled), tuple(compiled.positiontup) if compiled.positional else None


def execute_many(connection: sa.Connection, statement: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Execute an INSERT or an UPDATE of bound parameters once for each row.

    Args:
        connection: the writing connection.
        statement: SQLAlchemy statement with bound parameters.
        rows: values by name of the parameter, of the driver's own types.
    """
    if not rows:
        return
    keys = tuple(rows[0])
    text, order = _compiled(statement, keys, connection.engine)
    values: list[Any] = list(rows) if order is None else [tuple([row[name] for name in order]) for row in rows]
    connection.exec_driver_sql(text, values)
