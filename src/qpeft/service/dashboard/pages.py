"""The dashboard: pages rendered here, refreshed by htmx, charts by uPlot. A session stands for a key and may do what the key may.

Every form brings the session's token, and a browser that says that a request comes from another site is refused: nothing can be
forged from elsewhere. Names are escaped by the templates; scripts and styles come from this service alone.
"""

from __future__ import annotations

import functools
import mimetypes
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl, urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from qpeft.errors import ServiceError
from qpeft.service.api.auth import Authenticator, Principal, require
from qpeft.service.api.devices import devices_view
from qpeft.service.api.guard import Endpoint, Handler
from qpeft.service.api.problems import problem
from qpeft.service.api.routes import JSON, encode
from qpeft.service.core import Service
from qpeft.service.ids import new_key
from qpeft.service.messages import unpack_result
from qpeft.service.store import admin, lifecycle
from qpeft.service.store.queries import job_view, stamp
from qpeft.service.store.sessions import LIFE_S, Login, digest_of, log_in, log_out, new_cookie, token_is_right, token_of

COOKIE: Final = "qpeft_session"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PAGE_JOBS: Final = 50
SHOWN_OUTCOMES: Final = 64
FORM_BYTES: Final = 8192


@dataclass
class PageContext:
    """One request of a session; `form` is what a POST brought."""

    service: Service
    auth: Authenticator
    request: Request
    principal: Principal
    cookie: str
    form: Mapping[str, str]

    @property
    def owner(self) -> str:
        """The id of the user who asks."""
        return self.principal.owner

    @property
    def is_admin(self) -> bool:
        """Whether the session's key has the scope `admin`."""
        return "admin" in self.principal.scopes

    def render(self, template: str, status: int = 200, **values: Any) -> Response:
        """A page of the session: what every page shows, and `values`."""
        common = {
            "user": self.principal.name,
            "admin": self.is_admin,
            "token": token_of(self.cookie),
            "path": self.request.url.path,
        }
        return page(template, status, **common, **values)


PageHandler: TypeAlias = Callable[[PageContext], Awaitable[Response]]


@functools.cache
def _templates() -> Any:
    import jinja2

    loader = jinja2.PackageLoader("qpeft.service.dashboard", "templates")
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def page(template: str, status: int = 200, **values: Any) -> Response:
    """A rendered template, with the policy that allows only this service's scripts and styles."""
    text = _templates().get_template(f"{template}.html.jinja").render(**values)
    return Response(text, status, {"content-security-policy": POLICY}, "text/html; charset=utf-8")


@functools.cache
def _static(name: str) -> tuple[bytes, str]:
    folder = resources.files("qpeft.service.dashboard") / "static"
    if name not in {entry.name for entry in folder.iterdir()}:
        raise ServiceError("no such file", status=404, code="http", value=name[:80])
    return (folder / name).read_bytes(), mimetypes.guess_type(name)[0] or "application/octet-stream"


async def static(request: Request) -> Response:
    """A file of `dashboard/static/`; ServiceError 404 for any other name."""
    content, kind = _static(request.path_params["name"])
    return Response(content, media_type=kind)


