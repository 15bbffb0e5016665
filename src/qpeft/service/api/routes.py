"""What the files of routes share: a route as data, a request's context, reading bodies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from qpeft.errors import ServiceError
from qpeft.service.api.auth import Keys, Principal
from qpeft.service.core import Service

T = TypeVar("T")
JSON, MSGPACK, BINARY, NDJSON = "application/json", "application/msgpack", "application/octet-stream", "application/x-ndjson"
encode = msgspec.json.Encoder().encode


@dataclass
class Context:
    """One request: who asks, and the service it is put to."""

    service: Service
    keys: Keys
    request: Request
    principal: Principal

    @property
    def owner(self) -> str:
        return self.principal.owner

    def path(self, name: str) -> str:
        return str(self.request.path_params[name])

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number of the query, refused outside its bounds."""
        text = self.request.query_params.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise ServiceError(
                f"{name} is not a number in its bounds", status=422, code="query", value=text[:40], bound=f"{low:g}..{high:g}"
            )
        return value

    def idempotency_key(self) -> str | None:
        key = self.request.headers.get("idempotency-key")
        if key is not None and not (0 < len(key) <= 128 and key.isprintable() and key.isascii()):
            raise ServiceError(
                "an idempotency key is 1 to 128 printable characters", status=422, code="idempotency", value=len(key)
            )
        return key

    def content_type(self, *allowed: str) -> str:
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
        body = await self.request.body()
        return decode(decoder, body), body


def decode(decoder: msgspec.json.Decoder[T] | msgspec.msgpack.Decoder[T], body: bytes) -> T:
    """A body as its type; ServiceError says where it is not."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise ServiceError(f"the body is not what this route takes: {error}", status=422, code="body") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ServiceError(f"the body cannot be read: {error}", status=400, code="body") from error
    except RecursionError as error:
        raise ServiceError("the body is nested too deeply", status=400, code="body") from error


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
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
