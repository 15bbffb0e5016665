"""Groups of API routes by name. A file of routes is one line here; an outside package names its list in the entry point group
`qpeft.routes` (docs/extending/route.md).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from qpeft.plugins import Registry, gather
from qpeft.service.api import account, admin, devices, iqm, jobs, pyqpanda, workers
from qpeft.service.api.routes import Route

GROUPS: Registry[list[Route]] = Registry(
    "qpeft.routes",
    {
        "jobs": jobs.ROUTES,
        "workers": workers.ROUTES,
        "devices": devices.ROUTES,
        "account": account.ROUTES,
        "admin": admin.ROUTES,
        "pyqpanda": pyqpanda.ROUTES,
        "iqm": iqm.ROUTES,
    },
    list,
)


@functools.cache
def all_routes() -> Sequence[Route]:
    """The routes of every group.

    Raises:
        PluginError: a package's group holds something else than routes, or a route that is served already.
    """
    return gather(GROUPS, Route, "route", "a route that is served already")
