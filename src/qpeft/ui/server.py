"""The server of `qpeft ui`: on loopback alone, and only for who has its token.

Whoever opens `/?token=...` gets a cookie that no script can read. A request must name this machine as its host (another name could
be an attacker's that leads here), and a form must come from a page of this server and bring the token.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from qpeft.errors import QpeftError, RunError
from qpeft.ui.control import Control
from qpeft.ui.pages import ADDRESSES
from qpeft.ui.runs import RunFolder
from qpeft.ui.site import Address, Studio, Visit, shown
from qpeft.ui.worker import ModelProcess
from qpeft.web import http
from qpeft.web.language import translate

HOSTS = ("127.0.0.1", "localhost", "::1")
FORM_BYTES = 1 << 16
HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}


def make_app(runs: Path, recipes: Path, token: str, port: int) -> Starlette:
    """The ASGI application that shows runs and starts recipes.

    Args:
        runs: folder of the runs.
        recipes: folder of the recipes.
        token: what a visitor must bring once.
        port: port of the server, part of the cookie's name.
    """
    folder = RunFolder(runs)
    studio = Studio(folder, Control(folder, recipes), ModelProcess(), token, [(one.path, one.nav) for one in ADDRESSES if one.nav])
    cookie = f"qpeft_ui_{port}"

    def visited(address: Address) -> Route:
        async def visit(request: Request) -> Response:
            try:
                return _guarded(await _visit(studio, address, request, cookie))
            except QpeftError as error:
                return _guarded(_problem(request, str(error), 404 if isinstance(error, RunError) else 422))

        return Route(address.path, visit, methods=[address.method])

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        found = http.static_file(name)
        if found is None and name in ("run.js",):
            script = (resources.files("qpeft.ui") / "static" / name).read_bytes()
            found = Response(script, media_type="text/javascript; charset=utf-8")
        return _guarded(found if found is not None else _problem(request, "no such file", 404))

    async def preferences(request: Request) -> Response:
        return _guarded(http.preferences(request))

    async def missing(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return _guarded(_problem(request, "no such page" if status == 404 else str(error), status))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        studio.stopping = True
        studio.model.close()

    routes = [visited(one) for one in ADDRESSES]
    routes += [Route("/static/{name}", static), Route("/preferences", preferences)]
    made = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: missing})
    made.state.studio = studio
    return made


async def _visit(studio: Studio, address: Address, request: Request, cookie: str) -> Response:
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname
    if host not in HOSTS:
        return _problem(request, "this page is for this machine alone", 403)
    if address.method == "GET" and studio.knows(request.query_params.get("token", "")):
        response = RedirectResponse(request.url.path, 303)
        response.set_cookie(cookie, studio.token, path="/", httponly=True, samesite="strict")
        return response
    if not studio.knows(request.cookies.get(cookie, "")):
        return _problem(request, "open the address that qpeft ui printed, with its token", 403)
    form: dict[str, str] = {}
    if address.method == "POST":
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return _problem(request, "this request came from another site", 403)
        length = request.headers.get("content-length", "")
        if not length.isdigit() or int(length) > FORM_BYTES:
            return _problem(request, "the form is too large", 413)
        form = dict(parse_qsl((await request.body()).decode(errors="replace"), keep_blank_values=True, max_num_fields=50))
        if not studio.knows(form.get("token", "")):
            return _problem(request, "the form's token is wrong; load the page again", 403)
    return await address.handler(Visit(studio, request, form))


def _problem(request: Request, reason: str, status: int) -> Response:
    titles = {404: "There is no such page", 403: "Not allowed", 405: "Not allowed"}
    title = translate(http.language_of(request), titles.get(status, "That did not work"))
    return shown(
        request,
        "problem",
        status,
        title=title,
        reason=reason.partition("; hint: ")[0],
        hint=reason.partition("; hint: ")[2],
        code=status,
    )


def _guarded(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def new_token() -> str:
    """192 random bits."""
    return secrets.token_urlsafe(24)


def serve(runs: Path, recipes: Path, *, port: int, open_browser: bool = False) -> None:
    """Serve until it is interrupted; prints the address with the token.

    Args:
        runs: folder of the runs.
        recipes: folder of the recipes.
        port: port on loopback; 0 takes a free one.
        open_browser: open the address in a browser.

    Raises:
        RunError: the port is taken.
    """
    import socket
    import webbrowser

    import uvicorn

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()  # who opens the address at once waits instead of being refused
        except OSError as error:
            raise RunError("the port is taken", value=port, hint="--port 0 takes a free one") from error
        port = listener.getsockname()[1]
        token = new_token()
        app = make_app(runs, recipes, token, port)
        address = f"http://127.0.0.1:{port}/?token={token}"
        print(f"qpeft ui shows {runs.resolve()} at {address}", flush=True)
        if open_browser:
            webbrowser.open(address)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        uvicorn.Server(config).run(sockets=[listener])
