"""A TLS proxy in front of the service that rewrites Host, as nginx does without `proxy_set_header Host`."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.loopback import Loopback


class HttpsProxy(Loopback):
    """`with HttpsProxy(port, folder) as proxy:` speaks https at `proxy.url` and passes everything on to `port`, piece by piece.

    The service sees the host `internal.example`; with `forwarded` the browser's host comes in `X-Forwarded-Host`.
    """

    def __init__(self, port: int, folder: Path, forwarded: bool = True) -> None:
        self.port, self.forwarded = port, forwarded
        certificate, key = folder / "proxy.pem", folder / "proxy.key"
        command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {certificate}"
        subprocess.run(command.split(), check=True, capture_output=True)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # browsers close connections when they like
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    proxy: HttpsProxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        headers |= {"Host": "internal.example", "X-Forwarded-Proto": "https", "X-Forwarded-For": "127.0.0.1"}
        if self.proxy.forwarded:
            headers["X-Forwarded-Host"] = self.headers["host"]
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=60)) as upstream:
            self._answer(upstream, body, headers)

    def _answer(self, upstream: http.client.HTTPConnection, body: bytes, headers: dict[str, str]) -> None:
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()
        while piece := answer.read1(65536):
            self.wfile.write(piece)
            self.wfile.flush()

    do_GET = do_POST = _pass_on

    def log_message(self, *_: object) -> None:
        pass
