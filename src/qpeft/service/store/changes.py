"""Wakes coroutines that wait for something to change, in this process and, on PostgreSQL, in those that share the database.

A name is an id of a job, batch or worker, `owner:ID`, `device:NAME`, or `interactive:NAME`. All who listen to a name are woken. The
last two are the exception: they mean that work is queued on a device, or in its interactive lane, and one listener is woken. The
operation that leases to it changes the name again while there is more. A thousand idle workers thus cost one request when a job
comes, not a thousand.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Set
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from qpeft.service.store.database import TCP

log = logging.getLogger("qpeft.service")
WORK = ("device:", "interactive:")
CHANNEL = "qpeft_changes"
PAYLOAD_BYTES = 7000  # PostgreSQL takes 8,000
MOST_NAMES = 4000  # beyond it everybody is woken
EVERYTHING = "*"
LOST_POLL_S = 0.25
RECONNECT_S = 1.0
_NOTIFY = sa.select(sa.func.pg_notify(CHANNEL, sa.bindparam("payload")))


class ChangeHub:
    """Names that change, and who waits for them. `changed` may be called from any thread, everything else from the loop's.

    While `poll_s` is set (the database cannot tell of other processes' changes) a wait ends at the latest after that.
    """

    def __init__(self) -> None:
        self.poll_s: float | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, dict[asyncio.Event, None]] = defaultdict(dict)

    def changed(self, names: Set[str]) -> None:
        """Wake whoever listens to one of the names."""
        if self.loop is not None and not self.loop.is_closed():
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                self.loop.call_soon_threadsafe(self.wake, names)

    def stop(self) -> None:
        """Wake everybody, once and for all."""
        self.changed({EVERYTHING})

    def wake(self, names: Set[str]) -> None:
        """As `changed`, at once."""
        if EVERYTHING in names:
            for events in self._waiting.values():
                for event in events:
                    event.set()
            return
        for name in names & self._waiting.keys():
            asleep = (event for event in self._waiting[name] if not event.is_set())
            if name.startswith(WORK):
                if (longest := next(asleep, None)) is not None:
                    longest.set()
            else:
                for event in asleep:
                    event.set()

    @contextlib.contextmanager
    def listen(self, *names: str) -> Iterator[asyncio.Event]:
        """An event that is set at every change of one of the names from here on; clear it before looking.

        Work of which the listener was told and did not look for any more is told to the next.
        """
        event = asyncio.Event()
        for name in names:
            self._waiting[name][event] = None
        try:
            yield event
        finally:
            for name in names:
                self._waiting[name].pop(event, None)
                if not self._waiting[name]:
                    del self._waiting[name]
            if event.is_set():
                self.wake({name for name in names if name.startswith(WORK)})

    async def wait(self, event: asyncio.Event, timeout_s: float) -> None:
        """Until the event, the timeout or the poll, whichever comes first.

        Args:
            event: from `listen`.
            timeout_s: seconds to wait at most.
        """
        limit = timeout_s if self.poll_s is None else min(timeout_s, self.poll_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(limit, 0.0)):
                await event.wait()


def announce(connection: sa.Connection, sender: str, names: Set[str]) -> None:
    """Tell the processes that share a PostgreSQL what this transaction changed; they hear it when it commits.

    Args:
        connection: of the transaction.
        sender: who tells; its own listener leaves it out.
        names: what changed.
    """
    told = [EVERYTHING] if len(names) > MOST_NAMES else sorted(names)
    lines, size = [sender], 0
    for name in told:
        if size > PAYLOAD_BYTES:
            connection.execute(_NOTIFY, {"payload": "\n".join(lines)})
            lines, size = [sender], 0
        lines.append(name)
        size += len(name.encode()) + 1
    connection.execute(_NOTIFY, {"payload": "\n".join(lines)})


class Listener:
    """A thread that hears what other processes announced.

    Args:
        engine: of the PostgreSQL; the listener has a connection of its own.
        own: the sender whose announcements are left out.
        hear: called with the names that changed.
        connected: called with True when announcements arrive from now on, with False when the connection was lost.
    """

    def __init__(self, engine: sa.Engine, own: str, hear: Callable[[Set[str]], None], connected: Callable[[bool], None]) -> None:
        self._engine = sa.create_engine(engine.url, poolclass=NullPool, connect_args=TCP)
        self._own, self._hear, self._connected = own, hear, connected
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qpeft-listen", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join(5)
        self._engine.dispose()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except Exception as error:  # whatever the driver raises: the connection is made anew
                log.warning("changes of other processes are looked for, not heard: %s", str(error).strip().partition("\n")[0])
            self._connected(False)
            self._stopping.wait(RECONNECT_S)

    def _listen(self) -> None:
        with contextlib.closing(self._engine.raw_connection()) as held:
            connection: Any = held.driver_connection
            connection.autocommit = True
            connection.execute(f"LISTEN {CHANNEL}")
            self._connected(True)
            self._hear({EVERYTHING})  # what was announced while nobody listened
            while not self._stopping.is_set():
                for notice in connection.notifies(timeout=0.5):
                    sender, *names = notice.payload.split("\n")
                    if sender != self._own:
                        self._hear(set(names))
