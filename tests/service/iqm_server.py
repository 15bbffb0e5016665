"""A task service with two emulated chips, as clients of IQM's server see it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.service.checks import until
from tests.service.processes import Server


@contextlib.contextmanager
def iqm_server(folder: Path) -> Iterator[Server]:
    """A server that lists its two chips, up for as long as it is entered."""
    server = Server(folder, devices=("simulator", "emulator:wukong-72", "emulator:wukong-180")).start()
    try:
        with server.http() as http:
            until(lambda: len(http.get("/api/v1/quantum-computers").json()["quantum_computers"]) == 2, 60)
        yield server
    finally:
        server.close()
        server.stop()
