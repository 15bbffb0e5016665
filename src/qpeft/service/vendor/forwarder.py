"""A vendor's chip as a device: a worker that sends jobs on, and pays for none of them twice.

The protocol is that of qpeft.backends.spending.submission, stored in the service's database (vendor/tasks.py): the intent before
anything is sent, the vendor's id right after. Whoever leases the jobs later, after whatever crash, finds the task and takes it up:
it polls a task of which the vendor's id is known; one of which it is not waits for an administrator, without a worker, and is not
sent again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from qpeft.backends.base import Counts
from qpeft.backends.spending.paid import SECONDS_PER_SHOT
from qpeft.backends.spending.submission import (
    Backoff,
    JobStatus,
    KeyRefusedError,
    UnreadableAnswerError,
    VendorClient,
    poll_job,
    send_once,
)
from qpeft.backends.vendors.keys import find_key, warn_if_unencrypted
from qpeft.backends.vendors.pyqpanda import (
    DEFAULT_ADDRESS,
    KEY_VARIABLES,
    MAX_CIRCUITS_PER_JOB,
    URL_VARIABLE,
    counts_of,
)
from qpeft.backends.vendors.pyqpanda_client import SdkClient
from qpeft.circuits.text.originir import to_originir
from qpeft.errors import BackendError, CircuitError, ConfigError, MissingDependencyError, QpeftError, ServiceError
from qpeft.service.ids import new_id
from qpeft.service.messages import pack
from qpeft.service.workers.context import WorkerContext, failed, parked, released
from qpeft.service.workers.device import PreparedJob, prepare
from qpeft.service.workers.messages import (
    Calibration,
    DeviceInfo,
    FinishedJob,
    LeaseAnswer,
    LeasedJob,
    VendorIntent,
    VendorTask,
    VendorTaskQuery,
    VendorUpdate,
)

log = logging.getLogger("qpeft.service.worker")
T = TypeVar("T")
TRIES = 3  # of a submission that certainly did not arrive
LONGEST_POLL_S = 15.0
MOST_OF_SHOTS = 1.01  # counts that the vendor has corrected are not whole
UNREADABLE = 5  # answers about a task, one after the other, that make no sense: then its jobs fail
SETTINGS = {"amend": False, "mapping": True, "optimization": True, "block": []}


class ChipClient(VendorClient, Protocol):
    """A vendor's client that also reports its chips."""

    def chip_info(self, chip: str) -> dict[str, Any]:
        """A chip's calibration in the vendor's own form."""
        ...


@dataclass
class TaskToSend:
    """One submission; `members` are its jobs that are ours, with each one's first program."""

    id: str
    members: list[tuple[PreparedJob, int]] = field(default_factory=list)
    unreadable: int = 0
    """Answers about it, one after the other, that made no sense."""


