"""The visitor's batches and sweeps, and one of them with its jobs."""

from __future__ import annotations

from starlette.responses import Response

from qpeft.service.api.devices import devices_view
from qpeft.service.dashboard.site import PAGE_ROWS, Page, PageContext, see
from qpeft.service.store import lifecycle
from qpeft.service.store.listings import BatchFilter, JobFilter
from qpeft.service.store.queries import BATCH_STATES, job_view
from qpeft.service.store.schema import STATES


async def batches(context: PageContext) -> Response:
    """`?q=`, `?device=` and `?state=` filter; `?before=` and `?after=` are the next page and the one before."""
    text, device = context.query("q"), context.query("device", 128) or None
    before, after = context.query("before", 32) or None, context.query("after", 32) or None
    state = context.query("state") if context.query("state") in BATCH_STATES else None
    wanted = BatchFilter(state, device, text)
    found = await context.ask(context.listings.batch_page, context.owner, wanted, before, after, PAGE_ROWS + 1)
    more = len(found) > PAGE_ROWS
    found = (found[1:] if after else found[:-1]) if more else found
    return context.render(
        "batches",
        batches=found,
        text=text,
        state=state,
        states=BATCH_STATES,
        device=device,
        devices=[one["id"] for one in await devices_view(context.service)],
        older=found[-1]["id"] if found and (more or after) else None,
        newer=found[0]["id"] if found and (before or (after and more)) else None,
        first=not before and not after,
    )


async def batch(context: PageContext) -> Response:
    """A batch with its jobs counted by state, and a page of them."""
    name = context.path("id")
    view = await context.ask(context.listings.batch_view, context.owner, name)
    state = context.query("state") if context.query("state") in STATES else None
    wanted, before = JobFilter(state, None, "", name), context.number("before")
    rows = await context.ask(context.listings.job_page, context.owner, wanted, before, None, PAGE_ROWS + 1)
    more = len(rows) > PAGE_ROWS
    older = rows[PAGE_ROWS - 1].seq if more else None
    shown = [job_view(row) for row in rows[:PAGE_ROWS]]
    return context.render("batch", batch=view, jobs=shown, state=state, states=STATES, older=older, first=before is None)


async def cancel_batch(context: PageContext) -> Response:
    """Cancel what has not ended of a batch."""
    name = context.path("id")
    await context.service.writer.call(lifecycle.cancel, lifecycle.Target("batch", name, context.owner))
    return see(f"/batches/{name}")


PAGES = [
    Page("/batches", batches, nav="Batches"),
    Page("/batches/{id}", batch),
    Page("/batches/{id}/cancel", cancel_batch, scope="submit", method="POST"),
]
