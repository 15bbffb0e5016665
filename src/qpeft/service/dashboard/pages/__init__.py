"""The dashboard's pages: one file for a page, one line here. Their order is the menu's.

An outside package names its list of pages in the entry point group `qpeft.pages` (docs/extending/page.md).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from qpeft.plugins import Registry, gather
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

GROUPS: Registry[list[Page]] = Registry(
    "qpeft.pages",
    {
        "overview": overview.PAGES,
        "devices": devices.PAGES,
        "chip": chip.PAGES,
        "queue": queue.PAGES,
        "jobs": jobs.PAGES,
        "job": job.PAGES,
        "batches": batches.PAGES,
        "usage": usage.PAGES,
        "keys": keys.PAGES,
        "workers": workers.PAGES,
        "vendor_tasks": vendor_tasks.PAGES,
        "audit": audit.PAGES,
        "live": live.PAGES,
    },
    list,
)


@functools.cache
def all_pages() -> Sequence[Page]:
    """The pages of every group.

    Raises:
        PluginError: a package's group holds something else than pages, or a page whose address is taken.
    """
    return gather(GROUPS, Page, "page", "an address that is taken")
