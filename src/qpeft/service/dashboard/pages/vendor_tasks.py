"""Administrators: what was sent to vendors."""

from __future__ import annotations

from starlette.responses import Response

from qpeft.service.dashboard.site import Page, PageContext
from qpeft.service.store.directory import stamp
from qpeft.service.vendor.tasks import TASK_STATES

SHOWN = 200


async def vendor_tasks(context: PageContext) -> Response:
    """The last tasks, newest first; `?state=` filters."""
    state = context.query("state") if context.query("state") in TASK_STATES else None
    rows = await context.ask(context.listings.vendor_tasks, state, SHOWN)
    tasks = [{**row._mapping, "created": stamp(row.created_at)} for row in rows]
    return context.render("vendor_tasks", tasks=tasks, state=state, states=TASK_STATES)


PAGES = [Page("/admin/vendor-tasks", vendor_tasks, scope="admin", nav="Vendor tasks")]
