"""An OpenAI-compatible chat API on a run: chat completions (streamed or whole), models, loading and unloading of adapters.

`model` names an adapter, or "base" for the model without one. What this server cannot do (tools, several choices,
log-probabilities, stop texts, other formats) is refused, not ignored. It listens on this machine only unless an API key is set.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from qpeft.errors import MissingDependencyError, ModelError, QpeftError, RunError

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
except ImportError as error:
    raise MissingDependencyError("starlette", "serve", "qpeft serve-model") from error

from qpeft.applications.serving.adapters import Adapters
from qpeft.applications.serving.job import PendingAnswer, usage_of
from qpeft.applications.serving.requests import AdapterRequest, ChatRequest

if TYPE_CHECKING:
    from starlette.types import ExceptionHandler

MAX_NEW_TOKENS = 512  # of an answer whose request names no bound
MAX_BODY = 1 << 20  # bytes of a request
MAX_WAITING = 64  # answers in the making or waiting for the model

Body = TypeVar("Body", bound=BaseModel)
Endpoint = Callable[[Request], Awaitable[Response]]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def create_app(
    adapters: Adapters,
    *,
    api_key: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_body: int = MAX_BODY,
    max_waiting: int = MAX_WAITING,
) -> Starlette:
    """The ASGI application.

    Args:
        adapters: the models.
        api_key: what every request but /health has as its bearer token. Without it the Host header must name this machine, so
            that no web page reaches the server by another name.
        max_new_tokens: of an answer whose request names no bound.
        max_body: bytes of a request; larger ones get status 413.
        max_waiting: answers in the making or waiting; a request beyond them gets status 429.
    """
    waiting: weakref.WeakSet[PendingAnswer] = weakref.WeakSet()

    def with_key(endpoint: Endpoint) -> Endpoint:
        async def checked(request: Request) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if api_key is not None and not secrets.compare_digest(given.encode(), api_key.encode()):
                return _refused(401, "the API key is missing or wrong", "invalid_api_key")
            return await endpoint(request)

        return checked

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "models": len(adapters.names()), "waiting": len(waiting), "max_waiting": max_waiting})

    async def models(request: Request) -> Response:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "qpeft"} for name in adapters.names()]
        return JSONResponse({"object": "list", "data": listed})

    async def load(request: Request) -> Response:
        given = await _read(request, AdapterRequest, max_body)
        await asyncio.to_thread(adapters.load, given.name, Path(given.run))
        return JSONResponse({"id": given.name, "object": "model"}, 201)

    async def unload(request: Request) -> Response:
        name = request.path_params["name"]
        await asyncio.to_thread(adapters.unload, name)
        return JSONResponse({"id": name, "deleted": True})

    async def chat(request: Request) -> Response:
        given = await _read(request, ChatRequest, max_body)
        if names := given.unsupported():
            return _refused(400, f"not supported: {', '.join(names)}", "unsupported_parameter")
        if len(waiting) >= max_waiting:
            return _refused(429, f"{max_waiting} answers are waiting already", "overloaded", {"retry-after": "2"})
        served = adapters.get(given.model)
        ids = await asyncio.to_thread(adapters.prompt, served, [turn.message() for turn in given.messages])
        wanted = given.max_completion_tokens or given.max_tokens or max_new_tokens
        room = int(getattr(served.model.config, "max_position_embeddings", 0)) or len(ids) + wanted
        if len(ids) >= room:
            return _refused(400, f"the conversation has {len(ids)} tokens, the model takes {room}", "context_length_exceeded")
        job = PendingAnswer(adapters, served, ids, min(wanted, room - len(ids)), given, waiting)
        if given.stream:
            usage = given.stream_options is not None and given.stream_options.include_usage
            return StreamingResponse(job.events(usage), media_type="text/event-stream", headers={"cache-control": "no-store"})
        answer = await job.whole(request)
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        return JSONResponse(job.envelope("chat.completion", [choice]) | {"usage": usage_of(answer)})

    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", "::1"])
    handlers: dict[type[Exception], ExceptionHandler] = {
        QpeftError: _on_error,
        ValidationError: _on_invalid,
        HTTPException: _on_http,
    }
    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", with_key(models)),
            Route("/v1/adapters", with_key(load), methods=["POST"]),
            Route("/v1/adapters/{name}", with_key(unload), methods=["DELETE"]),
            Route("/v1/chat/completions", with_key(chat), methods=["POST"]),
        ],
        middleware=[hosts] if api_key is None else [],
        exception_handlers=handlers,
    )


async def _read(request: Request, kind: type[Body], limit: int) -> Body:
    """The body, read up to the limit and no further. Raises HTTPException 413, and ValidationError."""
    received = bytearray()
    if int(request.headers.get("content-length") or 0) > limit:
        raise HTTPException(413, f"the request has more than {limit:,} bytes")
    async for chunk in request.stream():
        received += chunk
        if len(received) > limit:
            raise HTTPException(413, f"the request has more than {limit:,} bytes")
    return kind.model_validate_json(bytes(received))


def _refused(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> JSONResponse:
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers)


async def _on_error(request: Request, error: Exception) -> Response:
    missing = isinstance(error, ModelError) and error.what == "no such model is loaded"
    return _refused(404 if missing else 400, str(error), "model_not_found" if missing else "invalid_request")


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    problems = [f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}" for problem in error.errors()]
    return _refused(400, "; ".join(problems[:10]), "invalid_request")


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}.get(error.status_code, "invalid_request")
    return _refused(error.status_code, error.detail, code, dict(error.headers or {}))


def serve(adapters: Adapters, *, host: str, port: int, api_key: str | None) -> None:
    """Serve until interrupted.

    Args:
        adapters: the models to serve.
        host: address to listen on.
        port: TCP port.
        api_key: key that requests must bring; None asks for none.

    Raises:
        RunError: an address beyond this machine without a key.
    """
    if not is_loopback(host) and not api_key:
        raise RunError(
            "listening beyond this machine without a key would let anyone use the model",
            value=host,
            bound="127.0.0.1, ::1, localhost",
            hint="set QPEFT_API_KEY, and put a proxy that speaks TLS in front",
        )
    uvicorn.run(create_app(adapters, api_key=api_key), host=host, port=port, log_level="warning")
