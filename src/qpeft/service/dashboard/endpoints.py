"""The dashboard as the guard serves it: who gets in, what other sites cannot do. A session stands for a key and may do what it may.

Every form brings the session's token, and a browser that says that a request comes from another site is refused: nothing can be
forged from elsewhere. Names are escaped by the templates; scripts and styles come from this service alone.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from qpeft.errors import ServiceError
from qpeft.service.api.auth import Authenticator, require
from qpeft.service.api.guard import Endpoint, Handler
from qpeft.service.api.problems import problem
from qpeft.service.core import Service
from qpeft.service.dashboard.oidc import PATH as OIDC_PATH
from qpeft.service.dashboard.pages import all_pages
from qpeft.service.dashboard.site import Page, PageContext, error_page, shown
from qpeft.service.store.sessions import LIFE_S, Login, digest_of, log_in, log_out, new_cookie, token_is_right
from qpeft.web import http

COOKIE: Final = "qpeft_session"
FORM_BYTES: Final = 8192


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


def refusal(request: Request, error: ServiceError) -> Response:
    """A refusal as a page where a browser asks for one, else as a problem; the API answers problems alone.

    Args:
        request: the request that was refused; its address and its `Accept` header decide.
        error: what was refused, and why.
    """
    api = request.url.path.startswith(("/v1/", "/healthz", "/readyz", "/metrics"))
    return error_page(request, error) if http.wants_page(request) and not api else problem(error)


def endpoints(service: Service, auth: Authenticator) -> list[Endpoint]:
    """All pages, as the guard serves them.

    Args:
        service: what the pages ask.
        auth: who may log in, and who holds a session.
    """
    proxied = service.settings.behind_proxy
    menu = tuple(page for page in all_pages() if page.nav)
    sign_in_url = OIDC_PATH if service.settings.oidc_issuer is not None else ""

    def secure(request: Request) -> bool:
        return proxied or request.url.scheme == "https"

    async def login_form(request: Request) -> Response:
        return shown(request, "login", reason="", oidc=sign_in_url)

    async def login(request: Request) -> Response:
        same_origin(request, proxied)
        key = (await _form(request)).get("key", "").strip()
        try:
            principal = await auth.holder(key, request)
            require(principal, "read")
        except ServiceError as refused:
            return shown(request, "login", refused.status, reason=str(refused), oidc=sign_in_url)
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

    def visited(page: Page) -> Handler:
        async def visit(request: Request) -> Response:
            cookie = request.cookies.get(COOKIE, "")
            principal = await auth.session(cookie, request)
            if principal is None:
                return _to("/login")
            form: dict[str, str] = {}
            if page.method == "POST":
                same_origin(request, proxied)
                form = await _form(request)
                if not token_is_right(cookie, form.get("token", "")):
                    raise ServiceError("the form's token is wrong", status=403, code="csrf", hint="load the page again")
            require(principal, page.scope)
            return await page.handler(PageContext(service, auth, request, principal, cookie, form, menu))

        return visit

    async def preferences(request: Request) -> Response:
        return http.preferences(request)

    table = [
        Endpoint("GET", "/login", login_form),
        Endpoint("POST", "/login", login, FORM_BYTES),
        Endpoint("POST", "/logout", logout, FORM_BYTES),
        Endpoint("GET", "/preferences", preferences),
        Endpoint("GET", "/static/{name}", _static),
        *(Endpoint(page.method, page.path, visited(page), FORM_BYTES) for page in all_pages()),
    ]
    return [Endpoint(one.method, one.path, _labelled(one), one.max_bytes) for one in table]


async def _static(request: Request) -> Response:
    """A style or script that is shipped; ServiceError 404 for any other name."""
    name = request.path_params["name"]
    found = http.static_file(name)
    if found is None:
        raise ServiceError("no such file", status=404, code="http", value=name[:80])
    return found


def _labelled(endpoint: Endpoint) -> Handler:
    async def labelled(request: Request) -> Response:
        request.scope["qpeft.route"] = f"{endpoint.method} {endpoint.path}"
        return await endpoint.handler(request)

    return labelled
