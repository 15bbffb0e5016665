"""The workers' protocol: hello, lease, heartbeat, complete. MessagePack both ways, scope `worker`."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.responses import Response

from qpeft.errors import ServiceError
from qpeft.service import metrics
from qpeft.service.api.routes import MSGPACK, Context, Route, decode
from qpeft.service.ids import new_id
from qpeft.service.messages import pack
from qpeft.service.settings import Settings
from qpeft.service.store import leases
from qpeft.service.vendor import tasks as vendor_tasks
from qpeft.service.workers.messages import (
    CalibrationRequest,
    CompleteRequest,
    HeartbeatRequest,
    HelloAnswer,
    HelloRequest,
    LeaseAnswer,
    LeasedJob,
    LeasedProgram,
    LeaseRequest,
    VendorIntent,
    VendorMember,
    VendorTask,
    VendorTaskQuery,
    VendorUpdate,
)

_FIELDS = operator.attrgetter(*LeasedJob.__struct_fields__)
_HELLO = msgspec.msgpack.Decoder(HelloRequest)
_CALIBRATION = msgspec.msgpack.Decoder(CalibrationRequest)
_LEASE = msgspec.msgpack.Decoder(LeaseRequest)
_BEAT = msgspec.msgpack.Decoder(HeartbeatRequest)
_INTENT = msgspec.msgpack.Decoder(VendorIntent)
_NEWS = msgspec.msgpack.Decoder(VendorUpdate)
_LOOK = msgspec.msgpack.Decoder(VendorTaskQuery)
_COMPLETE = msgspec.msgpack.Decoder(CompleteRequest)


async def _read(context: Context, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    context.content_type(MSGPACK)
    return decode(decoder, await context.request.body())


def _answer(content: Any) -> Response:
    return Response(pack(content), media_type=MSGPACK)


async def hello(context: Context) -> Response:
    """Register a worker with its devices, and tell their limits and calibrations."""
    request: HelloRequest = await _read(context, _HELLO)
    service = context.service
    unknown = sorted(set(request.devices) - set(service.settings.devices))
    if unknown:
        raise ServiceError(
            "this service does not have the device",
            status=422,
            code="no_device",
            value=unknown[0],
            bound=", ".join(service.settings.devices),
        )
    worker = new_id("w")
    calibrations = tuple((entry.device, entry.id, entry.data) for entry in request.calibrations)
    info = tuple((name, msgspec.json.encode(entry)) for name, entry in request.info.items())
    new = leases.Hello(worker, context.owner, request.name, tuple(request.devices), calibrations, info, request.takes_over)
    await service.writer.call(service.hello, new)
    settings = service.settings
    return _answer(
        HelloAnswer(
            worker=worker, lease_s=settings.lease_s, max_result_bytes=settings.max_result_bytes, max_job_s=settings.max_job_s
        )
    )


async def lease(context: Context) -> Response:
    """Wait up to `wait_s` for work; an empty answer is normal."""
    request: LeaseRequest = await _read(context, _LEASE)
    service, loop = context.service, asyncio.get_running_loop()
    deadline = loop.time() + request.wait_s
    held = tuple(request.holding)
    asked = leases.LeaseCommand(request.worker, context.owner, tuple(request.devices), held, request.max_jobs, request.interactive)
    kind = "interactive" if request.interactive else "device"
    names = [f"{kind}:{name}" for name in request.devices] + [f"worker:{request.worker}"]
    with service.hub.listen(*names) as event:
        while True:
            event.clear()
            given = await service.writer.call(service.lease, asked)
            if given.jobs or given.drop or loop.time() >= deadline or service.stopping:
                return _answer(_lease_answer(given))
            await service.hub.wait(event, deadline - loop.time())
            if not event.is_set() and loop.time() >= deadline:  # nothing came: the worker asks again, which is the next look
                return _answer(_lease_answer(leases.Lease((), {}, ())))
            if service.hub.poll_s is not None and not event.is_set():
                queued = await service.ask(service.queries.queued_devices)
                while not queued & set(request.devices) and loop.time() < deadline and not event.is_set():
                    await service.hub.wait(event, deadline - loop.time())
                    queued = await service.ask(service.queries.queued_devices)
            if await context.request.is_disconnected():  # a worker that died while it waited must not be given jobs
                return _answer(_lease_answer(leases.Lease((), {}, ())))


def _lease_answer(given: leases.Lease) -> LeaseAnswer:
    jobs = [LeasedJob(*_FIELDS(row)) for row in given.jobs]
    programs = {name: LeasedProgram(format=row.format, text=bytes(row.text)) for name, row in given.programs.items()}
    device = given.jobs[0].device if given.jobs else None
    vendor = [VendorMember(seq=row.seq, task=row.task, position=row.position) for row in given.vendor]
    return LeaseAnswer(
        device=device, jobs=jobs, programs=programs, drop=list(given.drop), vendor=vendor, calibration=given.calibration
    )


async def calibration(context: Context) -> Response:
    """The chip file of a calibration, for a worker that has to run under it."""
    request: CalibrationRequest = await _read(context, _CALIBRATION)
    row = await context.service.ask(context.service.queries.calibration, request.device, request.id)
    if row is None:
        raise ServiceError("no such calibration", status=404, code="not_found", value=request.id)
    return _answer({"data": bytes(row.data)})


async def vendor_intent(context: Context) -> Response:
    """Write down what is about to be sent. Only after this answer may it be sent."""
    request: VendorIntent = await _read(context, _INTENT)
    told = request.calibration
    intent = vendor_tasks.Intent(
        request.worker,
        context.owner,
        request.task,
        request.device,
        request.shots,
        tuple(request.members),
        None if told is None else (told.id, told.data),
    )
    return _answer({"task": await context.service.writer.call(context.service.record_intent, intent)})


async def vendor_update(context: Context) -> Response:
    """Record a vendor task's state: sent (with the vendor's id), refused, or unknown (with the reason)."""
    request: VendorUpdate = await _read(context, _NEWS)
    news = vendor_tasks.VendorTaskUpdate(request.task, request.state, request.vendor_job, request.reason)
    return _answer({"state": await context.service.writer.call(vendor_tasks.settle, news)})


async def vendor_status(context: Context) -> Response:
    """A task's state, and whether one of its jobs is still wanted."""
    request: VendorTaskQuery = await _read(context, _LOOK)
    row, wanted = await context.service.ask(context.service.queries.vendor_task, request.task)
    return _answer(VendorTask(task=row.id, state=row.state, vendor_job=row.vendor_job, wanted=wanted))


