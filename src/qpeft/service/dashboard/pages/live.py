"""The stream that keeps pages up to date: server-sent events that say that something changed. The page then reads itself again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from starlette.responses import Response

from qpeft.service.api.rate import EventStream
from qpeft.service.dashboard.site import Page, PageContext

TICK_S = 5.0  # what no event tells (another user's jobs in the queue, a worker's silence) is looked at so often
RETRY_MS = 1000


async def live(context: PageContext) -> Response:
    """`change` when a job of the visitor's or a device changed, `tick` every few seconds."""
    with contextlib.ExitStack() as slot:
        slot.enter_context(context.auth.streams.take(context.owner))
        return EventStream(_stream(context), slot.pop_all())


async def _stream(context: PageContext) -> AsyncIterator[bytes]:
    service = context.service
    names = (f"owner:{context.owner}", "devices", "places")
    with service.hub.listen(*names) as event:
        yield b"retry: %d\n\n" % RETRY_MS
        place, last = await service.ask(context.listings.last_change, context.owner), time.monotonic()
        while not service.stopping:
            await service.hub.wait(event, 1.0)
            told, now = event.is_set(), await service.ask(context.listings.last_change, context.owner)
            event.clear()
            if told or now != place:
                place, last = now, time.monotonic()
                yield b"id: %d-%d\nevent: change\ndata: {}\n\n" % place
                await asyncio.sleep(0.1)  # gather what comes together
            elif time.monotonic() - last >= TICK_S:
                if await context.auth.session(context.cookie, context.request) is None:
                    yield b"event: tick\ndata: {}\n\n"  # the page is sent to the login
                    return
                last = time.monotonic()
                yield b"event: tick\ndata: {}\n\n"


PAGES = [Page("/live", live)]
