"""The stream that keeps pages up to date: it says that a run's files changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from qpeft.ui.site import Address, Visit

LOOK_S, TICK_S = 0.7, 5.0  # between two looks at the files; a process that was killed changes none


async def live(visit: Visit) -> Response:
    """`change` when a file of a run changed, `tick` every few seconds."""
    return StreamingResponse(_stream(visit), media_type="text/event-stream")


async def _stream(visit: Visit) -> AsyncIterator[bytes]:
    yield b"retry: 1000\n\n"
    look = visit.studio.folder.signature
    seen, told = await run_in_threadpool(look), time.monotonic()
    while not visit.studio.stopping:
        await asyncio.sleep(LOOK_S)
        now = await run_in_threadpool(look)
        if now != seen or time.monotonic() - told >= TICK_S:
            yield b"event: change\ndata: {}\n\n" if now != seen else b"event: tick\ndata: {}\n\n"
            seen, told = now, time.monotonic()


ADDRESSES = [Address("/live", live)]
