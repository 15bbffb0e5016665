"""A page under watch: what its console says, and where its requests go."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit


class Watched:
    """A Playwright page; `faults` are console errors, uncaught exceptions and requests that leave the host."""

    def __init__(self, context: Any, base_url: str) -> None:
        self.context, self.host = context, urlsplit(base_url).netloc
        self.faults: list[str] = []
        self.expected: tuple[str, ...] = ()
        """Parts of console messages that the test provokes, such as "404"."""
        context.set_default_timeout(15_000)
        self.page = context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.faults.append(f"uncaught: {error}"))
        context.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and not any(part in message.text for part in self.expected):
            self.faults.append(f"console: {message.text} at {message.location.get('url')}")

    def _request(self, request: Any) -> None:
        address = urlsplit(request.url)
        if address.scheme in ("http", "https", "ws", "wss") and address.netloc != self.host:
            self.faults.append(f"left the host: {request.url}")

    def log_in(self, key: str) -> Any:
        """Through the login form; the page that it leads to."""
        self.page.goto("/login")
        self.page.fill("input[name=key]", key)
        self.page.click("main form[action='/login'] button")
        self.page.wait_for_url("**/")
        return self.page

    def close(self) -> None:
        self.context.close()
