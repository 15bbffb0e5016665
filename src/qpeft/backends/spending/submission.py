"""Paid jobs, sent once: the states of a submission and the steps between them, for every vendor and every kind of storage.

    intent ---> sent ---> done | failed | cancelled
       |
       +------> refused   the vendor certainly did not take it: it cost nothing and may be sent again
       +------> absent    somebody looked at the vendor's pages: it never arrived, so it may be sent again

The intent is stored before anything is sent, and the vendor's id right after. An intent without a next step is *ambiguous*: sending
was cut off, or the vendor's answer was not understood, so the vendor may or may not have the job. It counts as paid and is never
sent again by itself; a person resolves it to `sent` or `absent`. Only a vendor that recognises a repeated submission
(`idempotent`) gets it again.

jobs.py stores submissions in a journal file, qpeft.service.vendor in the service's database.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from qpeft.errors import JobError

logger = logging.getLogger(__name__)

State = Literal["intent", "sent", "done", "failed", "cancelled", "refused", "absent"]
JobState = Literal["waiting", "running", "done", "failed", "cancelled"]

# What may follow a state; "" is a job of which nothing is known. A job that ended without a result may be sent again: a new intent.
TRANSITIONS: Final[Mapping[str, frozenset[str]]] = {
    "": frozenset({"intent"}),
    "intent": frozenset({"sent", "refused", "absent"}),
    "sent": frozenset({"done", "failed", "cancelled"}),
    "done": frozenset(),
    "failed": frozenset({"intent"}),
    "cancelled": frozenset({"intent"}),
    "refused": frozenset({"intent"}),
    "absent": frozenset({"intent"}),
}
PAID: Final = frozenset({"intent", "sent", "done", "failed", "cancelled"})  # counted against a budget


def check_transition(state: str, new: str) -> None:
    """Check that a job may go from one state to another.

    Args:
        state: the state it is in; "" for a job of which nothing is known.
        new: the next state.

    Raises:
        JobError: `TRANSITIONS` does not have this step.
    """
    if new not in TRANSITIONS.get(state, frozenset()):
        allowed = ", ".join(sorted(TRANSITIONS.get(state, ()))) or "nothing"
        raise JobError(f"a job that is {state or 'new'} cannot become {new}", value=new, bound=allowed)


class NotSentError(Exception):
    """A submission that certainly did not reach the vendor, or that the vendor certainly refused: it cost nothing."""


class KeyRefusedError(Exception):
    """The vendor does not take the key."""


class CannotAttachError(Exception):
    """The client cannot look at a job that another process sent; the vendor may have its result."""


class UnreadableAnswerError(ConnectionError):
    """The vendor answered, and the answer makes no sense. It may pass, as a page of a proxy does, or stay."""


@dataclass(frozen=True)
class JobStatus:
    """A job at the vendor: `result` is plain JSON data, there when done; `detail` says why a job failed."""

    state: JobState
    detail: str = ""
    result: Any = None


class VendorClient(Protocol):
    """A vendor's SDK. Every call returns or raises within a bounded time.

    Attributes:
        idempotent: the vendor recognises a tag that it has seen and answers with the job it has, so sending again is safe.
    """

    idempotent: bool = False

    def submit(self, payload: Any, tag: str) -> str:
        """Send one job.

        Args:
            payload: what the vendor needs, fit for JSON.
            tag: our name of the job, which the vendor shows where it can.

        Returns:
            The vendor's id of the job.

        Raises:
            NotSentError: it was certainly not taken. Only what is known to mean that may raise it.
            KeyRefusedError: the vendor does not take the key.
            Exception: anything else, an unknown wording of the vendor included, leaves open whether it was taken.
        """
        ...

    def poll(self, job: str) -> JobStatus:
        """The job's state. Any error but KeyRefusedError and CannotAttachError is taken for a passing one."""
        ...

    def cancel(self, job: str) -> bool:
        """Ask the vendor to cancel; True if it agreed."""
        ...


class SubmissionLog(Protocol):
    """Where one submission is recorded. Each call returns when the step is on the disk, or raises."""

    def intent(self) -> None:
        """It is about to be sent. An error here means that nothing is sent."""
        ...

    def sent(self, job: str) -> None:
        """The vendor has it, under this id."""
        ...

    def refused(self, reason: str) -> None:
        """The vendor certainly does not have it."""
        ...

    def ambiguous(self, reason: str) -> None:
        """The vendor may or may not have it: the intent stays, with a reason for whoever resolves it."""
        ...


@dataclass(frozen=True)
class Submission:
    """How sending ended: `sent` with the vendor's id, `refused`, or `intent` where that is not known. `error` is the cause."""

    state: Literal["sent", "refused", "intent"]
    job: str = ""
    reason: str = ""
    error: Exception | None = field(default=None, repr=False, compare=False)


def send_once(client: VendorClient, payload: Any, tag: str, log: SubmissionLog) -> Submission:
    """Record the intent, send, and record what became of it. Whatever dies in between leaves the intent behind.

    Args:
        client: the vendor's SDK.
        payload: what `client.submit` takes.
        tag: our name of the job.
        log: where each step is recorded.

    Returns:
        `sent` with the vendor's id, `refused`, or `intent` if it is open whether the vendor has the job. Errors of the client are
        in it and are not raised.
    """
    log.intent()
    try:
        job = client.submit(payload, tag)
    except (NotSentError, KeyRefusedError) as error:
        log.refused(str(error))
        return Submission("refused", reason=str(error), error=error)
    except Exception as error:
        reason = f"sending was cut off or the answer was not understood ({error})"
        log.ambiguous(reason)
        return Submission("intent", reason=reason, error=error)
    if not job:
        reason = "the vendor answered without an id"
        log.ambiguous(reason)
        return Submission("intent", reason=reason)
    log.sent(job)
    return Submission("sent", job)


@dataclass
class Backoff:
    """Growing pauses between two looks at a job, in seconds."""

    first_s: float = 1.0
    longest_s: float = 15.0
    factor: float = 1.5

    def __post_init__(self) -> None:
        self._next = self.first_s

    def next_s(self) -> float:
        """The pause to make now."""
        pause = self._next
        self._next = min(self.longest_s, self.factor * pause)
        return pause


def poll_job(client: VendorClient, job: str) -> JobStatus | Exception:
    """One look at a job: its status, or the passing error that stood in the way. Errors that do not pass are raised.

    Args:
        client: the vendor's SDK.
        job: the vendor's id of the job.
    """
    try:
        return client.poll(job)
    except (KeyRefusedError, CannotAttachError):
        raise
    except Exception as error:
        logger.warning("job %s: no answer (%s); asking again", job, error)
        return error
