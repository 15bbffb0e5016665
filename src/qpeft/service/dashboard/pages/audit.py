"""Administrators: the audit log; and exports of it, of keys, workers and vendor tasks."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from starlette.responses import Response, StreamingResponse

from qpeft.errors import ServiceError
from qpeft.service.api.routes import encode
from qpeft.service.dashboard.site import PAGE_ROWS, Page, PageContext
from qpeft.service.store.directory import stamp
from qpeft.service.store.listings import Listings

EXPORTS = ("keys", "workers", "vendor-tasks", "audit")
MOMENTS = ("at", "created_at", "revoked_at", "expires_at", "seen_at")


async def audit(context: PageContext) -> Response:
    """Lines of the log, newest first; `?q=` searches, `?before=` is the next page."""
    text, before = context.query("q"), context.number("before")
    rows = await context.ask(context.listings.log_page, text, before, PAGE_ROWS + 1)
    lines = [{**row._mapping, "when": stamp(row.at)} for row in rows[:PAGE_ROWS]]
    older = rows[PAGE_ROWS - 1].seq if len(rows) > PAGE_ROWS else None
    return context.render("audit", lines=lines, text=text, older=older, first=before is None)


async def export(context: PageContext) -> Response:
    """All rows of a table as CSV or JSON Lines: `/admin/export/audit.csv`, `.../keys.jsonl`."""
    table, _, kind = context.path("file").partition(".")
    if table not in EXPORTS or kind not in ("csv", "jsonl"):
        bound = ", ".join(f"{name}.csv" for name in EXPORTS)
        raise ServiceError("no such export", status=404, code="not_found", value=context.path("file")[:40], bound=bound)
    media = "text/csv; charset=utf-8" if kind == "csv" else "application/x-ndjson"
    headers = {"content-disposition": f'attachment; filename="qpeft-{table}.{kind}"'}
    return StreamingResponse(_text(context.listings, table, kind), media_type=media, headers=headers)


def _text(listings: Listings, table: str, kind: str) -> Iterator[bytes]:
    """The rows as text; Starlette reads it on a thread."""
    columns: list[str] | None = None
    for row in listings.everything(table):
        values = {name: stamp(value) if name in MOMENTS else value for name, value in row.items()}
        if kind == "jsonl":
            yield encode(values) + b"\n"
            continue
        if columns is None:
            columns = list(values)
            yield _line(columns)
        yield _line([values[name] for name in columns])


def _line(values: list[Any]) -> bytes:
    """One line of CSV. A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    text = io.StringIO()
    plain = ["'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value for value in values]
    csv.writer(text, lineterminator="\r\n").writerow(plain)
    return text.getvalue().encode()


PAGES = [
    Page("/admin/audit", audit, scope="admin", nav="Audit log"),
    Page("/admin/export/{file}", export, scope="admin"),
]
