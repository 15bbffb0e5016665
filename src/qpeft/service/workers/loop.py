"""A worker: leases jobs, runs them, hands results in. It knows the service by HTTP alone and may run on any machine.

Three threads: one asks for the next lease while the present one runs, one hands results in, one says that the worker lives. The
main thread runs circuits. What is held is known to all three, since each lease request tells it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from qpeft.backends.vendors.remote import Connection
from qpeft.errors import ServiceError
from qpeft.service.messages import pack
from qpeft.service.processes import end_with
from qpeft.service.workers.context import LeasedDevice
from qpeft.service.workers.messages import (
    CalibrationRequest,
    CompleteRequest,
    FinishedJob,
    HeartbeatRequest,
    HelloRequest,
    LeaseAnswer,
    LeasedJob,
    LeaseRequest,
)

log = logging.getLogger("qpeft.service.worker")
MSGPACK = "application/msgpack"
WAIT_S = 20.0
GOODBYE_S = 20.0
RETRY_S = 0.25
LOOK_S = 0.2  # between two looks at whether a thread has failed
T = TypeVar("T")


class Worker:
    """`run()` until `stop()`. `parent` is a process that the worker ends with.

    A worker with a `name` takes over from the one that had it before: it says that there is no other, so that jobs of a
    predecessor that was killed go back to the queue at once instead of after `lease_s`.
    """

    def __init__(
        self,
        connection: Connection,
        devices: Sequence[LeasedDevice],
        *,
        name: str | None = None,
        max_jobs: int = 256,
        parent: int | None = None,
    ) -> None:
        self.connection, self.max_jobs, self.parent = connection, max_jobs, parent
        self.devices = {device.name: device for device in devices}
        self.name, self.named = name or f"{socket.gethostname()}:{os.getpid()}", name is not None
        self.worker, self.lease_s = "", 15.0
        self._lock = threading.Lock()
        self._holding: dict[int, int] = {}
        self._dropped: set[int] = set()
        self._leases: queue.Queue[LeaseAnswer | None] = queue.Queue(maxsize=1)
        self._ended: queue.Queue[CompleteRequest | None] = queue.Queue(maxsize=4)
        self._stopping, self._stopped_at = threading.Event(), time.monotonic()
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Finish what runs, give back what does not, end; within `GOODBYE_S` when the service is gone."""
        self._stopped_at = time.monotonic()
        self._stopping.set()

    def run(self) -> None:
        if self.parent is not None:
            end_with(self.parent)
        self._hello()
        targets = (self._ask_for_leases, self._hand_in, self._live)
        threads = [threading.Thread(target=self._guarded, args=(target,), daemon=True) for target in targets]
        for thread in threads:
            thread.start()
        while (lease := self._next_lease()) is not None:
            self._run_lease(lease)
            with self._lock:
                self._dropped.difference_update(job.seq for job in lease.jobs if job.seq not in self._holding)
        self._offer(None)
        while threads[1].is_alive() and self._failure is None:
            threads[1].join(LOOK_S)
        if self._failure is not None:
            raise self._failure

    def _next_lease(self) -> LeaseAnswer | None:
        """The next lease; None when the worker has to end."""
        while self._failure is None:
            with contextlib.suppress(queue.Empty):
                return self._leases.get(timeout=LOOK_S)
        return None

    def _offer(self, ended: CompleteRequest | None) -> None:
        """To the thread that hands results in; dropped once a thread has failed, or this one would wait for ever."""
        while self._failure is None:
            with contextlib.suppress(queue.Full):
                self._ended.put(ended, timeout=LOOK_S)
                return

    def _guarded(self, target: Any) -> None:
        try:
            target()
        except BaseException as error:
            self._failure = error
            self._stopping.set()

    def call(self, path: str, content: Any, kind: type[T], wait_s: float = 0.0) -> T:
        """One call of the protocol, repeated until the service answers; ServiceError for a refusal."""
        while True:
            try:
                response = self.connection.request(
                    "POST", f"/v1/worker/{path}", content=pack(content), content_type=MSGPACK, wait_s=wait_s
                )
                return msgspec.msgpack.decode(response.content, type=kind)
            except ServiceError as error:
                if error.status != 0 and error.status < 500 and error.status != 429:
                    raise
                log.warning("%s", error)
                if self._stopping.wait(RETRY_S) and (path == "lease" or time.monotonic() > self._stopped_at + GOODBYE_S):
                    raise

    def _hello(self) -> None:
        calibrations = [found for device in self.devices.values() if (found := device.calibration()) is not None]
        info = {name: device.info() for name, device in self.devices.items()}
        request = HelloRequest(
            name=self.name[:128], takes_over=self.named, devices=list(self.devices), info=info, calibrations=calibrations
        )
        answer = self.call("hello", request, dict[str, Any])
        with self._lock:
            self.worker, self.lease_s = answer["worker"], float(answer["lease_s"])
            self._dropped.update(self._holding)
            self._holding.clear()
        log.info("worker %s runs %s", self.worker, ", ".join(self.devices))

    def _register_again(self, error: ServiceError) -> None:
        if error.code != "worker_lost":
            raise error
        log.warning("the service had given this worker up; it starts anew")
        self._hello()

    def _ask_for_leases(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                holding = list(self._holding.items())
                worker = self.worker
            request = LeaseRequest(
                worker=worker,
                devices=list(self.devices),
                holding=holding,
                max_jobs=self.max_jobs,
                wait_s=min(WAIT_S, self.lease_s / 2),
            )
            try:
                lease = self.call("lease", request, LeaseAnswer, request.wait_s)
            except ServiceError as error:
                if self._stopping.is_set():
                    break
                self._register_again(error)
                continue
            with self._lock:
                self._dropped.update(self._holding.keys() & lease.drop)  # others have ended since it was asked
                self._holding.update((job.seq, job.attempt) for job in lease.jobs)
                self._dropped.difference_update(job.seq for job in lease.jobs)
            if lease.jobs:
                self._leases.put(lease)
        self._leases.put(None)

    def _run_lease(self, lease: LeaseAnswer) -> None:
        assert lease.device is not None
        device = self.devices[lease.device]
        for finished in device.run(lease, self):
            self._finish(device.name, lease.jobs, finished)

    def _finish(self, device: str, jobs: Sequence[LeasedJob], ended: list[FinishedJob]) -> None:
        seqs = {one.seq for one in ended}
        estimate_s = sum(job.estimate_s for job in jobs if job.seq in seqs)
        self._offer(CompleteRequest(worker=self.worker, device=device, estimate_s=estimate_s, jobs=ended))

    def stopping(self) -> bool:
        """True once the worker is to end."""
        return self._stopping.is_set()

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than until the worker is to stop."""
        self._stopping.wait(seconds)

    def calibration(self, device: str, name: str) -> bytes:
        """The chip file of a calibration that the service has stored."""
        request = CalibrationRequest(device=device, id=name)
        return bytes(self.call("calibration", request, dict[str, Any])["data"])

    def still_held(self, jobs: Sequence[LeasedJob]) -> list[LeasedJob]:
        """Those that are this worker's still and are not being cancelled."""
        with self._lock:
            for job in jobs:
                if job.seq in self._dropped:
                    self._holding.pop(job.seq, None)
            return [job for job in jobs if job.seq not in self._dropped]

    def _hand_in(self) -> None:
        while (request := self._ended.get()) is not None:
            jobs = list(request.jobs)
            while len(jobs) < 4096 and not self._ended.empty():
                more = self._ended.queue[0]
                if more is None or (more.worker, more.device) != (request.worker, request.device):
                    break
                following = self._ended.get()
                assert following is not None
                jobs += following.jobs
                request.estimate_s += following.estimate_s
            request.jobs = jobs
            try:
                self.call("complete", request, dict[str, Any])
            except ServiceError as error:
                self._register_again(error)
            with self._lock:
                for job in jobs:
                    self._holding.pop(job.seq, None)
                    self._dropped.discard(job.seq)

    def _live(self) -> None:
        while not self._stopping.wait(min(2.0, self.lease_s / 4)):
            with self._lock:
                request = HeartbeatRequest(worker=self.worker, holding=list(self._holding.items()))
            try:
                answer = self.call("heartbeat", request, dict[str, Any])
            except ServiceError as error:
                if error.code == "worker_lost":
                    continue  # the thread that leases registers again
                raise
            with self._lock:
                self._dropped.update(self._holding.keys() & answer["drop"])