class Forwarder:
    """A chip in Origin Quantum's cloud. The vendor's key is this worker's alone (PYQPANDA_API_KEY or the keyring)."""

    def __init__(self, name: str, chip: str, client: ChipClient, poll_s: float = 1.0) -> None:
        self.name, self.chip, self.client, self.poll_s = name, chip, client, poll_s
        self._snapshot()

    def _snapshot(self) -> Calibration:
        """Current calibration from the vendor."""
        from qpeft.backends.emulator.chip_formats import from_chip_info

        try:
            info = self.client.chip_info(self.chip)
        except Exception as error:
            raise BackendError(f"{self.name} cannot be reached", value=str(error), hint="check address, key and chip") from error
        self.n_qubits = len(info["AvailableQubits"])
        text = json.dumps(info, sort_keys=True)
        try:
            data = from_chip_info(info, name=self.chip).to_json()
        except ConfigError as error:
            log.warning("%s: kept as the vendor tells it: %s", self.name, error)
            data = text
        self._known = Calibration(device=self.name, id=hashlib.sha256(text.encode()).hexdigest(), data=data.encode())
        return self._known

    def info(self) -> DeviceInfo:
        """Limits and cost model; costs are the vendor's, by shot."""
        return DeviceInfo(
            max_qubits=self.n_qubits,
            simulated=False,
            description=f"a vendor's chip, {self.chip}",
            shot_s=SECONDS_PER_SHOT,
            max_rows=MAX_CIRCUITS_PER_JOB,
            lease_s=MAX_CIRCUITS_PER_JOB * 1000 * SECONDS_PER_SHOT,
        )

    def calibration(self) -> Calibration:
        """Latest calibration received from the vendor."""
        return self._known

    def run(self, lease: LeaseAnswer, context: WorkerContext) -> Iterator[list[FinishedJob]]:
        """See `LeasedDevice.run`: take up what the vendor has, send the rest, and wait."""
        placed = {member.seq: member for member in lease.vendor}
        tasks: dict[str, TaskToSend] = {}
        fresh: list[PreparedJob] = []
        for job in context.still_held(lease.jobs):
            try:
                one = self._prepare(job, lease, context)
            except QpeftError as error:
                yield [failed(job, str(error))]
                continue
            if job.seq in placed:
                member = placed[job.seq]
                tasks.setdefault(member.task, TaskToSend(member.task)).members.append((one, member.position))
            else:
                fresh.append(one)
        open_tasks = list(tasks.values())
        for bundle in _bundles(fresh):
            outcome = self._send(bundle, context)
            if isinstance(outcome, TaskToSend):
                open_tasks.append(outcome)
            else:
                yield outcome
        yield from self._wait(open_tasks, context)

    def _prepare(self, job: LeasedJob, lease: LeaseAnswer, context: WorkerContext) -> PreparedJob:
        if job.rows > MAX_CIRCUITS_PER_JOB:
            raise CircuitError(
                "too many circuits in one job", value=job.rows, bound=MAX_CIRCUITS_PER_JOB, hint="send smaller sweeps"
            )
        one = prepare(job, lease.programs[job.program], context.max_result_bytes)
        if one.circuit.n_qubits > self.n_qubits:
            raise CircuitError(f"{self.name} has too few qubits", value=one.circuit.n_qubits, bound=f"at most {self.n_qubits}")
        return one

    def _reach(self, context: WorkerContext) -> Calibration | None:
        """Current calibration, retried until the vendor answers; None when the worker is to stop."""
        pause = self.poll_s
        while not context.stopping():
            try:
                return self._snapshot()
            except BackendError as error:
                log.warning("%s; jobs wait for it", error)
                context.pause(pause)
                pause = min(2 * pause, LONGEST_POLL_S)
        return None

    def _send(self, bundle: list[PreparedJob], context: WorkerContext) -> TaskToSend | list[FinishedJob]:
        """The task, sent or of unknown fate; or the ends of jobs that were certainly not sent."""
        jobs = [one.job for one in bundle]
        shots = jobs[0].shots
        assert shots is not None  # the service asks for a number
        programs = [to_originir(one.circuit, row.tolist()) for one in bundle for row in one.params]
        reason = ""
        for attempt in range(TRIES):
            calibration = self._reach(context)
            if calibration is None:
                return [released(job) for job in jobs]
            task = new_id("t")
            members = [(job.seq, job.attempt, job.rows) for job in jobs]
            intent = VendorIntent(
                worker=context.worker, task=task, device=self.name, shots=shots, members=members, calibration=calibration
            )
            payload = {"chip": self.chip, "programs": programs, "shots": shots, **SETTINGS}
            try:
                sent = send_once(self.client, payload, task, ServiceLog(context, intent))
            except IntentRefusedError as refusal:
                if refusal.code == "budget":
                    return [failed(job, str(refusal)) for job in jobs]
                log.warning("%s: %s", self.name, refusal)
                return [released(job) for job in jobs]
            if sent.state != "refused":
                return _task_of(task, bundle)
            reason = f"the vendor did not take it: {sent.reason}"
            context.pause(self.poll_s * 2**attempt)
        return [failed(job, reason) for job in jobs]

    def _wait(self, tasks: list[TaskToSend], context: WorkerContext) -> Iterator[list[FinishedJob]]:
        backoff = Backoff(self.poll_s, LONGEST_POLL_S)
        while tasks:
            if context.stopping():
                yield [released(one.job) for task in tasks for one, _ in task.members]
                return
            for task in tuple(tasks):
                ended = self._look(task, context)
                if ended is not None:
                    tasks.remove(task)
                    yield ended
            if tasks:
                context.pause(backoff.next_s())

    def _look(self, task: TaskToSend, context: WorkerContext) -> list[FinishedJob] | None:
        """Outcomes of a task's jobs; None while the task runs."""
        known = context.call("vendor/status", VendorTaskQuery(task=task.id), VendorTask)
        jobs = [one.job for one, _ in task.members]
        if known.state in ("refused", "absent"):
            return [released(job, "it never reached the vendor") for job in jobs]
        if not known.wanted or not context.still_held(jobs):
            if known.state == "sent" and not known.wanted:
                self._cancel(known.vendor_job)
            return [failed(job, "cancelled, or no longer this worker's") for job in jobs]
        if known.state != "sent":
            return [parked(job) for job in jobs]
        try:
            status = poll_job(self.client, known.vendor_job)
        except KeyRefusedError as error:
            log.error("%s: task %s: the vendor no longer takes the key (%s); asking again", self.name, known.vendor_job, error)
            return None
        task.unreadable = task.unreadable + 1 if isinstance(status, UnreadableAnswerError) else 0
        if task.unreadable >= UNREADABLE:
            why = f"the vendor's answers about its task {known.vendor_job} cannot be read: {status}"
            return [failed(job, why) for job in jobs]
        if not isinstance(status, JobStatus):
            return None
        if status.state == "done":
            return [self._end(one, first, status.result) for one, first in task.members]
        if status.state in ("failed", "cancelled"):
            why = f"the vendor's task {known.vendor_job} {status.state}: {status.detail or 'no reason was given'}"
            return [failed(job, why) for job in jobs]
        return None

    def _cancel(self, vendor_job: str) -> None:
        try:
            self.client.cancel(vendor_job)
        except Exception as error:
            log.warning("%s: task %s could not be cancelled: %s", self.name, vendor_job, error)

    def _end(self, one: PreparedJob, first: int, result: Any) -> FinishedJob:
        """The end of a job whose programs begin at `first` of its task; an answer that makes no sense fails the job alone."""
        job = one.job
        assert job.shots is not None
        try:
            found = result["counts"][first : first + job.rows]
            if len(found) != job.rows:
                return failed(job, f"the vendor returned {len(found)} results for {job.rows} circuits")
            for row in found:
                total = sum(row.values())
                if not 0 < total <= MOST_OF_SHOTS * job.shots or min(row.values()) < 0:
                    return failed(job, f"the vendor counted {total:g} outcomes of {job.shots} shots")
            counts: Counts = counts_of(found, one.circuit.n_qubits, job.shots)
        except (QpeftError, KeyError, TypeError, ValueError, AttributeError) as error:
            return failed(job, f"the vendor's answer cannot be read: {type(error).__name__}: {error}")
        seconds = job.rows * job.shots * SECONDS_PER_SHOT
        return FinishedJob(
            seq=job.seq, attempt=job.attempt, device_s=seconds, payload=pack(one.result(counts)), calibration=self._known.id
        )


