"""Shared by the route files: routes as data, request context, body parsing."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from qpeft.errors import ServiceError
from qpeft.service.api.auth import Authenticator, Principal
from qpeft.service.api.bodies import LARGE, SMALL, check_values, decode_s
from qpeft.service.core import Service
from qpeft.service.settings import Settings
from qpeft.service.store.schema import STATES
from qpeft.service.vendor.tasks import TASK_STATES

T = TypeVar("T")
_NAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,128}")
JSON, MSGPACK, BINARY, NDJSON = "application/json", "application/msgpack", "application/octet-stream", "application/x-ndjson"
encode = msgspec.json.Encoder().encode


QUERY: dict[str, dict[str, Any]] = {
    "wait": {"type": "number", "minimum": 0, "maximum": 60, "description": "seconds to wait for the end"},
    "limit": {"type": "integer", "minimum": 1, "maximum": 1000, "description": "how many at most"},
    "cursor": {"type": "integer", "minimum": 0, "maximum": 2**53 - 1, "description": "where to go on, from the answer before"},
    "state": {"type": "string", "enum": STATES, "description": "only jobs in this state"},
    "task_state": {"type": "string", "enum": TASK_STATES, "description": "only tasks in this state"},
    "before": {"type": "string", "description": "the last id of the page before"},
    "device": {"type": "string", "description": "only jobs of this device"},
    "wait_until_terminal": {"type": "string", "enum": ["true", "false"], "description": "true: answer when the job has ended"},
    "timeout_seconds": {"type": "number", "minimum": 0, "maximum": 60, "description": "... or after so many seconds"},
    "tag": {"type": "string", "description": "a name for the job"},
    "after": {
        "type": "string",
        "pattern": r"^[0-9]{1,18}-[0-9]{1,18}$",
        "description": "the id of the last event seen, like the header Last-Event-ID",
    },
    "id": {"type": "string", "description": "a calibration of the past"},
    "days": {"type": "integer", "minimum": 1, "maximum": 3660, "description": "how many days back"},
    "all": {"type": "integer", "minimum": 0, "maximum": 1, "description": "1: of every user (administrators)"},
}
"""Query parameters as JSON schemas. A whole number may be written as `3` or `3.0`."""


@dataclass
class Waiting:
    """Waits for a change, again and again, until a deadline (the loop's time)."""

    service: Service
    event: asyncio.Event
    deadline: float

    async def again(self) -> bool:
        """Wait for a change; False when the time is over or the service stops, and then it did not wait."""
        now = asyncio.get_running_loop().time()
        if now >= self.deadline or self.service.stopping:
            return False
        await self.service.hub.wait(self.event, self.deadline - now)
        self.event.clear()
        return True


@dataclass
class Context:
    """One request: who asks, and the service it is put to."""

    service: Service
    auth: Authenticator
    request: Request
    principal: Principal
    held: contextlib.ExitStack
    """Closed at the end of the request."""

    @property
    def owner(self) -> str:
        """The id of the user who asks."""
        return self.principal.owner

    def path(self, name: str) -> str:
        """A part of the path; ServiceError 404 for what no name can be."""
        text = str(self.request.path_params[name])
        if not _NAME.fullmatch(text):
            raise ServiceError("nothing has such a name", status=404, code="not_found", value=text[:40])
        return text

    def query(self, name: str) -> str | None:
        """A word of the query, None when it is not there; ServiceError 422 for what no name can be."""
        text = self.request.query_params.get(name)
        if text is not None and not _NAME.fullmatch(text):
            raise ServiceError(f"{name} is not a name", status=422, code="query", value=text[:40], bound="128 printable characters")
        return text

    @contextlib.contextmanager
    def waiting(self, name: str, wait_s: float | None = None) -> Iterator[Waiting]:
        """A wait for changes.

        Args:
            name: what may change: the id of a job or batch, or another name of `ChangeHub`.
            wait_s: seconds to wait at most; default the query's `wait`.

        Raises:
            ServiceError: 429, the user has too many waits.
        """
        wait_s = self.number("wait", 0.0) if wait_s is None else wait_s
        loop = asyncio.get_running_loop()
        if wait_s <= 0:
            yield Waiting(self.service, asyncio.Event(), loop.time())
            return
        with self.auth.waits.take(self.owner), self.service.hub.listen(name) as event:
            yield Waiting(self.service, event, loop.time() + wait_s)

    def number(self, name: str, default: float) -> float:
        """A number of the query.

        Args:
            name: the parameter, a key of `QUERY`.
            default: its value when it is not given.

        Raises:
            ServiceError: 422, no number, or outside its bounds in `QUERY`.
        """
        text = self.request.query_params.get(name)
        if text is None:
            return default
        schema = QUERY[name]
        low, high = schema["minimum"], schema["maximum"]
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high or (schema["type"] == "integer" and not value.is_integer()):
            raise ServiceError(
                f"{name} is not a number in its bounds", status=422, code="query", value=text[:40], bound=f"{low:g}..{high:g}"
            )
        return value

    def choice(self, name: str, schema: str | None = None) -> str | None:
        """A word of the query that is one of those that `QUERY[schema or name]` lists."""
        text = self.request.query_params.get(name)
        if text is not None and text not in (allowed := QUERY[schema or name]["enum"]):
            raise ServiceError(f"no such {name}", status=422, code="query", value=text[:40], bound=", ".join(allowed))
        return text

    def idempotency_key(self) -> str | None:
        """The header `Idempotency-Key`; ServiceError 422 for one that cannot be stored."""
        key = self.request.headers.get("idempotency-key")
        if key is not None and not (0 < len(key) <= 128 and key.isprintable() and key.isascii()):
            raise ServiceError(
                "an idempotency key is 1 to 128 printable characters", status=422, code="idempotency", value=len(key)
            )
        return key

    def content_type(self, *allowed: str) -> str:
        """The body's content type; ServiceError 415 when it is not one of `allowed`."""
        given = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if given not in allowed:
            raise ServiceError(
                "the body's content type is not taken here",
                status=415,
                code="content_type",
                value=given[:80],
                bound=", ".join(allowed),
            )
        return given

    async def json(self, decoder: msgspec.json.Decoder[T]) -> tuple[T, bytes]:
        """The decoded body and its bytes."""
        self.content_type(JSON)
        body = await self.body()
        return decode(decoder, body), body

    async def body(self) -> bytes:
        """The body. Large ones of a user are few at the same time, and JSON is `bounded`.

        Raises:
            ServiceError: 429, the user sends too many at the same time; 422, too many values.
        """
        announced = self.request.headers.get("content-length", "")
        if not announced.isdigit() or int(announced) > LARGE:
            self.held.enter_context(self.auth.bodies.take(self.owner))
        body = await self.request.body()
        if len(body) > SMALL and not self.request.headers.get("content-type", "").startswith(BINARY):
            await self.bounded(body)
        return body

    async def bounded(self, text: bytes) -> None:
        """Wait until it is this user's turn to have a JSON text decoded.

        Args:
            text: the text, which need not be valid.

        Raises:
            ServiceError: 422, too many values.
        """
        if len(text) > LARGE:
            await self.service.ask(check_values, text)
        if len(text) > SMALL:
            await self.auth.pace.turn(self.owner, decode_s(text))


def decode(decoder: msgspec.json.Decoder[T] | msgspec.msgpack.Decoder[T], body: bytes) -> T:
    """Decode a request's body.

    Args:
        decoder: decoder of the body's type.
        body: the body.

    Raises:
        ServiceError: 422, the body is of another type, and where; 400, it cannot be read.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise ServiceError(f"the body is not what this route takes: {error}", status=422, code="body") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ServiceError(f"the body cannot be read: {error}", status=400, code="body") from error
    except RecursionError as error:
        raise ServiceError("the body is nested too deeply", status=400, code="body") from error


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response in JSON.

    Args:
        content: what is encoded.
        status: HTTP status.
        headers: further headers.
    """
    return Response(encode(content), status, headers, JSON)


@dataclass(frozen=True)
class Route:
    """A route and how it is described: `takes` is the type of its body, `query` its parameters."""

    method: str
    path: str
    scope: str
    handler: Callable[[Context], Awaitable[Response]]
    summary: str
    takes: type[msgspec.Struct] | None = None
    gives: str = JSON
    status: int = 200
    query: tuple[str, ...] = ()
    body: tuple[str, ...] = (JSON,)
    max_bytes: Callable[[Settings], int] = lambda settings: settings.max_body_bytes
    """Bound of the body, refused before the key is looked at."""
