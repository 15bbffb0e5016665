"""One answer, whole or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
import weakref
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request

from qpeft.applications.serving.adapters import Adapters, Served
from qpeft.applications.serving.requests import ChatRequest
from qpeft.evaluation.generate import Generated

LOOK_S = 0.3  # how often it is looked whether a client still waits


class PendingAnswer:
    """One answer in progress. It is `waiting` until it has ended or its client is gone."""

    def __init__(
        self,
        adapters: Adapters,
        served: Served,
        ids: list[int],
        max_new_tokens: int,
        given: ChatRequest,
        waiting: weakref.WeakSet[PendingAnswer],
    ) -> None:
        self.adapters, self.served, self.ids, self.max_new_tokens, self.given = adapters, served, ids, max_new_tokens, given
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self.stop, self.waiting = threading.Event(), waiting
        waiting.add(self)

    def run(self, streamer: Any = None) -> Generated:
        """Generate, in a thread of its own."""
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
        try:
            while not (await asyncio.wait([answering], timeout=LOOK_S))[0]:
                if await request.is_disconnected():
                    self.stop.set()
            return answering.result()
        finally:
            self.waiting.discard(self)

    def envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The outer fields of a response.

        Args:
            kind: the response's `object`, such as "chat.completion".
            choices: the response's `choices`.
        """
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
                yield f"data: {json.dumps(self.envelope('chat.completion.chunk', []) | {'usage': usage_of(made[0])})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.stop.set()
            self.waiting.discard(self)


def usage_of(answer: Generated) -> dict[str, int]:
    """Counts of tokens."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }
