"""Administrators: workers, and which devices they run."""

from __future__ import annotations

from starlette.responses import Response

from qpeft.service.dashboard.site import Page, PageContext
from qpeft.service.store.directory import stamp


async def workers(context: PageContext) -> Response:
    """The last 200 workers, the newest first."""
    rows = await context.ask(context.listings.workers)
    now = context.service.clock.now()
    found = [
        {
            "id": row.id,
            "name": row.name,
            "devices": row.devices.split("\n"),
            "seen": stamp(row.seen_at),
            "ago": max(0, int(now - row.seen_at)),
            "lost": row.lost,
        }
        for row in rows
    ]
    return context.render("workers", workers=found)


PAGES = [Page("/admin/workers", workers, scope="admin", nav="Workers")]
