"""A PostgreSQL server of the tests' own, which they may stop, kill and start again."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from pathlib import Path

import psycopg


def binaries() -> Path | None:
    """The folder of initdb and pg_ctl, the newest Debian version first."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    if debian:
        return debian[0]
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


class Cluster:
    """PostgreSQL refuses to run as root: root runs it as the packages' user `postgres`.

    With `address` it listens on that address too, for everybody who reaches it. `data` is a new folder for its files and its
    socket, whose path must be short.
    """

    def __init__(self, folder: Path, address: str = "", data: Path | None = None) -> None:
        self.folder, self.address = folder, address
        self.data = data or Path("/tmp") / f"qpeft-pg-{uuid.uuid4().hex[:8]}"
        self.data.mkdir(mode=0o700)
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.data, "postgres", "postgres")
        self._run("initdb", "-D", str(self.data / "db"), "-U", "qpeft", "--auth=trust", "--no-sync")
        if address:
            with (self.data / "db" / "pg_hba.conf").open("a") as rules:
                rules.write("host all all 0.0.0.0/0 trust\n")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.folder / program), *arguments]
        done = subprocess.run(
            command, user=self._user, group=self._user, extra_groups=[] if self._user else None, cwd=self.data,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    def start(self) -> None:
        options = f"-k {self.data} -c listen_addresses='{self.address}' -c max_connections=200"
        self._run("pg_ctl", "-D", str(self.data / "db"), "-w", "-l", str(self.data / "log"), "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """`immediate` is a crash: nothing is flushed, the next start recovers from the log."""
        self._run("pg_ctl", "-D", str(self.data / "db"), "-w", "-m", mode, "stop")

    def remove(self) -> None:
        shutil.rmtree(self.data)

    def running(self) -> bool:
        """Whether the server's process lives."""
        return (self.data / "db" / "postmaster.pid").exists()

    def ensure_running(self) -> None:
        """Start the server when a test left it stopped: one failure must not fell the tests after it."""
        if not self.running():
            self.start()

    def create(self) -> str:
        """The address of a new, empty database."""
        self.ensure_running()
        name = f"t{uuid.uuid4().hex[:12]}"
        with psycopg.connect(f"host={self.data} user=qpeft dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://qpeft@/{name}?host={self.address or self.data}"
