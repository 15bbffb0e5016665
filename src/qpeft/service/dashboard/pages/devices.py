"""Every device: state, queue, workers. Administrators set its state here."""

from __future__ import annotations

from starlette.responses import Response

from qpeft.errors import ServiceError
from qpeft.service.api.devices import devices_view
from qpeft.service.dashboard.site import Page, PageContext, see
from qpeft.service.store import admin


async def devices(context: PageContext) -> Response:
    """The table of devices."""
    return context.render("devices", devices=await devices_view(context.service), states=admin.DEVICE_STATES)


async def set_status(context: PageContext) -> Response:
    """Set a device's state and reason."""
    status = context.form.get("status", "")
    if status not in admin.DEVICE_STATES:
        raise ServiceError("no such state", status=422, code="status", value=status[:20], bound=", ".join(admin.DEVICE_STATES))
    reason = "".join(c for c in context.form.get("reason", "") if c.isprintable())[:200]
    change = admin.SetDevice(context.principal.prefix, context.path("id"), status, reason)
    await context.service.writer.call(admin.set_device, change)
    return see("/devices")


PAGES = [
    Page("/devices", devices, nav="Devices"),
    Page("/admin/devices/{id}/status", set_status, scope="admin", method="POST"),
]
