"""A worker's side of the process that runs its circuits (child.py): watched, ended when it has to be, and started again."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import msgspec

from qpeft.backends.vendors.remote import ENV_KEY
from qpeft.errors import ServiceError
from qpeft.service.workers.child import Reply, RunRequest, encode
from qpeft.service.workers.context import WorkerContext, failed, released, slow
from qpeft.service.workers.messages import Calibration, DeviceInfo, FinishedJob, LeaseAnswer, LeasedJob

log = logging.getLogger("qpeft.service.worker")
CHUNK = 64  # jobs sent to the process at once
LOOK_S = 0.1  # between two looks at whether what runs has to end
PATIENCE_S = 1.0  # a cancelled job that ends by itself within this costs no process
GOODBYE_S = 10.0  # what still runs so long after the worker was told to stop goes back
START_S = 120.0
QUICK_S = 3.0  # of an interactive job that runs while a long one does
_REPLY = msgspec.msgpack.Decoder(Reply)


class ExecutorProcess:
    """The process with all devices of a worker.

    Args:
        names: the devices' backends. Raises ServiceError with the reason when one cannot be opened.
        like: a process with the same devices; this one starts when it is needed.
        quick_s: for interactive jobs: seconds after which a job goes back to the queue's bulk lane.
    """

    def __init__(self, names: Sequence[str], like: ExecutorProcess | None = None, quick_s: float | None = None) -> None:
        self.names, self.quick_s = list(names), quick_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._chips: dict[str, str] = {}
        self._stop_since: float | None = None
        self.devices: dict[str, tuple[DeviceInfo, Calibration | None]]
        self.devices = dict(zip(self.names, self._start(), strict=True)) if like is None else like.devices

    def _start(self) -> list[tuple[DeviceInfo, Calibration | None]]:
        ours, theirs = Pipe()
        environment = {name: value for name, value in os.environ.items() if name != ENV_KEY}
        arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps(self.names)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qpeft.service.workers.child", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        self._connection, self._chips = ours, {}
        reply = _REPLY.decode(ours.recv_bytes()) if ours.poll(START_S) else Reply(error="it did not start in time")
        if reply.devices is None:
            self.close()
            raise ServiceError("the devices cannot be opened", status=0, value=", ".join(self.names), hint=reply.error)
        return reply.devices

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def run(
        self, device: str, lease: LeaseAnswer, jobs: Sequence[LeasedJob], context: WorkerContext, one_by_one: bool = False
    ) -> Iterator[list[FinishedJob]]:
        """Run jobs of a lease. If the process dies, only its running job fails.

        Args:
            device: name of the device.
            lease: the lease, with the programs.
            jobs: jobs of the lease.
            context: the worker.
            one_by_one: run no jobs together.

        Yields:
            Outcomes of jobs, as they end.
        """
        waiting = {job.seq: job for job in jobs}
        while waiting:
            current: list[LeasedJob] = []
            since = time.monotonic()
            try:
                self._send(device, lease, list(waiting.values()), context, one_by_one)
                while True:
                    reply = self._receive()
                    if reply is None:
                        verdict = self._verdict(current, time.monotonic() - since, context)
                        if verdict is None:
                            continue
                        break
                    if reply.started:
                        if self.quick_s is None:
                            context.occupy(reply.places)
                        current, since = [waiting[seq] for seq in reply.started if seq in waiting], time.monotonic()
                    if reply.finished:
                        for one in reply.finished:
                            waiting.pop(one.seq, None)
                        current = []
                        yield reply.finished
                    if reply.done:
                        return
            except (EOFError, OSError):
                status = self._process.wait() if self._process is not None else None
                verdict = f"the process that ran it ended with status {status}"
                log.error("%s: jobs %s", verdict, [job.seq for job in current])
                if len(current) <= 1:
                    yield [released(job, verdict) for job in current]
                    for job in current:
                        del waiting[job.seq]
                one_by_one = True
                self.close()
                continue
            self.close()
            seconds = time.monotonic() - since
            if verdict == "stop":
                yield [released(job) for job in waiting.values()]
                return
            if verdict == "slow":
                users = {job.owner for job in current}
                yield [slow(job, seconds / len(current)) for job in current]
                for job in current:
                    del waiting[job.seq]
                back = [job for job in waiting.values() if job.owner in users]  # they would cost others as long again
                yield [released(job) for job in back]
                for job in back:
                    del waiting[job.seq]
                continue
            if len(current) > 1 and verdict == "limit":
                one_by_one = True  # one of them takes too long: each by itself shows which
                continue
            reason = "cancelled" if verdict == "cancelled" else f"cut off after {seconds:.0f} s, bound {context.max_job_s:g} s"
            yield [failed(job, reason, seconds / len(current)) for job in current]
            for job in current:
                del waiting[job.seq]

    def _send(self, device: str, lease: LeaseAnswer, jobs: list[LeasedJob], context: WorkerContext, one_by_one: bool) -> None:
        if self._connection is None:
            self._start()
        assert self._connection is not None
        own = self.devices[device][1]
        chip = None
        if lease.calibration is not None and lease.calibration not in (own.id if own else None, self._chips.get(device)):
            chip = context.calibration(device, lease.calibration)
        self._chips[device] = lease.calibration or ""
        request = RunRequest(device, lease.calibration, chip, jobs, lease.programs, context.max_result_bytes, one_by_one)
        self._connection.send_bytes(encode(request))

    def _receive(self) -> Reply | None:
        """The next reply, None when there was none for a moment; EOFError when the process has died."""
        assert self._connection is not None
        return _REPLY.decode(self._connection.recv_bytes()) if self._connection.poll(LOOK_S) else None

    def _verdict(self, current: Sequence[LeasedJob], seconds: float, context: WorkerContext) -> str | None:
        """Why what has run for so long must end now: "limit", "slow", "cancelled", "stop", or None."""
        if context.stopping():
            self._stop_since = self._stop_since or time.monotonic()
            if time.monotonic() - self._stop_since > GOODBYE_S:
                return "stop"
        if current and seconds > context.max_job_s:
            return "limit"
        if current and self.quick_s is not None and seconds > self.quick_s:
            return "slow"
        if current and seconds > PATIENCE_S and not context.still_held(current):
            return "cancelled"
        return None


class ChildDevice:
    """One device of an ExecutorProcess."""

    def __init__(self, name: str, process: ExecutorProcess) -> None:
        self.name, self.process = name, process

    def info(self) -> DeviceInfo:
        """Limits and cost model that the process reported at its start."""
        return self.process.devices[self.name][0]

    def calibration(self) -> Calibration | None:
        """Calibration of the device; an administrator's calibration has priority."""
        return self.process.devices[self.name][1]

    def run(self, lease: LeaseAnswer, context: WorkerContext) -> Iterator[list[FinishedJob]]:
        """See `LeasedDevice.run`: the jobs run in chunks, so that what is cancelled meanwhile is left out."""
        for start in range(0, len(lease.jobs), CHUNK):
            jobs = context.still_held(lease.jobs[start : start + CHUNK])
            if jobs and context.stopping():
                yield [released(job) for job in jobs]
            elif jobs:
                yield from self.process.run(self.name, lease, jobs, context)


def open_devices(names: Sequence[str]) -> list[ChildDevice]:
    """Devices that run in one process of their own."""
    process = ExecutorProcess(names)
    return [ChildDevice(name, process) for name in names]


def open_quick(devices: Sequence[object]) -> list[ChildDevice]:
    """The same devices in another process, for interactive jobs while a long one runs; none of a vendor's."""
    children = [device for device in devices if isinstance(device, ChildDevice)]
    if not children:
        return []
    process = ExecutorProcess([device.name for device in children], like=children[0].process, quick_s=QUICK_S)
    return [ChildDevice(device.name, process) for device in children]


def close_devices(devices: Sequence[object]) -> None:
    """End the processes of those that have one."""
    for process in {id(one.process): one.process for one in devices if isinstance(one, ChildDevice)}.values():
        with contextlib.suppress(OSError):
            process.close()
