"""The application: routes, what guards them, health, and the description of it all (OpenAPI)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp

import qpeft
from qpeft.errors import ServiceError
from qpeft.service import metrics
from qpeft.service.api import openapi
from qpeft.service.api.auth import Authenticator, require
from qpeft.service.api.guard import Endpoint, Guard, Handler
from qpeft.service.api.problems import as_refusal
from qpeft.service.api.registry import all_routes
from qpeft.service.api.routes import Context, Route
from qpeft.service.core import Service
from qpeft.service.dashboard import oidc
from qpeft.service.dashboard.endpoints import COOKIE, endpoints, refusal
from qpeft.service.store.sessions import LIFE_S

log = logging.getLogger("qpeft.service")

NO_BODY_BYTES = 4096  # what a request may bring although its route takes none


def app(service: Service) -> ASGIApp:
    """The ASGI application of one process. It starts the service with its loop and stops it at the end."""
    auth = Authenticator(service)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    application = Starlette(
        lifespan=lifespan,
        routes=[*_open_routes(service), *oidc.mounted(service, auth, COOKIE, int(LIFE_S))],
        exception_handlers={ServiceError: _refusal, HTTPException: _http_error},
    )
    settings = service.settings
    routes = [
        Endpoint(
            route.method, route.path, _handler(service, auth, route), route.max_bytes(settings) if route.takes else NO_BODY_BYTES
        )
        for route in all_routes()
    ]
    return Guard(application, settings, [*routes, *endpoints(service, auth)], refusal)


def _handler(service: Service, auth: Authenticator, route: Route) -> Handler:
    label = f"{route.method} {route.path}"

    async def endpoint(request: Request) -> Response:
        request.scope["qpeft.route"] = label
        principal = await auth.principal(request)
        require(principal, route.scope)
        with contextlib.ExitStack() as held:
            return await route.handler(Context(service, auth, request, principal, held))

    return endpoint


def _open_routes(service: Service) -> list[BaseRoute]:
    """Routes that need no key: they tell nothing of anybody's work."""

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        if service.draining or service.stopping:
            raise ServiceError("the service is stopping", status=503, code="stopping")
        workers = await service.ready()
        return JSONResponse({"status": "ready", "version": qpeft.__version__, "workers": workers})

    async def description(_: Request) -> Response:
        return Response(openapi.document(all_routes()), media_type="application/json")

    async def prometheus(request: Request) -> Response:
        """Beyond loopback metrics are for a proxy's rules to open or close; they hold no user's data."""
        await service.refresh_metrics()
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    table = (
        ("/healthz", healthz),
        ("/readyz", readyz),
        ("/metrics", prometheus),
        ("/openapi.json", description),
        ("/v1/openapi.json", description),
    )
    return [StarletteRoute(path, handler, methods=["GET"]) for path, handler in table]


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "no such route", 405: "the route does not take this method"}
    answer = refusal(request, ServiceError(words.get(error.status_code, error.detail), status=error.status_code, code="http"))
    answer.headers.update(error.headers or {})
    return answer


async def _refusal(request: Request, error: Exception) -> Response:
    return refusal(request, as_refusal(error))


if __name__ == "__main__":  # python -m qpeft.service.app > docs/openapi.json
    import sys

    sys.stdout.buffer.write(openapi.document(all_routes()))
