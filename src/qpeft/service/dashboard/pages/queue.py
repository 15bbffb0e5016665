"""The queue: the visitor's waiting jobs with position and expected start; for administrators everybody's number."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from qpeft.service.api.devices import devices_view
from qpeft.service.dashboard.site import Page, PageContext
from qpeft.service.store.listings import QueuedJob
from qpeft.service.store.queries import job_view

SHOWN = 50


async def own_queue(context: PageContext, devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each device that has something queued: the visitor's first jobs, and whose the rest is.

    Args:
        context: the request.
        devices: views of devices, with `id` and `queued`.

    Returns:
        One dictionary a device: `device`, `jobs` (at most 50), `own` (how many in all) and `users` (for administrators).
    """
    found = []
    now = context.service.clock.now()
    for device in devices:
        if not device["queued"]:
            continue
        waiting, total = await context.ask(context.listings.waiting, context.owner, device["id"], now, SHOWN)
        users = await context.ask(context.listings.queue_by_user, device["id"]) if context.is_admin else []
        found.append({"device": device, "jobs": [_view(one) for one in waiting], "own": total, "users": users})
    return found


def _view(one: QueuedJob) -> dict[str, Any]:
    return job_view(one.row, one.position, one.expected_start)


async def queue(context: PageContext) -> Response:
    """Every device's queue as far as the visitor may see it."""
    devices = await devices_view(context.service)
    return context.render("queue", devices=devices, queue=await own_queue(context, devices))


PAGES = [Page("/queue", queue, nav="Queue")]
