"""The dashboard's pages: one file for a page, one line here. Their order is the menu's."""

from __future__ import annotations

from qpeft.service.dashboard.pages import (
    audit,
    batches,
    chip,
    devices,
    job,
    jobs,
    keys,
    live,
    overview,
    queue,
    usage,
    vendor_tasks,
    workers,
)
from qpeft.service.dashboard.site import Page

PAGES: list[Page] = [
    *overview.PAGES,
    *devices.PAGES,
    *chip.PAGES,
    *queue.PAGES,
    *jobs.PAGES,
    *job.PAGES,
    *batches.PAGES,
    *usage.PAGES,
    *keys.PAGES,
    *workers.PAGES,
    *vendor_tasks.PAGES,
    *audit.PAGES,
    *live.PAGES,
]
