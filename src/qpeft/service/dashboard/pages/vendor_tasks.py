"""Administrators: what was sent to vendors, and a word about tasks whose arrival is unknown."""

from __future__ import annotations

from starlette.responses import Response

from qpeft.errors import ServiceError
from qpeft.service.dashboard.site import Page, PageContext, see
from qpeft.service.store.directory import stamp
from qpeft.service.vendor.tasks import TASK_STATES, Resolution, resolve

SHOWN = 200


async def vendor_tasks(context: PageContext) -> Response:
    """The last tasks, newest first; `?state=` filters."""
    state = context.query("state") if context.query("state") in TASK_STATES else None
    rows = await context.ask(context.listings.vendor_tasks, state, SHOWN)
    tasks = [{**row._mapping, "created": stamp(row.created_at)} for row in rows]
    return context.render("vendor_tasks", tasks=tasks, state=state, states=TASK_STATES)


async def settle(context: PageContext) -> Response:
    """Take the administrator's word: the vendor's id of the task (`found=1`), or that it never arrived (`found=0`)."""
    found, name = context.form.get("found"), context.form.get("vendor_job", "").strip()
    if found not in ("0", "1"):
        raise ServiceError(
            "say whether the vendor has the task", status=422, code="body", value=str(found)[:20], bound="found=0 or 1"
        )
    if found == "1" and not (0 < len(name) <= 200 and name.isprintable()):
        raise ServiceError("the vendor's id is 1 to 200 printable characters", status=422, code="body", value=name[:40])
    vendor_job = name if found == "1" else None
    await context.service.writer.call(resolve, Resolution(context.principal.prefix, context.path("id"), vendor_job))
    return see("/admin/vendor-tasks")


PAGES = [
    Page("/admin/vendor-tasks", vendor_tasks, scope="admin", nav="Vendor tasks"),
    Page("/admin/vendor-tasks/{id}/resolve", settle, scope="admin", method="POST"),
]