async def heartbeat(context: Context) -> Response:
    """Say that the worker lives; answers which held jobs to stop."""
    request: HeartbeatRequest = await _read(context, _BEAT)
    beat = leases.Heartbeat(request.worker, context.owner, tuple(request.holding), tuple(request.places))
    return _answer({"drop": list(await context.service.writer.call(leases.heartbeat, beat))})


async def complete(context: Context) -> Response:
    """Hand in what became of leased jobs. Only those of the worker's own leases are taken; repeating it changes nothing."""
    request: CompleteRequest = await _read(context, _COMPLETE)
    service = context.service
    endings = tuple(
        leases.JobOutcome(
            job.seq, job.attempt, job.payload, job.reason, job.device_s, job.calibration, job.released, job.slow, job.parked
        )
        for job in request.jobs
    )
    accepted = await service.writer.call(service.complete, leases.CompletionCommand(request.worker, context.owner, endings))
    done = [job for job in request.jobs if not job.released and not job.parked]
    service.catalog.learn(request.device, request.estimate_s, sum(job.device_s for job in done))
    metrics.JOBS_FINISHED.labels(request.device, "succeeded").inc(sum(job.payload is not None for job in done))
    metrics.JOBS_FINISHED.labels(request.device, "failed").inc(sum(job.payload is None for job in done))
    return _answer({"accepted": accepted})


def max_worker_bytes(settings: Settings) -> int:
    """A request of a worker holds at least one result, with room for its envelope."""
    return max(settings.max_body_bytes, settings.max_result_bytes + (1 << 16))


def _route(name: str, handler: Callable[[Context], Awaitable[Response]], summary: str, takes: type[msgspec.Struct]) -> Route:
    return Route(
        "POST", f"/v1/worker/{name}", "worker", handler, summary, takes, MSGPACK, body=(MSGPACK,), max_bytes=max_worker_bytes
    )


ROUTES = [
    _route("hello", hello, "Register a worker", HelloRequest),
    _route("lease", lease, "Take jobs", LeaseRequest),
    _route("heartbeat", heartbeat, "Say that the worker lives", HeartbeatRequest),
    _route("calibration", calibration, "A calibration to run under", CalibrationRequest),
    _route("vendor/intent", vendor_intent, "About to send", VendorIntent),
    _route("vendor/update", vendor_update, "What a vendor answered", VendorUpdate),
    _route("vendor/status", vendor_status, "A vendor's task", VendorTaskQuery),
    _route("complete", complete, "Hand results in", CompleteRequest),
]