class IntentRefusedError(ServiceError):
    """The service does not record the intent, so nothing is sent."""


@dataclass(frozen=True)
class ServiceLog:
    """One task's `SubmissionLog` at the service."""

    context: WorkerContext
    about: VendorIntent

    def intent(self) -> None:
        """Store that the task is about to be sent; IntentRefusedError when it may not be."""
        try:
            self.context.call("vendor/intent", self.about, dict[str, Any])
        except ServiceError as error:
            raise IntentRefusedError(str(error), status=error.status, code=error.code) from error

    def sent(self, job: str) -> None:
        """Store the vendor's id of it."""
        self._tell("sent", vendor_job=job)

    def refused(self, reason: str) -> None:
        """Store that the vendor certainly did not take it."""
        self._tell("refused", reason=f"the vendor did not take it: {reason}")

    def ambiguous(self, reason: str) -> None:
        """Store the reason why the task's arrival is unknown."""
        told = f"{reason}: the vendor may or may not have it, under batch number {self.about.task}"
        log.error("%s: %s; an administrator has to resolve it", self.about.device, told)
        self._tell("intent", reason=told)

    def _tell(self, state: Any, *, vendor_job: str = "", reason: str = "") -> None:
        news = VendorUpdate(task=self.about.task, state=state, vendor_job=vendor_job, reason=reason[:4000])
        self.context.call("vendor/update", news, dict[str, Any])


def vendor_client() -> SdkClient:
    """The client with the key that this machine has; nothing is sent. Raises QpeftError without a key or pyqpanda3."""
    key, url = find_key(KEY_VARIABLES, "pyqpanda"), os.environ.get(URL_VARIABLE) or None
    if importlib.util.find_spec("pyqpanda3") is None:
        raise MissingDependencyError("pyqpanda3", "pyqpanda", "a chip of Origin Quantum's cloud")
    warn_if_unencrypted(DEFAULT_ADDRESS if url is None else url)
    return SdkClient(key, url)


def open_vendor(name: str) -> Forwarder:
    """The forwarder of a device's name. Raises BackendError when the vendor cannot be reached."""
    return Forwarder(name, name.partition(":")[2], vendor_client())


def _task_of(task: str, bundle: Sequence[PreparedJob]) -> TaskToSend:
    made, first = TaskToSend(task), 0
    for one in bundle:
        made.members.append((one, first))
        first += one.job.rows
    return made


def _bundles(ready: Sequence[PreparedJob]) -> Iterator[list[PreparedJob]]:
    """Jobs of equal shots, at most `MAX_CIRCUITS_PER_JOB` circuits together."""
    by_shots: dict[int | None, list[PreparedJob]] = {}
    for one in ready:
        bundle = by_shots.setdefault(one.job.shots, [])
        if sum(other.job.rows for other in bundle) + one.job.rows > MAX_CIRCUITS_PER_JOB:
            yield bundle
            bundle = by_shots[one.job.shots] = []
        bundle.append(one)
    yield from by_shots.values()
