"""The loop of a worker: leases jobs, has them run, hands results in. It knows the service by HTTP alone, on any machine.

Threads: one asks for the next lease while the present one runs, one hands results in, one says that the worker lives. The main
thread waits for the process that runs circuits. While that has a long job, one more runs interactive jobs in a second process. What
is held is known to all, since each lease request tells it. Only a refused key ends a worker; every other refusal costs at most the
job that it is about.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from qpeft.backends.vendors.remote import Connection
from qpeft.errors import ServiceError
from qpeft.service.messages import pack
from qpeft.service.processes import end_with
from qpeft.service.workers.context import LeasedDevice, failed
from qpeft.service.workers.messages import (
    CalibrationRequest,
    CompleteRequest,
    FinishedJob,
    HeartbeatRequest,
    HelloAnswer,
    HelloRequest,
    LeaseAnswer,
    LeasedJob,
    LeaseRequest,
)

log = logging.getLogger("qpeft.service.worker")
MSGPACK = "application/msgpack"
WAIT_S = 20.0
GOODBYE_S = 20.0
RETRY_S, LONGEST_RETRY_S = 0.25, 5.0
LONG_S, LATE_S = 0.5, 1.0  # a lease is estimated, or a job turns out, to take longer: interactive jobs run at the same time
QUICK_JOBS = 16  # a lease in reserve with more is bulk work, which may wait
POLL_S, LONGEST_POLL_S = 0.25, 5.0  # of asking for interactive jobs; a tenth of the time that the long job has run
PLACES_S = 0.25  # how long a circuit occupies qubits before the service is told at once
MAX_PLACES = 256
LOOK_S = 0.2  # between two looks at whether a thread has failed
COMPLETE_JOBS, COMPLETE_BYTES = 4096, 4 << 20  # of one request that hands results in; one job may be larger
ENVELOPE_BYTES = 1 << 14  # of a result around its numbers or counts: names, and the chip's qubits
T = TypeVar("T")


class Worker:
    """`run()` until `stop()`.

    Args:
        connection: to the service, with a key of scope `worker`.
        devices: what runs jobs.
        quick: what runs interactive jobs while a long one runs; none of a vendor's devices.
        name: the worker takes over from the one that had this name before, so that jobs of a predecessor that was killed go back
            to the queue at once instead of after `lease_s` seconds. It does so once, at its start.
        max_jobs: taken at once.
        parent: process id; the worker ends with that process.
    """

    def __init__(
        self,
        connection: Connection,
        devices: Sequence[LeasedDevice],
        quick: Sequence[LeasedDevice] = (),
        *,
        name: str | None = None,
        max_jobs: int = 256,
        parent: int | None = None,
    ) -> None:
        self.connection, self.max_jobs, self.parent = connection, max_jobs, parent
        self.devices = {device.name: device for device in devices}
        self.quick = {device.name: device for device in quick}
        self.name, self._takes_over = name or f"{socket.gethostname()}:{os.getpid()}", name is not None
        self.worker, self.lease_s, self.max_job_s, self.max_result_bytes = "", 15.0, 600.0, 64 << 20
        self._lock = threading.Lock()
        self._holding: dict[int, int] = {}
        self._dropped: set[int] = set()
        self._places: dict[int, list[int]] = {}
        self._leases: queue.Queue[LeaseAnswer | None] = queue.Queue(maxsize=1)
        self._quick_leases: queue.Queue[LeaseAnswer] = queue.Queue(maxsize=1)
        self._since: float | None = None
        """When the main thread's job began."""
        self._long = False
        """The main thread's lease is estimated to take long."""
        self._ended: queue.Queue[CompleteRequest | None] = queue.Queue(maxsize=4)
        self._no_more = threading.Event()
        self._stopping, self._stopped_at = threading.Event(), 0.0
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Finish what runs, give back what does not, end; within `GOODBYE_S` when the service is gone."""
        self._stopped_at = self._stopped_at or time.monotonic()
        self._stopping.set()

    def run(self) -> None:
        """Work until `stop()`; raises ServiceError when the key is refused."""
        if self.parent is not None:
            end_with(self.parent)
        self._hello()
        targets = (self._ask_for_leases, self._hand_in, self._live, self._run_quick)
        threads = [threading.Thread(target=self._guarded, args=(target,), daemon=True) for target in targets]
        for thread in threads:
            thread.start()
        while (lease := self._next_lease()) is not None:
            self._since, self._long = time.monotonic(), _is_long(lease)
            self._run_lease(lease, self.devices)
            self._since, self._long = None, False
            self.occupy(())
        while threads[3].is_alive() and self._failure is None:
            threads[3].join(LOOK_S)
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

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:
            self._failure = error
            self.stop()

    def call(self, path: str, content: Any, kind: type[T], wait_s: float = 0.0) -> T:
        """See `WorkerContext.call`. The delay between tries grows.

        Args:
            path: last part of the path.
            content: the request, encoded as MessagePack.
            kind: type of the answer.
            wait_s: seconds that the service may hold the answer.

        Raises:
            ServiceError: the service refused.
        """
        body, delay = pack(content), RETRY_S
        while True:
            try:
                response = self.connection.request(
                    "POST", f"/v1/worker/{path}", content=body, content_type=MSGPACK, wait_s=wait_s, retry=False
                )
                return msgspec.msgpack.decode(response.content, type=kind)
            except ServiceError as error:
                if error.status != 0 and error.status < 500 and error.status != 429:
                    raise
                log.warning("%s; trying again in %.2g s", error, delay)
                if self._stopping.is_set() and (path == "lease" or time.monotonic() > self._stopped_at + GOODBYE_S):
                    raise
                time.sleep(delay * random.uniform(0.75, 1.25))
                delay = min(2 * delay, LONGEST_RETRY_S)

    def _hello(self) -> None:
        calibrations = [found for device in self.devices.values() if (found := device.calibration()) is not None]
        info = {name: device.info() for name, device in self.devices.items()}
        request = HelloRequest(
            name=self.name[:128], takes_over=self._takes_over, devices=list(self.devices), info=info, calibrations=calibrations
        )
        answer = self.call("hello", request, HelloAnswer)
        with self._lock:
            self.worker, self.lease_s = answer.worker, answer.lease_s
            self.max_job_s, self.max_result_bytes = answer.max_job_s, answer.max_result_bytes
            self._takes_over = False  # two workers of one name would otherwise take over from each other for ever
            self._dropped.update(self._holding)
            self._holding.clear()
        log.info("worker %s runs %s", self.worker, ", ".join(self.devices))

    def _recover(self, error: ServiceError) -> None:
        """After a refusal: register again when given up, end when the key is refused, else go on after a while."""
        if error.status in (401, 403):
            raise error
        if error.code == "worker_lost":
            log.warning("the service had given this worker up; it starts anew")
            self._hello()
        else:
            log.error("refused: %s", error)
            self._stopping.wait(LONGEST_RETRY_S)

    def _ask_for_leases(self) -> None:
        while not self._stopping.is_set():
            since = self._since
            busy_s = 0.0 if since is None else time.monotonic() - since
            interactive = since is not None and (self._long or busy_s > LATE_S) and bool(self.quick)
            if self._long and not self.quick:
                self._stopping.wait(LOOK_S)  # a vendor's device: nothing is held in reserve behind a long job
                continue
            wait_s = min(WAIT_S, self.lease_s / 2)
            with self._lock:
                request = LeaseRequest(
                    worker=self.worker,
                    devices=list(self.devices),
                    holding=list(self._holding.items()),
                    max_jobs=self.max_jobs,
                    wait_s=min(wait_s, max(POLL_S, min(busy_s / 10, LONGEST_POLL_S))) if interactive else wait_s,
                    interactive=interactive,
                )
            try:
                lease = self.call("lease", request, LeaseAnswer, request.wait_s)
            except ServiceError as error:
                if self._stopping.is_set():
                    break
                self._recover(error)
                continue
            with self._lock:
                self._dropped.update(self._holding.keys() & lease.drop)  # others have ended since it was asked
                self._holding.update((job.seq, job.attempt) for job in lease.jobs)
                self._dropped.difference_update(job.seq for job in lease.jobs)
            if lease.jobs:
                (self._quick_leases if interactive else self._leases).put(lease)
                while _is_long(lease) and self._leases.full() and not self._stopping.is_set():
                    self._stopping.wait(POLL_S / 10)  # until the main thread has taken it
        self._no_more.set()
        self._leases.put(None)

    def _run_quick(self) -> None:
        """Run interactive jobs while the main thread's job takes long, and what was held in reserve behind it."""
        while self.quick and not (self._no_more.is_set() and self._quick_leases.empty()):
            lease = self._behind_a_long_job()
            with contextlib.suppress(queue.Empty):
                lease = lease or self._quick_leases.get(timeout=LOOK_S)
            if lease is not None:
                self._run_lease(lease, self.quick)

    def _behind_a_long_job(self) -> LeaseAnswer | None:
        """The lease in reserve, where it has few and short jobs and the main thread's job has run for long."""
        since, waiting = self._since, self._leases
        if since is None or time.monotonic() - since < LATE_S:
            return None
        with waiting.mutex:
            lease: LeaseAnswer | None = waiting.queue[0] if waiting.queue else None
            if lease is None or len(lease.jobs) > QUICK_JOBS or _is_long(lease):
                return None
            waiting.queue.popleft()
            waiting.not_full.notify()
            return lease

    def _run_lease(self, lease: LeaseAnswer, devices: Mapping[str, LeasedDevice]) -> None:
        assert lease.device is not None
        jobs = {job.seq: job for job in lease.jobs}
        for finished in devices[lease.device].run(lease, self):
            if devices is self.devices:
                self._since = time.monotonic()
            bounded = [self._bounded(one, jobs[one.seq]) for one in finished]
            estimate_s = sum(jobs[one.seq].estimate_s for one in finished)
            self._offer(CompleteRequest(worker=self.worker, device=lease.device, estimate_s=estimate_s, jobs=bounded))
        with self._lock:
            self._dropped.difference_update(job.seq for job in lease.jobs if job.seq not in self._holding)

    def _bounded(self, one: FinishedJob, job: LeasedJob) -> FinishedJob:
        if one.payload is None or len(one.payload) <= self.max_result_bytes + ENVELOPE_BYTES:
            return one
        return failed(job, f"the result is too large: {len(one.payload)} bytes, bound {self.max_result_bytes}", one.device_s)

    def stopping(self) -> bool:
        """True once the worker is to end."""
        return self._stopping.is_set()

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than until the worker is to stop."""
        self._stopping.wait(seconds)

    def calibration(self, device: str, name: str) -> bytes:
        """See `WorkerContext.calibration`."""
        request = CalibrationRequest(device=device, id=name)
        return bytes(self.call("calibration", request, dict[str, Any])["data"])

    def occupy(self, places: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Tell with the next heartbeat which qubits of the chip running jobs occupy."""
        with self._lock:
            self._places = {seq: list(qubits) for seq, qubits in places}

    def still_held(self, jobs: Sequence[LeasedJob]) -> list[LeasedJob]:
        """Those that are this worker's still and are not being cancelled."""
        with self._lock:
            for job in jobs:
                if job.seq in self._dropped:
                    self._holding.pop(job.seq, None)
            return [job for job in jobs if job.seq not in self._dropped]

    def _hand_in(self) -> None:
        while (request := self._ended.get()) is not None:
            size = _size(request)
            while len(request.jobs) < COMPLETE_JOBS and not self._ended.empty():
                more = self._ended.queue[0]
                if more is None or (more.worker, more.device) != (request.worker, request.device):
                    break
                size += _size(more)
                if size > COMPLETE_BYTES:
                    break
                self._ended.get()
                request.jobs = [*request.jobs, *more.jobs]
                request.estimate_s += more.estimate_s
            for part in _parts(request):
                self._complete(part)
            with self._lock:
                for job in request.jobs:
                    self._holding.pop(job.seq, None)
                    self._dropped.discard(job.seq)

    def _complete(self, request: CompleteRequest) -> None:
        """Send results. A refused message is sent again job by job, then as a failure with the reason."""
        try:
            self.call("complete", request, dict[str, Any])
        except ServiceError as error:
            if error.status in (401, 403) or error.code == "worker_lost":
                return self._recover(error)
            log.error("%d results were refused: %s", len(request.jobs), error)
            if len(request.jobs) > 1:
                for job in request.jobs:
                    self._complete(CompleteRequest(worker=request.worker, device=request.device, estimate_s=0.0, jobs=[job]))
            elif (job := request.jobs[0]).payload is not None:
                reason = f"the service did not take the result: {error}"[:4000]
                told = FinishedJob(seq=job.seq, attempt=job.attempt, device_s=job.device_s, reason=reason)
                self._complete(CompleteRequest(worker=request.worker, device=request.device, estimate_s=0.0, jobs=[told]))
        return None

    def _live(self) -> None:
        told: dict[int, list[int]] = {}
        seen: dict[int, list[int]] = {}
        last = time.monotonic()
        while not self._stopping.wait(min(PLACES_S, self.lease_s / 8)):
            with self._lock:
                places, idle = dict(self._places), not self._holding
            if idle and not told:  # asking for work is a sign of life, too
                continue
            lasting, seen = places == seen and places != told, places  # what a fast chip ran in between is not worth a call
            if not lasting and time.monotonic() - last < min(2.0, self.lease_s / 4):
                continue
            last, told = time.monotonic(), places
            with self._lock:
                request = HeartbeatRequest(
                    worker=self.worker, holding=list(self._holding.items()), places=[*places.items()][:MAX_PLACES]
                )
            try:
                answer = self.call("heartbeat", request, dict[str, Any])
            except ServiceError as error:
                if error.status in (401, 403):
                    raise
                if error.code != "worker_lost":  # then the thread that leases registers again
                    log.error("refused: %s", error)
                continue
            with self._lock:
                self._dropped.update(self._holding.keys() & answer["drop"])


def _is_long(lease: LeaseAnswer) -> bool:
    return sum(job.estimate_s for job in lease.jobs) > LONG_S


def _size(request: CompleteRequest) -> int:
    return sum(len(job.payload or b"") + 64 for job in request.jobs)


def _parts(request: CompleteRequest) -> Iterator[CompleteRequest]:
    """The request in pieces of at most `COMPLETE_BYTES`, where one job may be larger."""
    jobs: list[FinishedJob] = []
    size = 0
    share = request.estimate_s / max(len(request.jobs), 1)
    for job in request.jobs:
        more = len(job.payload or b"") + 64
        if jobs and size + more > COMPLETE_BYTES:
            yield CompleteRequest(worker=request.worker, device=request.device, estimate_s=share * len(jobs), jobs=jobs)
            jobs, size = [], 0
        jobs.append(job)
        size += more
    yield CompleteRequest(worker=request.worker, device=request.device, estimate_s=share * len(jobs), jobs=jobs)
