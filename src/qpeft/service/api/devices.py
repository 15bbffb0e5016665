"""Events (SSE), devices, queue, calibration and usage."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.responses import Response

from qpeft.errors import ServiceError
from qpeft.service.api.rate import EventStream
from qpeft.service.api.routes import JSON, QUERY, Context, Route, answer, encode
from qpeft.service.core import Service
from qpeft.service.store.directory import stamp
from qpeft.service.store.queries import job_view
from qpeft.service.store.quotas import QUOTAS, day_of, used_of
from qpeft.service.store.schema import Row
from qpeft.service.workers.messages import DeviceInfo

KEEPALIVE_S = 15.0
PAGE = 500


async def events(context: Context) -> Response:
    """Server-sent events: changes of the user's jobs from now on, or after `Last-Event-ID`.

    A job that changed twice while no client listened gives one event with its latest state.
    """
    last = context.request.headers.get("last-event-id") or context.request.query_params.get("after")
    with contextlib.ExitStack() as slot:
        slot.enter_context(context.auth.streams.take(context.owner))
        start = await context.service.ask(context.service.queries.last_change, context.owner) if last is None else _place(last)
        return EventStream(_stream(context, start), slot.pop_all())


def _place(text: str) -> tuple[int, int]:
    if not re.fullmatch(QUERY["after"]["pattern"], text):
        raise ServiceError("not an event's id", status=422, code="event_id", value=text[:40])
    changed, seq = text.split("-")
    return int(changed), int(seq)


async def _stream(context: Context, place: tuple[int, int]) -> AsyncIterator[bytes]:
    service = context.service
    digest_of_key = context.auth.digest_of(context.request)
    with service.hub.listen(f"owner:{context.owner}") as event:
        yield b": events of your jobs\n\n"
        spoke = time.monotonic()
        while not service.stopping:
            event.clear()
            if await context.auth.check(digest_of_key) is None:
                yield b'event: closed\ndata: {"reason": "the key was revoked"}\n\n'
                return
            rows = await service.ask(service.queries.changes, context.owner, place, PAGE)
            if rows:
                place = (rows[-1].changed, rows[-1].seq)
                yield b"".join(_event(row) for row in rows)
                spoke = time.monotonic()
                continue
            if time.monotonic() - spoke >= KEEPALIVE_S:
                yield b": here\n\n"
                spoke = time.monotonic()
            await service.hub.wait(event, 1.0)
            if event.is_set():
                await asyncio.sleep(0.02)  # gather what comes together


def _event(row: Row) -> bytes:
    return b"id: %d-%d\nevent: job\ndata: %s\n\n" % (row.changed, row.seq, encode(job_view(row)))


def _device(row: Row, workers: list[Row]) -> dict[str, Any]:
    info = msgspec.json.decode(row.info, type=DeviceInfo) if row.info is not None else None
    return {
        "id": row.id,
        "status": row.status,
        "reason": row.reason,
        "queued": int(row.queued),
        "workers": sum(row.id in worker.devices.split("\n") for worker in workers),
        "calibration": row.calibration,
        "max_qubits": info.max_qubits if info else None,
        "max_shots": info.max_shots if info else None,
        "exact": info.exact if info else None,
        "pinned": row.pinned,
        "restricted": row.restricted,
        "chip": info.chip if info else None,
        "simulated": info.simulated if info else None,
        "program_s": info.program_s if info else None,
        "shot_s": info.shot_s if info else None,
        "description": info.description if info else "",
    }


async def devices_view(service: Service) -> list[dict[str, Any]]:
    """Every device as the API shows it."""
    rows = await service.ask(service.queries.devices)
    workers = list(await service.ask(service.queries.alive_workers))
    return [_device(row, workers) for row in rows]


async def list_devices(context: Context) -> Response:
    """Every device with its state, limits, queue and workers."""
    return answer({"devices": await devices_view(context.service)})


async def _one_device(context: Context) -> dict[str, Any]:
    name = context.path("id")
    for device in await devices_view(context.service):
        if device["id"] == name:
            return device
    raise ServiceError("no such device", status=404, code="no_device", value=name[:128])


async def get_device(context: Context) -> Response:
    """State, limits, queue and workers of one device."""
    return answer(await _one_device(context))


async def get_calibration(context: Context) -> Response:
    """The device's calibration now, or the one of `?id=` that an older job ran under."""
    await _one_device(context)
    wanted = context.query("id")
    row = await context.service.ask(context.service.queries.calibration, context.path("id"), wanted)
    if row is None:
        raise ServiceError("no calibration: the device has none, or none was told yet", status=404, code="not_found", value=wanted)
    head = encode({"device": row.device, "id": row.id, "created_at": stamp(row.created_at)})
    return Response(head[:-1] + b',"data":' + bytes(row.data) + b"}", media_type=JSON)


async def get_queue(context: Context) -> Response:
    """How long the queue is, and what of it is the user's. Others appear as a number only."""
    device = await _one_device(context)
    flows = await context.service.ask(context.service.queries.flows, device["id"])
    yours = {
        lane: sum(int(flow.queued) for flow in flows if flow.owner == context.owner and flow.lane == number)
        for number, lane in enumerate(("interactive", "bulk"))
    }
    users = len({flow.owner for flow in flows})
    return answer({"device": device["id"], "status": device["status"], "queued": device["queued"], "users": users, "yours": yours})


async def get_usage(context: Context) -> Response:
    """By day and device; `?all=1` is every user's, for administrators."""
    days = int(context.number("days", 30))
    everyone = context.number("all", 0) == 1
    if everyone and "admin" not in context.principal.scopes:
        raise ServiceError("the usage of all users is for administrators", status=403, code="scope", bound="admin")
    service, now = context.service, context.service.clock.now()
    whose, since = None if everyone else context.owner, day_of(now - days * 86400)
    rows = await service.ask(service.queries.usage, whose, since)
    submitted = await service.ask(service.queries.submitted, whose, since)
    owner = await service.ask(service.queries.owner, context.owner)
    today = await service.ask(service.queries.submitted, context.owner, day_of(now))
    usage = [
        {
            "day": row.day,
            "user": row.name,
            "device": row.device,
            "jobs": row.jobs,
            "circuits": row.circuits,
            "shots": row.shots,
            "device_s": row.device_s,
        }
        for row in rows
    ]
    by_day = [{"day": row.day, "user": row.name, "circuits": row.circuits, "shots": row.shots} for row in submitted]
    own = {quota.bound: quota.of(owner, service.settings) for quota in QUOTAS}
    return answer({"usage": usage, "submitted": by_day, **used_of(owner, today), **own, "weight": owner.weight})


ROUTES = [
    Route("GET", "/v1/events", "read", events, "Changes of your jobs as they happen", gives="text/event-stream", query=("after",)),
    Route("GET", "/v1/devices", "read", list_devices, "Devices"),
    Route("GET", "/v1/devices/{id}/calibration", "read", get_calibration, "A device's calibration", query=("id",)),
    Route("GET", "/v1/devices/{id}/queue", "read", get_queue, "A device's queue"),
    Route("GET", "/v1/devices/{id}", "read", get_device, "A device"),
    Route("GET", "/v1/usage", "read", get_usage, "What you used", query=("days", "all")),
]
