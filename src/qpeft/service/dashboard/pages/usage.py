"""Usage per day and what is left of the quota; administrators see everybody's."""

from __future__ import annotations

import time
from typing import Any

from starlette.responses import Response

from qpeft.service.dashboard.site import Page, PageContext
from qpeft.web.charts import Series, stacked_days

DAYS = 30
NUMBERS = (("circuits", "Circuits"), ("shots", "Shots"), ("device_s", "Device seconds"))


async def quota(context: PageContext) -> list[dict[str, Any]]:
    """`{title, used, bound}` of each bound of the visitor; `bound` is None where there is none."""
    settings = context.service.settings
    owner = await context.ask(context.listings.owner, context.owner)
    shots = settings.user_vendor_shots if owner.max_vendor_shots is None else owner.max_vendor_shots
    rows = (
        ("Circuits queued or running", owner.open_circuits, owner.max_open_circuits or settings.max_open_circuits),
        ("Bytes of parameters and results", owner.stored_bytes, owner.max_stored_bytes or settings.max_stored_bytes),
        ("Shots at vendors", owner.vendor_shots, shots),
    )
    return [{"title": title, "used": int(used), "bound": None if bound is None else int(bound)} for title, used, bound in rows]


async def _rows(context: PageContext) -> tuple[list[float], list[Any]]:
    now = context.service.clock.now()
    days = [float(int(now // 86400 - back) * 86400) for back in range(DAYS - 1, -1, -1)]
    since = time.strftime("%Y-%m-%d", time.gmtime(days[0]))
    return days, list(await context.ask(context.listings.usage, None if context.is_admin else context.owner, since))


async def usage_charts(context: PageContext) -> list[dict[str, Any]]:
    """A chart of stacked bars for each number; empty when nothing was used in 30 days."""
    days, rows = await _rows(context)
    names = {time.strftime("%Y-%m-%d", time.gmtime(day)): k for k, day in enumerate(days)}
    devices = sorted({row.device for row in rows})
    charts = []
    for column, title in NUMBERS:
        table = {device: [0.0] * DAYS for device in devices}
        for row in rows:
            if row.day in names:
                table[row.device][names[row.day]] += float(getattr(row, column))
        label = context.t(f"{title} per day")
        series = [Series(device, days, values) for device, values in table.items()]
        svg = stacked_days(days, series, label=label, y_label=context.t(title))
        if svg:
            charts.append({"svg": svg, "label": label, "legend": devices})
    return charts


async def usage(context: PageContext) -> Response:
    """Charts, the quota, and a row for each day and device."""
    _, rows = await _rows(context)
    return context.render("usage", charts=await usage_charts(context), quota=await quota(context), rows=rows[::-1][:400])


PAGES = [Page("/usage", usage, nav="Usage")]
