"""uvicorn's HTTP protocol with bounds against clients that hold connections: slow heads, silent connections, too many of them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from qpeft.service.api.rate import network_of
from qpeft.service.settings import Settings

HEADER_BYTES = 64 * 1024


class Connections:
    """The open connections of one process, and which of them wait for their client, the longest silent first.

    A connection waits for its client until a whole request has come, with its body, and again after the response.
    """

    def __init__(self, settings: Settings) -> None:
        self.most = settings.max_connections
        self.most_of_one = settings.max_connections if settings.behind_proxy else settings.max_connections_per_address
        self.idle: OrderedDict[asyncio.BaseTransport, str] = OrderedDict()
        self._count: dict[str, int] = defaultdict(int)
        self._all = 0

    def add(self, transport: asyncio.BaseTransport, address: str) -> None:
        """Count a new connection. Beyond a bound the longest silent one is closed, or the new one when none is silent.

        Args:
            transport: the connection.
            address: the client's address.
        """
        self._all += 1
        self._count[address] += 1
        if self._count[address] > self.most_of_one:
            self._evict(transport, address)
        elif self._all > self.most:
            self._evict(transport, None)
        self.idle[transport] = address

    def _evict(self, newest: asyncio.BaseTransport, address: str | None) -> None:
        for transport, owner in self.idle.items():
            if not transport.is_closing() and (address is None or owner == address):
                transport.close()
                return
        newest.close()

    def remove(self, transport: asyncio.BaseTransport, address: str) -> None:
        """Forget a connection that has ended.

        Args:
            transport: the connection.
            address: the client's address.
        """
        self.idle.pop(transport, None)
        self._all -= 1
        self._count[address] -= 1
        if not self._count[address]:
            del self._count[address]


class JoinedWrites:
    """A transport that sends what is written in one turn of the event loop as one piece.

    uvicorn writes the head and the body of a response separately. Each write is a system call and wakes the client.

    Args:
        transport: the connection's transport; everything but writing is its own.
        loop: the event loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._pieces: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send `data` at the end of this turn."""
        if not self._pieces:
            self._loop.call_soon(self.flush)
        self._pieces.append(data)

    def flush(self) -> None:
        """Send what was written, now."""
        if self._pieces:
            joined = b"".join(self._pieces)
            self._pieces.clear()
            if not self._transport.is_closing():  # the client may have gone since
                self._transport.write(joined)

    def close(self) -> None:
        """Send what was written, then close."""
        self.flush()
        self._transport.close()


def bounded_protocol(settings: Settings) -> type[asyncio.Protocol]:
    """A protocol class for one process.

    It closes a connection whose request's head is not complete after `header_timeout_s` seconds or has more than 64 KiB, and keeps
    to `max_connections` and `max_connections_per_address`.
    """
    connections = Connections(settings)

    class BoundedProtocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _head_bytes = 0
        _in_head = True
        _address = "unknown"

        def connection_made(self, transport: Any) -> None:
            super().connection_made(JoinedWrites(transport, self.loop))  # type: ignore[arg-type]
            peer = transport.get_extra_info("peername")
            self._address = network_of(str(peer[0])) if peer else "unknown"
            connections.add(self.transport, self._address)
            self._arm()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head = True
            if self._timer is None:
                self._arm()

        def on_headers_complete(self) -> None:
            self._disarm()
            self._in_head = False
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            connections.idle.pop(self.transport, None)
            super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.transport.is_closing():
                connections.idle[self.transport] = self._address

        def data_received(self, data: bytes) -> None:
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > HEADER_BYTES + len(data):
                    self.transport.close()
                    return
            elif self.transport in connections.idle:
                connections.idle.move_to_end(self.transport)  # its body comes
            super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            connections.remove(self.transport, self._address)
            super().connection_lost(exc)

        def _arm(self) -> None:
            self._head_bytes = 0
            self._timer = self.loop.call_later(settings.header_timeout_s, self._too_slow)

        def _disarm(self) -> None:
            self._head_bytes = 0
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._timer = None
            if not self.transport.is_closing():
                self.transport.close()

    return BoundedProtocol
