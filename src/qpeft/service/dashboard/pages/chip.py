"""One device: its chip as a map with who occupies it now, its queue, its calibrations over time."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from qpeft.errors import ServiceError
from qpeft.service.api.devices import devices_view
from qpeft.service.dashboard.pages.queue import own_queue
from qpeft.service.dashboard.site import Page, PageContext
from qpeft.service.messages import unpack_result
from qpeft.service.store.admin import DEVICE_STATES
from qpeft.service.store.directory import stamp
from qpeft.service.store.schema import Row
from qpeft.web.charts import Series, lines, minute
from qpeft.web.chip_map import QUBIT_COLUMNS, Occupant, chip_map, value_of

HISTORY = 30


async def device_page(context: PageContext) -> Response:
    """A device: `?show=` names what the qubits' colours mean, `?calibration=` one of its past."""
    name = context.path("id")
    device = next((one for one in await devices_view(context.service) if one["id"] == name), None)
    if device is None:
        raise ServiceError("no such device", status=404, code="no_device", value=name[:128])
    show = context.query("show") if context.query("show") in QUBIT_COLUMNS else "readout"
    chosen = context.query("calibration", 64) or None
    row = await context.ask(context.listings.calibration, name, chosen)
    data: dict[str, Any] = msgspec.json.decode(row.data) if row is not None else {}
    occupants, when = await _occupants(context, name)
    drawn = chip_map(data, show, occupants, context.t("Map of {name}", name=name))
    history = await context.ask(context.listings.calibration_history, name, HISTORY)
    return context.render(
        "chip",
        states=DEVICE_STATES,
        device=device,
        calibration={"id": row.id, "since": stamp(row.created_at)} if row is not None else None,
        synthetic=bool(data.get("synthetic")),
        source=str(data.get("source", "")),
        map=drawn,
        columns=[(key, title) for key, (title, _, _) in QUBIT_COLUMNS.items()],
        show=show,
        occupants=occupants,
        when=when,
        history=[{"id": one.id, "since": stamp(one.created_at)} for one in history],
        trend=_trend(context, history),
        queue=await own_queue(context, [device]),
    )


async def _occupants(context: PageContext, device: str) -> tuple[list[Occupant], str]:
    """Who is on the chip now ("now"), else where the visitor's last job ran ("last"). Only administrators see others' names."""
    now = await context.ask(context.listings.occupied, device)
    found = []
    for one in now:
        mine = one.row.owner == context.owner
        title = (one.row.name or one.row.id) if mine else context.t("another user's job")
        if context.is_admin and not mine:
            title = context.t("a job of {user}", user=one.user)
        found.append(Occupant(title, f"/jobs/{one.row.id}" if mine else None, one.qubits))
    if found:
        return found, "now"
    row = await context.ask(context.listings.last_on, context.owner, device)
    qubits = await context.ask(_qubits_of, context, row) if row is not None else None
    if row is None or not qubits:
        return [], ""
    return [Occupant(row.name or row.id, f"/jobs/{row.id}", qubits)], "last"


def _qubits_of(context: PageContext, row: Row) -> tuple[int, ...] | None:
    return unpack_result(context.listings.result(row)).qubits


def _trend(context: PageContext, history: list[Row]) -> Any:
    """Medians of the errors of the last calibrations over time; None with fewer than two."""
    found: dict[str, list[tuple[float, float]]] = {"readout": [], "single": [], "cz": []}
    for row in reversed(history):
        for name, values in _errors(msgspec.json.decode(row.data)).items():
            if values:
                found[name].append((float(row.created_at), sorted(values)[len(values) // 2]))
    names = {"readout": "Readout error", "single": "Single-qubit gate error", "cz": "CZ error"}
    series = [
        Series(context.t(names[key]), [moment for moment, _ in points], [value for _, value in points])
        for key, points in found.items()
        if points
    ]
    if not series or len(series[0].x) < 2:
        return None
    label = context.t("Median errors of the last calibrations, percent")
    svg = lines(series, label=label, x_label="UTC", y_label="%", zero=True, x_text=minute)
    return {"svg": svg, "legend": [one.name for one in series], "label": label}


def _errors(data: dict[str, Any]) -> dict[str, list[float]]:
    """A calibration's errors in percent, of what works."""
    qubits = [one for one in data.get("qubits") or [] if one.get("enabled", True)]
    couplers = [one for one in data.get("couplers") or [] if one.get("enabled", True)]
    return {
        "readout": [value for one in qubits if (value := value_of(one, "readout")) is not None],
        "single": [value for one in qubits if (value := value_of(one, "single")) is not None],
        "cz": [100 * one["error_cz"] for one in couplers if one["error_cz"] is not None],
    }


PAGES = [Page("/devices/{id}", device_page)]
