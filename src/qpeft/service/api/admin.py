"""Administration: keys, devices, workers, the audit log. Scope `admin`."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from qpeft.errors import ServiceError
from qpeft.service.api.routes import NDJSON, Context, Route, answer, encode
from qpeft.service.ids import new_id, new_key
from qpeft.service.messages import (
    Bounds,
    CalibrationChoice,
    DeviceAccess,
    DeviceStatus,
    IdentityRequest,
    KeyRequest,
    ReservationRequest,
    UserRequest,
    VendorResolution,
)
from qpeft.service.store import access, admin, sessions
from qpeft.service.store.directory import stamp
from qpeft.service.store.quotas import BOUNDS, QUOTAS, day_of, used_of
from qpeft.service.vendor import tasks as vendor_tasks

_KEY = msgspec.json.Decoder(KeyRequest)
_CALIBRATION = msgspec.json.Decoder(CalibrationChoice)
_RESOLUTION = msgspec.json.Decoder(VendorResolution)
_IDENTITY = msgspec.json.Decoder(IdentityRequest)
_USER = msgspec.json.Decoder(UserRequest)
_ACCESS = msgspec.json.Decoder(DeviceAccess)
_RESERVATION = msgspec.json.Decoder(ReservationRequest)
_STATUS = msgspec.json.Decoder(DeviceStatus)


async def create_key(context: Context) -> Response:
    """The key itself is in this answer and nowhere else ever after."""
    request, _ = await context.json(_KEY)
    expires_at = None if request.expires_s is None else context.service.clock.now() + request.expires_s
    key, prefix, digest = new_key()
    scopes = tuple(dict.fromkeys(request.scopes))
    new = admin.NewKey(context.principal.prefix, prefix, digest, request.user, scopes, expires_at=expires_at, **bounds_of(request))
    await context.service.writer.call(admin.create_key, new)
    told = {"key": key, "prefix": prefix, "user": request.user, "scopes": list(scopes), "expires_at": stamp(expires_at)}
    return answer(told, 201)


def bounds_of(request: Bounds) -> dict[str, Any]:
    """The bounds that a request names, null included."""
    return {name: getattr(request, name) for name in Bounds.__struct_fields__}


async def list_users(context: Context) -> Response:
    """Users with their bounds and what they use of them. A bound that is null is the one in `defaults`, where null is no bound."""
    service = context.service
    rows = await service.ask(service.queries.users)
    today = await service.ask(service.queries.submitted, None, day_of(service.clock.now()))
    users = [
        {
            "user": row.name,
            "disabled": row.disabled_at is not None,
            "created_at": stamp(row.created_at),
            "weight": row.weight,
            **used_of(row, today),
            **{name: getattr(row, name) for name in BOUNDS},
        }
        for row in rows
    ]
    return answer({"users": users, "defaults": {quota.bound: getattr(service.settings, quota.setting) for quota in QUOTAS}})


async def set_user(context: Context) -> Response:
    """Change a user's bounds, disable a user or let him in again."""
    request, _ = await context.json(_USER)
    bounds, reset = bounds_of(request), tuple(dict.fromkeys(request.reset))
    if both := [name for name in reset if bounds[name] is not None]:
        raise ServiceError("a bound is either set or reset", status=422, code="body", value=", ".join(both))
    change = admin.SetUser(context.principal.prefix, context.path("name"), request.disabled, **bounds, reset=reset)
    await context.service.writer.call(admin.set_user, change)
    context.auth.forget()
    return answer({"user": change.user})


async def link_identity(context: Context) -> Response:
    """Let somebody of an OpenID provider sign in as a user who is here already."""
    request, _ = await context.json(_IDENTITY)
    link = sessions.LinkIdentity(context.principal.prefix, context.path("name"), request.issuer, request.subject)
    await context.service.writer.call(sessions.link_identity, link)
    return answer({"user": link.user, "issuer": link.issuer, "subject": link.subject})


