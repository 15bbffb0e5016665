"""Jobs at a vendor, from intent to result, the same for every vendor. What is theirs is behind `VendorClient`."""

from __future__ import annotations

import ipaddress
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from qpeft.backends.spending.budget import Budget, Cost
from qpeft.backends.spending.journal import Journal
from qpeft.errors import BackendError, JobError, MissingDependencyError

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "failed", "cancelled"]


class NotSentError(Exception):
    """A submission that certainly did not reach the vendor, or that the vendor refused: it cost nothing."""


class KeyRefusedError(Exception):
    """The vendor does not take the key."""


@dataclass(frozen=True)
class JobStatus:
    """`result` is plain JSON data, there when done; `detail` says why a job failed."""

    state: State
    detail: str = ""
    result: Any = None


class VendorClient(Protocol):
    """What a vendor's SDK does for us. Every call returns or raises within a bounded time."""

    def submit(self, payload: Any) -> str:
        """Send one job; its id. NotSentError if it certainly was not taken; any other error leaves its fate open."""
        ...

    def poll(self, job: str) -> JobStatus:
        """How a job is. Any error but KeyRefusedError is taken for a passing one."""
        ...

    def cancel(self, job: str) -> bool: ...


@dataclass
class JobRunner:
    """Sends jobs and waits for them. Times in seconds.

    `poll_s` is the first pause between polls; it grows to `longest_poll_s`. Without an answer for `patience_s`, or after
    `timeout_s` in all, JobError; the jobs stay in the journal, and asking again attaches to them.
    """

    client: VendorClient
    journal: Journal
    budget: Budget = field(default_factory=Budget)
    poll_s: float = 1.0
    longest_poll_s: float = 15.0
    patience_s: float = 600.0
    timeout_s: float = 24 * 3600.0

    def run(self, jobs: Sequence[tuple[Any, Cost]], snapshot: Callable[[], Any] = lambda: None) -> list[Any]:
        """Results of jobs `(payload, cost)` in order. Nothing is sent unless the budget covers all that is left to send.

        `snapshot()` is asked once if anything is sent and kept in the journal with each job: the chip's calibration.

        Raises:
            BudgetError: before anything is sent.
            JobError: a job failed, was cancelled or refused, got no answer, or its sending was cut off earlier.
        """
        keys, fresh = self.journal.keys([payload for payload, _ in jobs]), []
        for key, (payload, cost) in zip(keys, jobs, strict=True):
            entry = self.journal.entry(key)
            if entry is not None and entry.state == "intent":
                raise self._unknown(key)
            if entry is None or entry.state not in ("sent", "done"):
                fresh.append((key, payload, cost))
        total = sum((cost for _, _, cost in fresh), Cost())
        self.budget.check(self.journal.spent, total)
        if fresh:
            logger.info("sending %s", total)
            try:
                known = snapshot()
            except Exception as error:
                raise JobError(
                    f"the chip's calibration cannot be had: {error}", hint="nothing was sent; check address and key"
                ) from error
            for key, payload, cost in fresh:
                self._send(key, payload, cost, known)
        results = [self._wait(key) for key in keys]
        self.journal.delivered(keys)
        return results

    def _send(self, key: str, payload: Any, cost: Cost, snapshot: Any) -> None:
        self.journal.intent(key, cost, snapshot)
        try:
            job = self.client.submit(payload)
        except (NotSentError, KeyRefusedError) as error:
            self.journal.ended(key, "refused", detail=str(error))
            raise JobError(f"the vendor did not take it: {error}", hint="nothing was spent; see the reason") from error
        except Exception as error:
            raise self._unknown(key, error) from error
        self.journal.sent(key, job)

    def _unknown(self, key: str, error: Exception | None = None) -> JobError:
        why = f" ({error})" if error is not None else ""
        return JobError(
            f"sending was cut off{why}, so the vendor may or may not have the job; it is not sent again",
            value=key,
            hint=f"look for it at the vendor's, then Journal({str(self.journal.path)!r}).resolve(key, job_id), or "
            "resolve(key, None) if it never arrived",
        )

    def _wait(self, key: str) -> Any:
        entry = self.journal.entries[key]
        if entry.state == "done":
            return entry.result
        started = answered = time.monotonic()
        pause = self.poll_s
        while True:
            try:
                status = self.client.poll(entry.job)
                answered = time.monotonic()
            except KeyRefusedError as error:
                raise JobError(
                    f"the vendor no longer takes the key: {error}", job=entry.job, hint="the right key; then ask again"
                ) from error
            except Exception as error:
                logger.warning("job %s: no answer (%s); asking again", entry.job, error)
                if time.monotonic() - answered > self.patience_s:
                    raise JobError(
                        f"no answer for {self.patience_s:g} s: {error}", job=entry.job, hint="ask again later"
                    ) from error
            else:
                if status.state == "done":
                    self.journal.ended(key, "done", result=status.result)
                    return status.result
                if status.state in ("failed", "cancelled"):
                    self.journal.ended(key, status.state, detail=status.detail)
                    raise JobError(f"{status.state}: {status.detail or 'the vendor gave no reason'}", job=entry.job)
            if time.monotonic() - started > self.timeout_s:
                raise JobError(f"not finished after {self.timeout_s:g} s", job=entry.job, hint="ask again later: it attaches")
            time.sleep(pause)
            pause = min(self.longest_poll_s, 1.5 * pause)

    def cancel(self) -> list[str]:
        """Cancel every job under way; ids of those that the vendor agreed to cancel."""
        cancelled = []
        for key, entry in list(self.journal.entries.items()):
            if entry.state == "sent" and self.client.cancel(entry.job):
                self.journal.ended(key, "cancelled", detail="on request")
                cancelled.append(entry.job)
        return cancelled


class Secret:
    """A key that does not show itself: not in repr, str, logs or pickles. `reveal()` gives it."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> Any:
        raise TypeError("a key is not pickled")

    def censor(self, text: str) -> str:
        """The text with the key blotted out."""
        return text.replace(self._value, "***") if self._value else text


def find_key(variable: str, service: str) -> Secret:
    """A vendor's key: from the environment, else from the system's keyring (extra `keyring`); BackendError if neither has it."""
    if value := os.environ.get(variable, "").strip():
        return Secret(value)
    try:
        import keyring
        import keyring.errors
    except ImportError as error:
        missing = MissingDependencyError("keyring", "keyring", "reading a key from the keyring")
        raise BackendError(
            f"no key for {service}",
            value=f"{variable} is not set",
            hint=f"export {variable}=...; or {missing.hint} and keyring set",
        ) from error
    try:
        value = keyring.get_password("qpeft", service) or ""
    except keyring.errors.KeyringError:
        value = ""
    if not value:
        raise BackendError(f"no key for {service}", hint=f"export {variable}=..., or: keyring set qpeft {service}")
    return Secret(value)


def warn_if_unencrypted(url: str) -> bool:
    """Warn, and return True, when keys and circuits would cross a network in clear text: http to a host that is not this one."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    host = parts.hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if parts.scheme == "https" or local:
        return False
    logger.warning("%s is not encrypted: your key and your circuits cross the network in clear text", host or url)
    return True
