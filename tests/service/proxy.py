"""A proxy between a worker or client and the service: it stops the world at an exact point of a call."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.loopback import Loopback


class Proxy(Loopback):
    """`with Proxy(port) as proxy:` passes everything on to `port` of this machine.

    `before[path] = f` calls `f()` once when a request for the path has arrived, before the service sees it; `after[path] = f` once
    when the service has answered, before the answer goes on. The connection is then closed: who asked gets no answer.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[], object]] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # those who ask are killed on purpose


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if (act := self.proxy.before.pop(self.path, None)) is not None:
            act()
            return self._drop()
        try:
            upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=60)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
        except (OSError, http.client.HTTPException):
            return self._drop()
        if (act := self.proxy.after.pop(self.path, None)) is not None:
            act()
            return self._drop()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        return None

    do_GET = do_POST = do_DELETE = _pass_on

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Tests print nothing."""
