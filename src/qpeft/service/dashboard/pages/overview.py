"""The first page: devices, what is going on, usage, the newest jobs."""

from __future__ import annotations

from starlette.responses import Response

from qpeft.service.api.devices import devices_view
from qpeft.service.dashboard.pages.usage import quotas, usage_charts
from qpeft.service.dashboard.site import Page, PageContext
from qpeft.service.store.listings import JobFilter
from qpeft.service.store.queries import job_view

NEWEST = 10


async def overview(context: PageContext) -> Response:
    """Devices, the user's jobs by state, usage of 30 days, the newest jobs."""
    rows = await context.ask(context.listings.job_page, context.owner, JobFilter(), None, None, NEWEST)
    return context.render(
        "overview",
        devices=await devices_view(context.service),
        counts=await context.ask(context.listings.state_counts, context.owner),
        jobs=[job_view(row) for row in rows],
        quotas=await quotas(context),
        charts=await usage_charts(context),
    )


PAGES = [Page("/", overview, nav="Overview")]