async def list_keys(context: Context) -> Response:
    """Every key ever made, by its prefix; the secrets are stored nowhere."""
    rows = await context.service.ask(context.service.queries.keys)
    keys = [
        {
            "prefix": row.prefix,
            "user": row.name,
            "scopes": row.scopes.split(),
            "created_at": stamp(row.created_at),
            "revoked_at": stamp(row.revoked_at),
            "expires_at": stamp(row.expires_at),
        }
        for row in rows
    ]
    return answer({"keys": keys})


async def revoke_key(context: Context) -> Response:
    """The key is refused from now on, within 2 seconds by every API process; streams that it opened end."""
    await context.service.writer.call(admin.revoke_key, admin.Revoke(context.principal.prefix, context.path("prefix")))
    context.auth.forget()
    return Response(status_code=204)


async def set_access(context: Context) -> Response:
    """Who may submit to the device. What others have queued already still runs."""
    request, _ = await context.json(_ACCESS)
    users = None if request.users is None else tuple(dict.fromkeys(request.users))
    change = access.SetAccess(context.principal.prefix, context.path("id"), users)
    await context.service.writer.call(access.set_access, change)
    return answer({"id": change.device, "restricted": users is not None, "users": list(users or ())})


async def reserve(context: Context) -> Response:
    """While it runs, the device leases this user's jobs only; others' wait. Reservations of a device do not overlap."""
    request, _ = await context.json(_RESERVATION)
    starts_at = context.service.writer.now + request.starts_in_s
    new = access.Reserve(
        context.principal.prefix,
        new_id("r"),
        context.path("id"),
        request.user,
        starts_at,
        starts_at + request.duration_s,
        request.note,
    )
    await context.service.writer.call(access.reserve, new)
    times = {"starts_at": stamp(new.starts_at), "ends_at": stamp(new.ends_at)}
    return answer({"id": new.id, "device": new.device, "user": new.user, **times, "note": new.note}, 201)


async def cancel_reservation(context: Context) -> Response:
    """End a reservation, or take one of the future back."""
    change = access.CancelReservation(context.principal.prefix, context.path("id"))
    await context.service.writer.call(access.cancel_reservation, change)
    return Response(status_code=204)


async def set_device(context: Context) -> Response:
    """`draining` runs what is queued and accepts nothing, `maintenance` accepts and runs nothing, `online` does both."""
    request, _ = await context.json(_STATUS)
    change = admin.SetDevice(context.principal.prefix, context.path("id"), request.status, request.reason)
    await context.service.writer.call(admin.set_device, change)
    return answer({"id": change.device, "status": change.status, "reason": change.reason})


async def set_calibration(context: Context) -> Response:
    """Set a device's calibration for all leases from now on, on every worker. Queued jobs are not checked again."""
    request, _ = await context.json(_CALIBRATION)
    service, device = context.service, context.path("id")
    info = service.catalog.info.get(device)
    if info is None or not info.chip:
        known = ", ".join(name for name, info in service.catalog.info.items() if info.chip)
        raise ServiceError("only a chip's calibration can be set", status=422, code="no_chip", value=device[:128], bound=known)
    data, name = None, request.id
    if isinstance(request.chip, msgspec.Raw):
        if name is not None:
            raise ServiceError("either a chip file or an id", status=422, code="body", value="both")
        data, name = await service.ask(_chip, bytes(request.chip), info.max_qubits)
    if name is None:
        raise ServiceError("either a chip file or an id", status=422, code="body", value="none")
    await service.writer.call(admin.set_calibration, admin.SetCalibration(context.principal.prefix, device, name, data))
    return answer({"device": device, "calibration": name})


def _chip(text: bytes, max_qubits: int) -> tuple[bytes, str]:
    """A chip file checked and in its normal form, and its id."""
    from qpeft.backends.emulator.chip import Chip

    chip = Chip.from_json(text)
    if not chip.live_qubits:
        raise ServiceError("no qubit of this chip is enabled", status=422, code="chip", bound=f"about {max_qubits}")
    return chip.to_json().encode(), chip.id


async def list_workers(context: Context) -> Response:
    """The last 200 workers that were heard of, the newest first."""
    rows = await context.service.ask(context.service.queries.workers)
    workers = [
        {"id": row.id, "name": row.name, "devices": row.devices.split("\n"), "seen_at": stamp(row.seen_at), "lost": row.lost}
        for row in rows
    ]
    return answer({"workers": workers})


