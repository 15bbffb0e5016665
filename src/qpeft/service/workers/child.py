"""The process that runs circuits: it has the devices, reads requests from a socket and writes what became of each job.

It knows no key and no service. Native code may hold its interpreter for as long as it likes; the worker, its parent, goes on
telling the service that it lives, and ends this process when a job is cancelled or runs too long.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from collections import deque
from multiprocessing.connection import Connection

import msgspec

from qpeft.backends.registry import get_backend
from qpeft.errors import QpeftError
from qpeft.service.logs import configure
from qpeft.service.workers.device import Device
from qpeft.service.workers.messages import Calibration, DeviceInfo, FinishedJob, LeasedJob, LeasedProgram

PR_SET_PDEATHSIG = 1


class RunRequest(msgspec.Struct):
    """Jobs to run on one device. `chip` is the chip file of `calibration`, when the process does not have it yet."""

    device: str
    calibration: str | None
    chip: bytes | None
    jobs: list[LeasedJob]
    programs: dict[str, LeasedProgram]
    max_result_bytes: int
    one_by_one: bool = False
    """Run every job by itself."""


class Reply(msgspec.Struct, omit_defaults=True):
    """Replies of the process, in this order: `devices` or `error` once at its start; then for each request jobs that are `started`
    together, those that are `finished`, and `done` at the end."""

    devices: list[tuple[DeviceInfo, Calibration | None]] | None = None
    error: str = ""
    started: list[int] = msgspec.field(default_factory=list)
    places: list[tuple[int, list[int]]] = msgspec.field(default_factory=list)
    """The chip's qubits of each job that is started."""
    finished: list[FinishedJob] = msgspec.field(default_factory=list)
    done: bool = False


encode = msgspec.msgpack.Encoder().encode
_REQUEST = msgspec.msgpack.Decoder(RunRequest)


def serve(connection: Connection, names: list[str]) -> None:
    """Open the devices, then run requests until the connection ends.

    Args:
        connection: the connection to the parent.
        names: names of the devices.
    """

    def tell(reply: Reply) -> None:
        connection.send_bytes(encode(reply))

    try:
        devices = {name: Device(name, get_backend(name)) for name in names}
        told = [(device.info(), device.calibration()) for device in devices.values()]
    except QpeftError as error:
        tell(Reply(error=str(error)))
        return
    tell(Reply(devices=told))
    while True:
        try:
            request = _REQUEST.decode(connection.recv_bytes())
        except EOFError:
            return
        device = devices[request.device]
        chip = request.chip or b""
        device.max_result_bytes = request.max_result_bytes
        device.recalibrate(request.calibration, lambda _, chip=chip: chip)  # type: ignore[misc]
        pieces = deque(device.pieces(request.jobs, request.one_by_one))
        while pieces:
            piece = pieces.popleft()
            tell(Reply(started=[job.seq for job in piece.jobs], places=device.places(piece, request.programs)))
            finished = device.run_piece(piece, request.programs)
            if finished:
                tell(Reply(finished=finished))
            pieces.extendleft(reversed(piece.rest(finished)))
        tell(Reply(done=True))


def main(descriptor: int, parent: int, names: list[str]) -> None:
    """Main function of the process. It ends when its parent ends, and leaves signals to the parent.

    Args:
        descriptor: file descriptor of the socket to the parent.
        parent: process id of the parent.
        names: names of the devices.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    configure()
    with contextlib.suppress(BrokenPipeError):
        serve(Connection(descriptor), names)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
