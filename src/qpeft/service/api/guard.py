"""Middleware for every request: body limits before authentication, security headers, metrics."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qpeft.errors import ServiceError
from qpeft.service.api.problems import as_refusal, problem
from qpeft.service.metrics import request_metrics
from qpeft.service.settings import Settings

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
log = logging.getLogger("qpeft.service.access")

SECURITY_HEADERS: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
API_POLICY: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")


@dataclass(frozen=True)
class Endpoint:
    """A route as the guard serves it. `path` may have parts in braces; `max_bytes` bounds the body."""

    method: str
    path: str
    handler: Handler
    max_bytes: int = 4096


class Guard:
    """The outermost application: finds the route, bounds the body, turns refusals into problems.

    The bound is the route's own. A body is refused by its announced length before it is read, else as it arrives, and after
    `body_timeout_s` seconds. Handlers read it after they have looked at the key.

    Routes of the API's table are found here, without the stack of a framework's middleware; what is not among them goes to `rest`.
    `refusal` makes the response of a refusal.
    """

    def __init__(
        self,
        rest: ASGIApp,
        settings: Settings,
        routes: Sequence[Endpoint],
        refusal: Callable[[Request, ServiceError], Response] = lambda _, error: problem(error),
    ) -> None:
        self.rest, self.settings, self.refusal = rest, settings, refusal
        self._exact = {(route.method, route.path): route for route in routes if "{" not in route.path}
        self._patterns = [
            (route.method, re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", route.path)), route)
            for route in routes
            if "{" in route.path
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.rest(scope, receive, send)
            return
        start, status, started = time.perf_counter(), 500, False

        async def guarded_send(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                headers = message["headers"] = [*message["headers"], *SECURITY_HEADERS]
                if not any(name == b"content-security-policy" for name, _ in headers):
                    headers.append(API_POLICY)
            await send(message)

        try:
            endpoint = self._find(scope)
            if endpoint is None and (methods := self._methods(scope["path"])):
                await self._not_this_method(Request(scope), methods)(scope, receive, guarded_send)
                return
            bounded = self._bounded(scope, receive, endpoint.max_bytes if endpoint is not None else 0)
            if endpoint is None:
                await self.rest(scope, bounded, guarded_send)
            else:
                response = await endpoint.handler(Request(scope, bounded))
                await response(scope, bounded, guarded_send)
        except Exception as error:
            if started:
                raise
            await self.refusal(Request(scope), as_refusal(error))(scope, receive, guarded_send)
        finally:
            seconds = time.perf_counter() - start
            route = scope.get("qpeft.route", "none")
            count, histogram = request_metrics(route, scope["method"] if route != "none" else "-", status)
            count.inc()
            if histogram is not None:
                histogram.observe(seconds)
            if log.isEnabledFor(logging.INFO):
                log.info("request", extra={"route": route, "status": status, "ms": round(seconds * 1e3, 2)})

    def _find(self, scope: Scope) -> Endpoint | None:
        method, path = scope["method"], scope["path"]
        endpoint = self._exact.get((method, path))
        if endpoint is None:
            for wanted, pattern, candidate in self._patterns:
                if wanted == method and (found := pattern.fullmatch(path)):
                    scope["path_params"] = found.groupdict()
                    return candidate
        return endpoint

    def _methods(self, path: str) -> list[str]:
        """HTTP methods of the path."""
        exact = {method for method, known in self._exact if known == path}
        return sorted(exact.union(method for method, pattern, _ in self._patterns if pattern.fullmatch(path)))

    def _not_this_method(self, request: Request, methods: Sequence[str]) -> Response:
        allowed = ", ".join(methods)
        refused = ServiceError(
            "the route does not take this method", status=405, code="method", value=request.method[:20], bound=allowed
        )
        answer = self.refusal(request, refused)
        answer.headers["allow"] = allowed
        return answer

    def _bounded(self, scope: Scope, receive: Receive, limit: int) -> Receive:
        expected = _announced(scope)
        if expected is not None and expected > limit:
            raise _too_large(expected, limit)
        if expected == 0:
            return receive
        deadline: float | None = None
        received, complete = 0, False

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal deadline, received, complete
            if complete:
                return await receive()
            message = _arrived(receive)
            if message is None:
                loop = asyncio.get_running_loop()
                deadline = loop.time() + self.settings.body_timeout_s if deadline is None else deadline
                try:
                    async with asyncio.timeout_at(deadline):
                        message = await receive()
                except TimeoutError as error:
                    raise ServiceError(
                        "the body came too slowly", status=408, code="slow_body", bound=f"{self.settings.body_timeout_s:g} s"
                    ) from error
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(received, limit)
            complete = not message.get("more_body", False)
            return message

        return bounded


def _arrived(receive: Receive) -> Message | None:
    """The next message if it is here already, as a small body is, which then needs no timer; None if it has to be waited for."""
    step = cast(Coroutine[Any, Any, Message], receive())
    try:
        step.send(None)
    except StopIteration as done:
        return cast(Message, done.value)
    step.close()  # it waits, and has taken nothing
    return None


def _announced(scope: Scope) -> int | None:
    """The body's length by its header; 0 when there is none, None when it comes in chunks of unknown number."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
        if name == b"transfer-encoding":
            return None
    return 0


def _too_large(size: int, limit: int) -> ServiceError:
    return ServiceError(
        "the body is too large", status=413, code="too_large", value=size, bound=f"{limit} bytes", hint="send several requests"
    )