async def list_vendor_tasks(context: Context) -> Response:
    """Tasks sent to vendors, newest first. `?state=intent` selects tasks whose arrival is unknown."""
    state = context.choice("state", "task_state")
    rows = await context.service.ask(context.service.queries.vendor_tasks, state, int(context.number("limit", 100)))
    names = ("id", "device", "state", "vendor_job", "reason", "circuits", "shots", "calibration")
    tasks = [{**{name: getattr(row, name) for name in names}, "created_at": stamp(row.created_at)} for row in rows]
    return answer({"tasks": tasks})


async def resolve_vendor_task(context: Context) -> Response:
    """Say what became of an intent: the vendor's id of it, or null when it never arrived and may be sent again."""
    request, _ = await context.json(_RESOLUTION)
    resolution = vendor_tasks.Resolution(context.principal.prefix, context.path("id"), request.vendor_job)
    return answer({"id": resolution.task, "state": await context.service.writer.call(vendor_tasks.resolve, resolution)})


async def export_audit(context: Context) -> Response:
    """A line of NDJSON for each entry, the oldest first; `?cursor=` the header `qpeft-cursor` of the page before goes on there."""
    limit, after = int(context.number("limit", 1000)), int(context.number("cursor", 0))
    rows = await context.service.ask(context.service.queries.audit_since, after, limit)
    lines = [
        encode({"seq": row.seq, "at": stamp(row.at), "actor": row.actor, "act": row.act, "detail": row.detail}) for row in rows
    ]
    headers = {"qpeft-cursor": str(rows[-1].seq if rows else after), "qpeft-complete": str(len(rows) < limit).lower()}
    return Response(b"".join(line + b"\n" for line in lines), 200, headers, NDJSON)


async def read_audit(context: Context) -> Response:
    """Audit log: actions of administrators and of the service, newest first."""
    rows = await context.service.ask(context.service.queries.audit, int(context.number("limit", 100)))
    return answer({"audit": [{"at": stamp(row.at), "actor": row.actor, "act": row.act, "detail": row.detail} for row in rows]})


ROUTES = [
    Route("POST", "/v1/keys", "admin", create_key, "Make a key", KeyRequest, status=201),
    Route("GET", "/v1/keys", "admin", list_keys, "Keys, without their secrets"),
    Route("DELETE", "/v1/keys/{prefix}", "admin", revoke_key, "Revoke a key", status=204),
    Route("GET", "/v1/users", "admin", list_users, "Users, their bounds and what they use"),
    Route("POST", "/v1/users/{name}", "admin", set_user, "Change or disable a user", UserRequest),
    Route("POST", "/v1/users/{name}/identity", "admin", link_identity, "Link a user to an OpenID identity", IdentityRequest),
    Route("POST", "/v1/devices/{id}/status", "admin", set_device, "Drain a device, maintain it, bring it back", DeviceStatus),
    Route("POST", "/v1/devices/{id}/access", "admin", set_access, "Say who may use a device", DeviceAccess),
    Route("POST", "/v1/devices/{id}/reservations", "admin", reserve, "Reserve a device for a user", ReservationRequest, status=201),
    Route("DELETE", "/v1/reservations/{id}", "admin", cancel_reservation, "End a reservation", status=204),
    Route("POST", "/v1/devices/{id}/calibration", "admin", set_calibration, "Set a chip's calibration", CalibrationChoice),
    Route("GET", "/v1/workers", "admin", list_workers, "Workers"),
    Route("GET", "/v1/vendor-tasks", "admin", list_vendor_tasks, "What was sent to vendors", query=("task_state", "limit")),
    Route("POST", "/v1/vendor-tasks/{id}/resolve", "admin", resolve_vendor_task, "Say what became of a task", VendorResolution),
    Route("GET", "/v1/audit/export", "admin", export_audit, "The whole audit log", gives=NDJSON, query=("limit", "cursor")),
    Route("GET", "/v1/audit", "admin", read_audit, "What administrators did", query=("limit",)),
]
