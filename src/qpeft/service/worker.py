"""A worker process: `qpeft worker`, and the children of `qpeft serve`. It loads neither the database nor the settings."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Sequence

from qpeft.backends.registry import get_backend, is_origin_chip
from qpeft.backends.vendors.remote import Connection, Retries
from qpeft.errors import QpeftError, ServiceError
from qpeft.service.logs import configure
from qpeft.service.vendor.forwarder import open_vendor, vendor_client
from qpeft.service.workers.context import LeasedDevice
from qpeft.service.workers.executor import close_devices, open_devices, open_quick
from qpeft.service.workers.loop import Worker

log = logging.getLogger("qpeft.service.worker")


def open_all(names: Sequence[str]) -> Sequence[LeasedDevice]:
    """Devices by their backends' names; the error of the registry says what is missing.

    A vendor's device comes alone: it waits for the vendor, and nothing else may wait with it.
    """
    vendors = [name for name in names if is_origin_chip(name)]
    if vendors and len(names) > 1:
        raise ServiceError("a vendor's device needs a worker of its own", status=0, value=", ".join(names), bound=vendors[0])
    return [open_vendor(vendors[0])] if vendors else open_devices(names)


def run_worker(
    url: str | None,
    key: str | None,
    devices: Sequence[str],
    max_jobs: int = 256,
    parent: int | None = None,
    name: str | None = None,
    pinned_cert: str | None = None,
) -> None:
    """Work for the service at `url` until SIGINT or SIGTERM.

    Args:
        url: the service's address; None takes it from QPEFT_SERVICE_URL.
        key: of scope `worker`; None takes it from QPEFT_SERVICE_KEY.
        devices: backends by name.
        max_jobs: taken at once.
        parent: process id; the worker ends with that process.
        name: the worker takes over from the one that had this name before.
        pinned_cert: file of the service's own certificate, for workers that the service itself starts.
    """
    configure()
    connection = Connection(url, key, Retries(request_s=30.0, total_s=0.0), pinned_cert=pinned_cert)
    opened = open_all(devices)
    quick = open_quick(opened)
    worker = Worker(connection, opened, quick, name=name, max_jobs=max_jobs, parent=parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: worker.stop())
    try:
        worker.run()
    finally:
        close_devices([*opened, *quick])


def check(names: Sequence[str]) -> None:
    """Open devices of this machine, and look for a vendor's key and package. Raises QpeftError with the reason."""
    for name in names:
        vendor_client() if is_origin_chip(name) else get_backend(name)


def main(arguments: Sequence[str]) -> int:
    """Exit status of a child of the server, whose key is in the environment: `--check DEVICE...`, or settings as JSON."""
    checking = arguments[0] == "--check"
    try:
        check(arguments[1:]) if checking else run_worker(key=None, **json.loads(arguments[0]))
    except (QpeftError, OSError) as error:
        print(error, file=sys.stderr) if checking else log.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
