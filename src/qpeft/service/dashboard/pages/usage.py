"""Usage and quota per day; administrators see everybody's."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from qpeft.service.dashboard.site import Page, PageContext
from qpeft.service.store.quotas import DAY_CIRCUITS, DAY_SHOTS, QUOTAS, day_of, used_of
from qpeft.web.charts import Series, stacked_days

DAYS, SHOWN = 30, 400
NUMBERS = (("circuits", "Circuits"), ("shots", "Shots"), ("device_s", "Device seconds"))


async def quotas(context: PageContext) -> list[dict[str, Any]]:
    """`{title, used, bound}` of each quota of the visitor; `bound` is None where there is none."""
    owner = await context.ask(context.listings.owner, context.owner)
    today = await context.ask(context.listings.submitted, context.owner, day_of(context.service.clock.now()))
    used = used_of(owner, today)
    return [{"title": one.title, "used": used[one.used], "bound": one.of(owner, context.service.settings)} for one in QUOTAS]


async def _by_day(context: PageContext, since: str) -> list[dict[str, Any]]:
    """What counts against the daily quotas: `{day, name, circuits, shots}`, the last two as `(used, bound or None)`."""
    settings = context.service.settings
    rows = await context.ask(context.listings.submitted, None if context.is_admin else context.owner, since)
    return [
        {
            "day": row.day,
            "name": row.name,
            "circuits": (int(row.circuits), DAY_CIRCUITS.of(row, settings)),
            "shots": (int(row.shots), DAY_SHOTS.of(row, settings)),
        }
        for row in rows[:SHOWN]
    ]


async def _rows(context: PageContext) -> tuple[list[float], list[Any]]:
    now = context.service.clock.now()
    days = [float(int(now // 86400 - back) * 86400) for back in range(DAYS - 1, -1, -1)]
    whose = None if context.is_admin else context.owner
    return days, list(await context.ask(context.listings.usage, whose, day_of(days[0])))


async def usage_charts(context: PageContext) -> list[dict[str, Any]]:
    """A chart of stacked bars for each number; empty when nothing was used in 30 days."""
    days, rows = await _rows(context)
    names = {day_of(day): k for k, day in enumerate(days)}
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
    """Charts, the quotas with what each day took of them, and a row for each day and device."""
    days, rows = await _rows(context)
    return context.render(
        "usage",
        charts=await usage_charts(context),
        quotas=await quotas(context),
        by_day=await _by_day(context, day_of(days[0])),
        rows=rows[::-1][:SHOWN],
    )


PAGES = [Page("/usage", usage, nav="Usage")]
