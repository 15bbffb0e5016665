"""Wakes coroutines that wait for something to change."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator


class ChangeHub:
    """Names that change, and who waits for them. `changed` may be called from any thread, everything else from the loop's.

    Processes that share a database do not hear each other, so with `poll_s` a wait ends at the latest after that.
    """

    def __init__(self, poll_s: float | None) -> None:
        self.poll_s = poll_s
        self.loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)

    def changed(self, names: set[str]) -> None:
        """Wake whoever listens to one of the names."""
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._wake, names)

    def stop(self) -> None:
        """Wake everybody, once and for all."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        self._wake(set(self._waiting))

    def _wake(self, names: set[str]) -> None:
        for name in names & self._waiting.keys():
            for event in self._waiting[name]:
                event.set()

    @contextlib.contextmanager
    def listen(self, *names: str) -> Iterator[asyncio.Event]:
        """An event that is set at every change of one of the names from here on; clear it before looking."""
        event = asyncio.Event()
        for name in names:
            self._waiting[name].add(event)
        try:
            yield event
        finally:
            for name in names:
                self._waiting[name].discard(event)
                if not self._waiting[name]:
                    del self._waiting[name]

    async def wait(self, event: asyncio.Event, timeout_s: float) -> None:
        """Until the event, the timeout or the poll, whichever comes first."""
        limit = timeout_s if self.poll_s is None else min(timeout_s, self.poll_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(limit, 0.0)):
                await event.wait()
