"""The visitor's jobs: filter, search, pages, export."""

from __future__ import annotations

from starlette.responses import Response

from qpeft.service.api.devices import devices_view
from qpeft.service.dashboard.site import PAGE_ROWS, Page, PageContext
from qpeft.service.store.listings import JobFilter
from qpeft.service.store.queries import job_view
from qpeft.service.store.schema import STATES


async def jobs(context: PageContext) -> Response:
    """`?state=`, `?device=`, `?q=` filter; `?before=` and `?after=` are the next page and the one before."""
    state = context.query("state") if context.query("state") in STATES else None
    wanted = JobFilter(state, context.query("device", 128) or None, context.query("q"))
    before, after = context.number("before"), context.number("after")
    rows = await context.ask(context.listings.job_page, context.owner, wanted, before, after, PAGE_ROWS + 1)
    more = len(rows) > PAGE_ROWS
    rows = (rows[1:] if after is not None else rows[:-1]) if more else rows
    older = rows[-1].seq if rows and (more or after is not None) else None
    newer = rows[0].seq if rows and (before is not None or (after is not None and more)) else None
    return context.render(
        "jobs",
        jobs=[job_view(row) for row in rows],
        counts=await context.ask(context.listings.state_counts, context.owner),
        states=STATES,
        state=state,
        device=wanted.device,
        text=wanted.text,
        devices=[one["id"] for one in await devices_view(context.service)],
        older=older,
        newer=newer,
        first=before is None and after is None,
    )


PAGES = [Page("/jobs", jobs, nav="Jobs")]
