"""The seam between a worker's loop and what runs its jobs: a device of this machine, or a vendor's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

from qpeft.service.workers.messages import Calibration, DeviceInfo, FinishedJob, LeaseAnswer, LeasedJob

T = TypeVar("T")


class WorkerContext(Protocol):
    """Interface of a worker, as its devices see it."""

    worker: str
    """The worker's id at the service."""
    max_job_s: float
    """Seconds after which a job is cut off."""
    max_result_bytes: int
    """Bytes of one job's result."""

    def call(self, path: str, content: Any, kind: type[T]) -> T:
        """Call `POST /v1/worker/{path}`, repeated until the service answers.

        Args:
            path: last part of the path.
            content: the request, encoded as MessagePack.
            kind: type of the answer.

        Raises:
            ServiceError: the service refused.
        """

    def calibration(self, device: str, name: str) -> bytes:
        """The chip file of a calibration that the service has stored.

        Args:
            device: name of the device.
            name: id of the calibration.
        """

    def stopping(self) -> bool:
        """True once the worker is to end: what is not started goes back."""

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than until the worker is to stop."""

    def occupy(self, places: Sequence[tuple[int, Sequence[int]]]) -> None:
        """`(seq, qubits)` of the jobs that a chip runs from now on; the service shows them."""

    def still_held(self, jobs: Sequence[LeasedJob]) -> list[LeasedJob]:
        """Those that are this worker's still and are not being cancelled."""


class LeasedDevice(Protocol):
    """A device that runs the jobs of a lease."""

    name: str

    def info(self) -> DeviceInfo:
        """Limits and cost model."""

    def calibration(self) -> Calibration | None:
        """Current calibration."""

    def run(self, lease: LeaseAnswer, context: WorkerContext) -> Iterator[list[FinishedJob]]:
        """Run the jobs of a lease. What a job asks for never raises: the job fails.

        Args:
            lease: the jobs and their programs.
            context: the worker.

        Yields:
            Outcomes of jobs, as they end.
        """


def released(job: LeasedJob, reason: str = "") -> FinishedJob:
    """Return the job unrun to the queue.

    Args:
        job: the job.
        reason: why, shown to its owner.
    """
    return FinishedJob(seq=job.seq, attempt=job.attempt, device_s=0.0, reason=reason, released=True)


def slow(job: LeasedJob, device_s: float) -> FinishedJob:
    """Return the job to the bulk lane of the queue: after `device_s` seconds it had not ended."""
    reason = f"it takes more than {device_s:.1f} s; it waits with longer jobs from now on"
    return FinishedJob(seq=job.seq, attempt=job.attempt, device_s=device_s, reason=reason, released=True, slow=True)


def parked(job: LeasedJob) -> FinishedJob:
    """The job waits, without a worker, until somebody knows whether the vendor has it."""
    return FinishedJob(seq=job.seq, attempt=job.attempt, device_s=0.0, parked=True)


def failed(job: LeasedJob, reason: str, device_s: float = 0.0) -> FinishedJob:
    """The job ended without a result, for `reason`, after `device_s` seconds of its device."""
    return FinishedJob(seq=job.seq, attempt=job.attempt, device_s=device_s, reason=reason[:4000])
