"""An OpenAI-compatible chat API on a run: `/v1/chat/completions` (streamed or whole), `/v1/models`, and hot loading of adapters.

`model` names an adapter, or "base" for the model without one. What this server cannot do (tools, several choices,
log-probabilities, stop texts, other formats) is refused, not ignored. It listens on this machine alone unless an API key is set.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qpeft.errors import MissingDependencyError, ModelError, QpeftError, RunError

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
except ImportError as error:
    raise MissingDependencyError("starlette", "serve", "qpeft serve-model") from error

from qpeft.applications.serving.adapters import Adapters, Served
from qpeft.evaluation.generate import Generated
from qpeft.training.data.examples import Message

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
MAX_NEW_TOKENS = 512  # of an answer whose request names no bound
LOOK_S = 0.3  # how often it is looked whether a client still waits
_UNSUPPORTED = ("tools", "functions", "logprobs", "top_logprobs", "stop", "response_format", "logit_bias", "audio")


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Turn(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    def message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class _StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """What of OpenAI's request is understood. Other fields are refused where they would change the answer, else ignored."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[_Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Literal[1] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    def unsupported(self) -> list[str]:
        extra = self.model_extra or {}
        return [name for name in _UNSUPPORTED if extra.get(name)]


class AdapterRequest(BaseModel):
    """An adapter to load: the name to ask it by, and its run's folder relative to the server's."""

    name: Annotated[str, Field(pattern=r"^[\w.:-]{1,100}$")]
    run: str


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def create_app(adapters: Adapters, *, api_key: str | None = None, max_new_tokens: int = MAX_NEW_TOKENS) -> Starlette:
    """The ASGI application.

    Args:
        adapters: the model and its adapters.
        api_key: every request needs it as its bearer token. Without one the Host header must name this machine, so that no web
            page reaches the server by another name.
        max_new_tokens: of an answer whose request names no bound.
    """

    def with_key(handler: Handler) -> Handler:
        async def checked(request: Request) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if api_key is not None and not secrets.compare_digest(given.encode(), api_key.encode()):
                return _refusal(401, "the API key is missing or wrong", "invalid_api_key")
            return await handler(request)

        return checked

    async def models(_: Request) -> Response:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "qpeft"} for name in adapters.names()]
        return JSONResponse({"object": "list", "data": listed})

    async def load(request: Request) -> Response:
        given = AdapterRequest.model_validate_json(await request.body())
        await run_in_threadpool(adapters.load, given.name, Path(given.run))
        return JSONResponse({"id": given.name, "object": "model"}, 201)

    async def unload(request: Request) -> Response:
        name = request.path_params["name"]
        await run_in_threadpool(adapters.unload, name)
        return JSONResponse({"id": name, "deleted": True})

    async def chat(request: Request) -> Response:
        given = ChatRequest.model_validate_json(await request.body())
        if names := given.unsupported():
            return _refusal(400, f"not supported: {', '.join(names)}", "unsupported_parameter")
        served = adapters.get(given.model)
        ids = await asyncio.to_thread(adapters.prompt, served, [turn.message() for turn in given.messages])
        wanted = given.max_completion_tokens or given.max_tokens or max_new_tokens
        room = int(getattr(served.model.config, "max_position_embeddings", 0)) or len(ids) + wanted
        if len(ids) >= room:
            return _refusal(400, f"the conversation has {len(ids)} tokens, the model takes {room}", "context_length_exceeded")
        job = _Job(adapters, served, ids, min(wanted, room - len(ids)), given)
        if given.stream:
            usage = given.stream_options is not None and given.stream_options.include_usage
            return StreamingResponse(job.events(usage), media_type="text/event-stream", headers={"cache-control": "no-store"})
        answer = await job.whole(request)
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        return JSONResponse(job.envelope("chat.completion", [choice]) | {"usage": _usage(answer)})

    app = Starlette(
        routes=[
            Route("/v1/models", with_key(models)),
            Route("/v1/adapters", with_key(load), methods=["POST"]),
            Route("/v1/adapters/{name}", with_key(unload), methods=["DELETE"]),
            Route("/v1/chat/completions", with_key(chat), methods=["POST"]),
        ],
        exception_handlers={ValidationError: _invalid, QpeftError: _failed},
    )
    if api_key is None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", "::1"])
    return app


def _refusal(status: int, message: str, code: str) -> JSONResponse:
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)


def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    first = error.errors()[0]
    return _refusal(400, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}", "invalid_request")


def _failed(_: Request, error: Exception) -> Response:
    missing = isinstance(error, ModelError) and error.what == "no such model is loaded"
    return _refusal(404 if missing else 400, str(error), "model_not_found" if missing else "invalid_request")


class _Job:
    """One answer in the making."""

    def __init__(self, adapters: Adapters, served: Served, ids: list[int], max_new_tokens: int, given: ChatRequest) -> None:
        self.adapters, self.served, self.ids, self.max_new_tokens, self.given = adapters, served, ids, max_new_tokens, given
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self.stop = threading.Event()

    def run(self, streamer: Any = None) -> Generated:
        return self.adapters.answer(
            self.served,
            self.ids,
            max_new_tokens=self.max_new_tokens,
            temperature=1.0 if self.given.temperature is None else self.given.temperature,
            top_p=self.given.top_p or 1.0,
            seed=self.given.seed,
            streamer=streamer,
            stopped=self.stop.is_set,
        )

    async def whole(self, request: Request) -> Generated:
        """The answer; when the client goes away it stops at its next token, or its first if others are still answered."""
        answering = asyncio.ensure_future(asyncio.to_thread(self.run))
        while not (await asyncio.wait([answering], timeout=LOOK_S))[0]:
            if await request.is_disconnected():
                self.stop.set()
        return answering.result()

    def envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.given.model, "choices": choices}

    def _event(self, delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return f"data: {json.dumps(self.envelope('chat.completion.chunk', [choice]))}\n\n"

    async def events(self, usage: bool) -> AsyncIterator[str]:
        """Server-sent events. When the client goes away the answer stops at its next token."""
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.adapters.tokenizer, skip_prompt=True, skip_special_tokens=True)
        made: list[Generated] = []
        failed: list[BaseException] = []

        def work() -> None:
            try:
                made.append(self.run(streamer))
            except BaseException as error:  # the reader below waits for the end whatever happens
                failed.append(error)
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        texts = iter(streamer)
        try:
            yield self._event({"role": "assistant", "content": ""})
            while (text := await asyncio.to_thread(next, texts, None)) is not None:
                if text:
                    yield self._event({"content": text})
            await asyncio.to_thread(thread.join)
            if failed:
                yield f"data: {json.dumps({'error': {'message': str(failed[0]), 'type': 'server_error'}})}\n\n"
                return
            yield self._event({}, made[0].finish_reason)
            if usage:
                yield f"data: {json.dumps(self.envelope('chat.completion.chunk', []) | {'usage': _usage(made[0])})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.stop.set()


def _usage(answer: Generated) -> dict[str, int]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


def serve(adapters: Adapters, *, host: str, port: int, api_key: str | None) -> None:
    """Listen until interrupted. Raises RunError for an address beyond this machine without an API key."""
    if not is_loopback(host) and not api_key:
        raise RunError(
            "listening beyond this machine without a key would let anyone use the model",
            value=host,
            bound="127.0.0.1, ::1, localhost",
            hint="set QPEFT_API_KEY, and put a proxy that speaks TLS in front",
        )
    uvicorn.run(create_app(adapters, api_key=api_key), host=host, port=port, log_level="warning")
