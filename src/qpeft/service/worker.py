"""A worker process: `qpeft worker`, and the children of `qpeft serve`. It loads neither the database nor the settings."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence

from qpeft.backends.registry import get_backend, is_origin_chip
from qpeft.backends.vendors.remote import Connection, Retries
from qpeft.errors import ServiceError
from qpeft.service.logs import configure
from qpeft.service.vendor.forwarder import Forwarder, open_vendor
from qpeft.service.workers.device import Device
from qpeft.service.workers.loop import Worker


def open_devices(names: Sequence[str]) -> list[Device | Forwarder]:
    """Devices by their backends' names; the error of the registry says what is missing. A vendor's device comes alone: it waits for
    the vendor, and nothing else may wait with it."""
    vendors = [name for name in names if is_origin_chip(name)]
    if vendors and len(names) > 1:
        raise ServiceError("a vendor's device needs a worker of its own", status=0, value=", ".join(names), bound=vendors[0])
    return [open_vendor(vendors[0])] if vendors else [Device(name, get_backend(name)) for name in names]


def run_worker(
    url: str | None,
    key: str | None,
    devices: Sequence[str],
    max_jobs: int = 256,
    parent: int | None = None,
    name: str | None = None,
) -> None:
    """Work for the service at `url` until SIGINT or SIGTERM."""
    configure()
    connection = Connection(url, key, Retries(request_s=30.0, total_s=0.0))
    worker = Worker(connection, open_devices(devices), name=name, max_jobs=max_jobs, parent=parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: worker.stop())
    worker.run()


def wait_for(url: str, timeout_s: float = 60.0) -> None:
    """Until the service at `url` is ready; ServiceError when it is not in time."""
    import httpx

    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if httpx.get(f"{url}/readyz", timeout=5.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            raise ServiceError(f"the service at {url} did not become ready", status=0, bound=f"{timeout_s:g} s")
        time.sleep(0.05)


if __name__ == "__main__":  # a child of the server; its key is in the environment
    run_worker(key=None, **json.loads(sys.argv[1]))