def same_origin(request: Request, behind_proxy: bool) -> None:
    """ServiceError 403 unless a page of this service sent the request.

    `Sec-Fetch-Site` decides where a browser sends it (https, or this machine): a form's `Origin` may be `null` there. Else `Origin`
    has to name this host, as the browser or a proxy in front wrote it.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        hosts = {request.headers.get("host"), request.headers.get("x-forwarded-host") if behind_proxy else None}
        foreign = origin is not None and urlsplit(origin).netloc not in hosts - {None}
    if foreign:
        raise ServiceError("this request came from another site", status=403, code="csrf", value=(origin or site or "")[:200])


async def _form(request: Request) -> dict[str, str]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ServiceError("not a form", status=415, code="content_type", value=kind[:80])
    try:
        return dict(parse_qsl((await request.body()).decode(), keep_blank_values=True, max_num_fields=50))
    except (ValueError, UnicodeDecodeError) as error:
        raise ServiceError("the form cannot be read", status=400, code="body") from error


def _to(path: str, cookie: str | None = None, secure: bool = False) -> Response:
    """See other; with a cookie to set ("" deletes it)."""
    response = RedirectResponse(path, 303)
    if cookie is not None:
        life = int(LIFE_S) if cookie else 0
        response.set_cookie(COOKIE, cookie, max_age=life, path="/", secure=secure, httponly=True, samesite="strict")
    return response


def endpoints(service: Service, auth: Authenticator) -> list[Endpoint]:
    """All pages, as the guard serves them."""
    proxied = service.settings.behind_proxy

    def secure(request: Request) -> bool:
        return proxied or request.url.scheme == "https"

    async def login_form(request: Request) -> Response:
        return page("login", reason="")

    async def login(request: Request) -> Response:
        same_origin(request, proxied)
        key = (await _form(request)).get("key", "").strip()
        try:
            principal = await auth.holder(key, request)
            require(principal, "read")
        except ServiceError as refusal:
            return page("login", refusal.status, reason=str(refusal))
        cookie = new_cookie()
        await service.writer.call(log_in, Login(digest_of(cookie), principal.prefix))
        return _to("/", cookie, secure(request))

    async def logout(request: Request) -> Response:
        cookie = request.cookies.get(COOKIE, "")
        same_origin(request, proxied)
        if not token_is_right(cookie, (await _form(request)).get("token", "")):
            raise ServiceError("the form's token is wrong", status=403, code="csrf", hint="load the page again")
        await service.writer.call(log_out, digest_of(cookie))
        return _to("/login", "", secure(request))

    def visited(handler: PageHandler, scope: str) -> Handler:
        async def visit(request: Request) -> Response:
            cookie = request.cookies.get(COOKIE, "")
            principal = await auth.session(cookie, request)
            if principal is None:
                if "hx-request" in request.headers:
                    return Response(status_code=401, headers={"hx-redirect": "/login"})
                return _to("/login")
            form: dict[str, str] = {}
            if request.method == "POST":
                same_origin(request, proxied)
                form = await _form(request)
                if not token_is_right(cookie, form.get("token", "")):
                    raise ServiceError("the form's token is wrong", status=403, code="csrf", hint="load the page again")
            try:
                require(principal, scope)
                return await handler(PageContext(service, auth, request, principal, cookie, form))
            except ServiceError as refusal:
                if "text/html" not in request.headers.get("accept", ""):
                    return problem(refusal)
                return page("refused", refusal.status or 500, reason=str(refusal))

        return visit

    table = [
        Endpoint("GET", "/login", login_form),
        Endpoint("POST", "/login", login, FORM_BYTES),
        Endpoint("POST", "/logout", logout, FORM_BYTES),
        Endpoint("GET", "/static/{name}", static),
    ]
    for method, path, scope, handler in PAGES:
        table.append(Endpoint(method, path, visited(handler, scope), FORM_BYTES))
    return [Endpoint(one.method, one.path, _labelled(one), one.max_bytes) for one in table]


def _labelled(endpoint: Endpoint) -> Handler:
    async def labelled(request: Request) -> Response:
        request.scope["qpeft.route"] = f"{endpoint.method} {endpoint.path}"
        return await endpoint.handler(request)

    return labelled


async def overview(context: PageContext) -> Response:
    """The first page: devices, usage, the newest jobs."""
    return context.render(
        "overview", devices=await devices_view(context.service), jobs=await _jobs(context), **await _usage(context)
    )


async def devices_part(context: PageContext) -> Response:
    """The table of devices, which the overview refreshes."""
    return context.render("devices", devices=await devices_view(context.service))


async def jobs_part(context: PageContext) -> Response:
    """The table of jobs, which the overview refreshes."""
    return context.render("jobs", jobs=await _jobs(context))


async def _jobs(context: PageContext) -> list[dict[str, Any]]:
    queries = context.service.queries
    rows = await context.service.ask(lambda: queries.jobs(context.owner, state=None, device=None, before=None, limit=PAGE_JOBS))
    return [job_view(row) for row in rows]


async def _usage(context: PageContext) -> dict[str, Any]:
    owner = await context.service.ask(context.service.queries.owner, context.owner)
    return {"open": owner.open_circuits, "bound": owner.max_open_circuits or context.service.settings.max_open_circuits}


async def usage_data(context: PageContext) -> Response:
    """`{"days": [s since 1970], "devices": {name: {"circuits": [...], "device_s": [...]}}}` of the last 30 days; administrators
    see everybody's."""
    now = context.service.clock.now()
    days = [int(now // 86400 - back) * 86400 for back in range(29, -1, -1)]
    since = time.strftime("%Y-%m-%d", time.gmtime(days[0]))
    rows = await context.service.ask(context.service.queries.usage, None if context.is_admin else context.owner, since)
    place = {time.strftime("%Y-%m-%d", time.gmtime(day)): k for k, day in enumerate(days)}
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.day in place:
            series = found.setdefault(row.device, {"circuits": [0] * 30, "shots": [0] * 30, "device_s": [0.0] * 30})
            for name in series:
                series[name][place[row.day]] += getattr(row, name)
    return Response(encode({"days": days, "devices": found}), media_type=JSON)


async def device_page(context: PageContext) -> Response:
    """A device: its state, queue and calibration."""
    name = context.request.path_params["id"]
    device = next((one for one in await devices_view(context.service) if one["id"] == name), None)
    if device is None:
        raise ServiceError("no such device", status=404, code="no_device", value=name[:128])
    row = await context.service.ask(context.service.queries.calibration, name)
    data = msgspec.json.decode(row.data) if row is not None else {}
    since = stamp(row.created_at) if row is not None else None
    synthetic = bool(data.get("synthetic"))
    return context.render("device", device=device, qubits=data.get("qubits", []), since=since, synthetic=synthetic)


async def calibration_data(context: PageContext) -> Response:
    """By qubit: readout and single-qubit error in percent, T1 and T2 in microseconds; null where it is not known or disabled."""
    row = await context.service.ask(context.service.queries.calibration, context.request.path_params["id"])
    qubits = (msgspec.json.decode(row.data) if row is not None else {}).get("qubits", [])

    def series(read: Callable[[dict[str, Any]], float | None]) -> list[float | None]:
        return [read(qubit) if qubit["enabled"] else None for qubit in qubits]

    def percent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    def readout(qubit: dict[str, Any]) -> float | None:
        flips = [value for value in (qubit["p1_given_0"], qubit["p0_given_1"]) if value is not None]
        return percent(sum(flips) / len(flips)) if flips else None

    content = {
        "qubits": list(range(len(qubits))),
        "readout": series(readout),
        "single": series(lambda qubit: percent(qubit["error_1q"])),
        "t1": series(lambda qubit: qubit["t1_us"]),
        "t2": series(lambda qubit: qubit["t2_us"]),
    }
    return Response(encode(content), media_type=JSON)


async def job_page(context: PageContext) -> Response:
    """A job of the user's, with its counts or values."""
    queries, name = context.service.queries, context.request.path_params["id"]
    row = await context.service.ask(queries.job, context.owner, name)
    view = job_view(row, await context.service.ask(queries.position, row))
    counts: list[tuple[str, int]] = []
    values: list[list[float]] = []
    chip: dict[str, Any] = {}
    if row.state == "succeeded":
        result = unpack_result(await context.service.ask(queries.result, row)).public()
        counts = sorted(result.get("counts", [{}])[0].items(), key=lambda item: -item[1])[:SHOWN_OUTCOMES]
        values = (result.get("expectations") or result.get("probabilities") or [])[:10]
        chip = {name: result[name] for name in ("qubits", "tenants") if name in result}
    top = max((n for _, n in counts), default=1)
    return context.render("job", job=view, counts=counts, top=top, values=values, chip=chip)


async def cancel_job(context: PageContext) -> Response:
    """Cancel a job, then show the overview."""
    await context.service.writer.call(lifecycle.cancel, lifecycle.Target("job", context.request.path_params["id"], context.owner))
    return _to("/")


async def admin_page(context: PageContext, new: str = "") -> Response:
    """Keys, devices, workers and the audit log; `new` is a key that was just made, shown this once."""
    ask, queries = context.service.ask, context.service.queries
    keys = [{**row._mapping, "created": stamp(row.created_at), "revoked": stamp(row.revoked_at)} for row in await ask(queries.keys)]
    audit = [{**row._mapping, "when": stamp(row.at)} for row in await ask(queries.audit, 100)]
    workers = [{**row._mapping, "seen": stamp(row.seen_at)} for row in await ask(queries.workers)]
    devices = await devices_view(context.service)
    return context.render(
        "admin",
        keys=keys[::-1],
        audit=audit,
        workers=workers,
        devices=devices,
        scopes=admin.SCOPES,
        states=admin.DEVICE_STATES,
        new=new,
    )


async def make_key(context: PageContext) -> Response:
    """The new key is on the page that answers, and nowhere else ever after."""
    user = context.form.get("user", "").strip()
    scopes = tuple(scope for scope in admin.SCOPES if context.form.get(f"scope_{scope}"))
    if not 0 < len(user) <= 128 or not user.isprintable() or not scopes:
        raise ServiceError("a key has a user's name and at least one scope", status=422, code="key", value=user[:128])
    key, prefix, digest = new_key()
    await context.service.writer.call(admin.create_key, admin.NewKey(context.principal.prefix, prefix, digest, user, scopes))
    return await admin_page(context, key)


async def revoke(context: PageContext) -> Response:
    """Revoke a key."""
    change = admin.Revoke(context.principal.prefix, context.request.path_params["prefix"])
    await context.service.writer.call(admin.revoke_key, change)
    context.auth.forget()
    return _to("/admin")


async def set_status(context: PageContext) -> Response:
    """Set a device's state and reason."""
    status = context.form.get("status", "")
    if status not in admin.DEVICE_STATES:
        raise ServiceError("no such state", status=422, code="status", value=status[:20], bound=", ".join(admin.DEVICE_STATES))
    reason = "".join(c for c in context.form.get("reason", "") if c.isprintable())[:200]
    change = admin.SetDevice(context.principal.prefix, context.request.path_params["id"], status, reason)
    await context.service.writer.call(admin.set_device, change)
    return _to("/admin")


PAGES: Final[list[tuple[str, str, str, PageHandler]]] = [
    ("GET", "/", "read", overview),
    ("GET", "/parts/devices", "read", devices_part),
    ("GET", "/parts/jobs", "read", jobs_part),
    ("GET", "/data/usage", "read", usage_data),
    ("GET", "/data/calibration/{id}", "read", calibration_data),
    ("GET", "/devices/{id}", "read", device_page),
    ("GET", "/jobs/{id}", "read", job_page),
    ("POST", "/jobs/{id}/cancel", "submit", cancel_job),
    ("GET", "/admin", "admin", admin_page),
    ("POST", "/admin/keys", "admin", make_key),
    ("POST", "/admin/keys/{prefix}/revoke", "admin", revoke),
    ("POST", "/admin/devices/{id}/status", "admin", set_status),
]
