"""Real servers and workers as processes, to be used, stopped and killed by tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from qpeft.service.client import Client, Retries

START_S = 240  # a start takes a second, and minutes on a machine that many others use
CLI = [sys.executable, "-c", "import sys; sys.argv[0] = 'qpeft'; from qpeft.cli import service, main; main()"]


class Process:
    """A child whose output goes to a file."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as stream:
            self.popen = subprocess.Popen(
                command,
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.kill()
        self.popen.wait(20)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            return self.popen.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class Server:
    """`qpeft serve` on a free port, which it keeps when it is started again."""

    def __init__(
        self, folder: Path, *arguments: str, environment: dict[str, str] | None = None, devices: tuple[str, ...] = ("simulator",)
    ) -> None:
        self.folder, self.arguments, self.environment, self.devices = folder, arguments, environment or {}, devices
        self.key_file, self.data_dir, self.port = folder / "admin.key", folder / "data", 0
        self.process: Process | None = None
        self._open: list[Any] = []

    def start(self, wait: bool = True) -> Server:
        log = self.folder / "server.log"
        offset = log.stat().st_size if log.exists() else 0
        devices = [argument for name in self.devices for argument in ("--device", name)]
        command = [
            *CLI, "serve", "--port", str(self.port), "--data-dir", str(self.data_dir),
            "--admin-key-file", str(self.key_file), *devices, *self.arguments,
        ]  # fmt: skip
        self.process = Process(command, log, self.environment)
        deadline = time.monotonic() + START_S
        while self.port == 0:
            text = log.read_bytes()[offset:].decode()
            if "serving on" in text and "\n" in text.partition("serving on")[2]:
                self.port = int(text.partition("serving on ")[2].split("\n")[0].rsplit(":", 1)[1])
            assert self.process.popen.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.02)
        if wait:
            self.ready()
        return self

    def ready(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.02)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database_url(self) -> str:
        """The SQLAlchemy address of what the server stores in."""
        if "--database" in self.arguments:
            return self.arguments[self.arguments.index("--database") + 1]
        return f"sqlite:///{self.data_dir / 'service.sqlite'}"

    @property
    def key(self) -> str:
        return self.key_file.read_text().strip()

    def output(self) -> str:
        return (self.folder / "server.log").read_text()

    def client(self, key: str | None = None, total_s: float = 30.0) -> Client:
        made = Client(self.url, key or self.key, retries=Retries(request_s=20.0, total_s=total_s))
        self._open.append(made)
        return made

    def http(self, key: str | None = None) -> httpx.Client:
        """Plain HTTP with a key."""
        made = httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {key or self.key}"}, timeout=20)
        self._open.append(made)
        return made

    def closing(self, one: Any) -> None:
        """Close it with the server."""
        self._open.append(one)

    def new_key(self, user: str, *scopes: str, **limits: object) -> str:
        with self.client() as client:
            return str(client.create_key(user, scopes or ("submit", "read"), **limits)["key"])  # type: ignore[arg-type]

    def worker(
        self,
        key: str,
        name: str = "worker",
        devices: tuple[str, ...] = ("simulator",),
        worker_name: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> Process:
        """A worker process whose output goes to `{name}.log`; with `worker_name` it takes over from the one of that name."""
        arguments = json.dumps({"url": self.url, "devices": devices, "name": worker_name})
        return Process(
            [sys.executable, "-m", "qpeft.service.worker", arguments],
            self.folder / f"{name}.log",
            {**(environment or {}), "QPEFT_SERVICE_KEY": key},
        )

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        assert self.process is not None
        self.process.kill()

    def stop(self) -> int:
        assert self.process is not None
        return self.process.stop()

    def close(self) -> None:
        for one in self._open:
            one.close()
