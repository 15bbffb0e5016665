"""Debian's Firefox, driven by WebDriver BiDi, which it speaks itself: Playwright drives a Firefox of its own only."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit


def firefox_path() -> str | None:
    """Firefox's program, where there is one."""
    return shutil.which("firefox-esr") or shutil.which("firefox")


class Firefox:
    """A headless Firefox with one page. `faults` are console errors, uncaught exceptions and requests that leave `host`.

    Args:
        program: Firefox's program.
        folder: for the profile and the log.
        base_url: of the site that is looked at.
    """

    def __init__(self, program: str, folder: Path, base_url: str) -> None:
        self.base_url, self.host = base_url, urlsplit(base_url).netloc
        self.faults: list[str] = []
        self._log, self._n = folder / "firefox.log", 0
        self._command = [program, "--headless", "--no-remote", "--profile", str(folder), "--remote-debugging-port", "0"]
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Firefox:
        with contextlib.ExitStack() as opened:
            self._enter(opened)
            self._closing = opened.pop_all()
        return self

    def _enter(self, opened: contextlib.ExitStack) -> None:
        from websockets.sync.client import connect

        stream = opened.enter_context(self._log.open("wb"))
        self._process = opened.enter_context(subprocess.Popen(self._command, stdout=stream, stderr=stream))
        opened.callback(self._process.terminate)
        self._socket = opened.enter_context(connect(f"{self._address()}/session", max_size=None))
        self.ask("session.new", capabilities={})
        self.ask("session.subscribe", events=["log.entryAdded", "network.beforeRequestSent"])
        self.context = self.ask("browsingContext.getTree")["contexts"][0]["context"]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.close()

    def _address(self) -> str:
        deadline = time.monotonic() + 120
        while "listening on ws://" not in (text := self._log.read_text(errors="replace")):
            assert self._process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.1)
        return "ws://" + text.partition("listening on ws://")[2].split()[0].rstrip("/")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a BiDi command; events that come before it are noted."""
        self._n += 1
        self._socket.send(json.dumps({"id": self._n, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._n:
                assert message["type"] == "success", message
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "log.entryAdded" and params["level"] in ("error", "warn"):
            self.faults.append(f"console: {params['text']}")
        if message.get("method") == "network.beforeRequestSent":
            address = urlsplit(params["request"]["url"])
            if address.scheme in ("http", "https") and address.netloc != self.host:
                self.faults.append(f"left the host: {address.geturl()}")

    def open(self, path: str) -> None:
        """Load a page of the site."""
        self.ask("browsingContext.navigate", context=self.context, url=self.base_url + path, wait="complete")

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript, if it is a text, a number or true or false."""
        result = self.ask("script.evaluate", expression=script, target={"context": self.context}, awaitPromise=True)
        assert result["type"] == "success", result
        return result["result"].get("value")

    def until(self, script: str, seconds: float = 30.0) -> None:
        """Wait until an expression of JavaScript is true."""
        deadline = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < deadline, f"{script}: {self.run('document.body.innerText')}"
            time.sleep(0.1)

    def size(self, width: int, height: int) -> None:
        """Set the window's size in CSS pixels."""
        self.ask("browsingContext.setViewport", context=self.context, viewport={"width": width, "height": height})

    def screenshot(self, file: Path) -> None:
        """Write the whole page as PNG."""
        shot = self.ask("browsingContext.captureScreenshot", context=self.context, origin="document")
        file.write_bytes(base64.b64decode(shot["data"]))
