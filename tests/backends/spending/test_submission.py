"""The protocol of paid jobs: what may follow what, and what is recorded when something goes wrong between two steps."""

from __future__ import annotations

from typing import Any

import pytest

from qpeft.backends.spending.submission import (
    PAID,
    TRANSITIONS,
    Backoff,
    JobStatus,
    KeyRefusedError,
    NotSentError,
    VendorClient,
    check_transition,
    poll_job,
    send_once,
)
from qpeft.errors import JobError


class Log:
    """A SubmissionLog that keeps what it was told, and the moment at which the vendor was called."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def intent(self) -> None:
        self.events.append(("intent", ""))

    def sent(self, job: str) -> None:
        self.events.append(("sent", job))

    def refused(self, reason: str) -> None:
        self.events.append(("refused", reason))

    def ambiguous(self, reason: str) -> None:
        self.events.append(("ambiguous", reason))


class Vendor(VendorClient):
    def __init__(self, log: Log, answer: Any) -> None:
        self.log, self.answer = log, answer

    def submit(self, payload: Any, tag: str) -> str:
        self.log.events.append(("vendor", tag))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def poll(self, job: str) -> JobStatus:
        raise self.answer


@pytest.mark.parametrize(
    ("answer", "last", "state"),
    [
        ("job-1", "sent", "sent"),
        (NotSentError("no connection"), "refused", "refused"),
        (KeyRefusedError("401"), "refused", "refused"),
        (ConnectionError("dropped"), "ambiguous", "intent"),
        (ValueError("words nobody knows"), "ambiguous", "intent"),
        ("", "ambiguous", "intent"),
    ],
)
def test_every_end_of_sending_is_recorded(answer: Any, last: str, state: str) -> None:
    log = Log()
    sent = send_once(Vendor(log, answer), {}, "tag-1", log)
    assert [event for event, _ in log.events] == ["intent", "vendor", last]
    assert log.events[1][1] == "tag-1"
    assert sent.state == state


def test_nothing_is_sent_where_the_intent_is_not_stored() -> None:
    class Full(Log):
        def intent(self) -> None:
            raise OSError("no space left")

    log = Full()
    with pytest.raises(OSError, match="no space"):
        send_once(Vendor(log, "job-1"), {}, "tag", log)
    assert log.events == []


def test_a_process_that_dies_while_sending_leaves_the_intent() -> None:
    log = Log()
    with pytest.raises(KeyboardInterrupt):
        send_once(Vendor(log, KeyboardInterrupt()), {}, "tag", log)
    assert [event for event, _ in log.events] == ["intent", "vendor"]


def test_only_a_job_that_costs_nothing_or_has_ended_is_sent_again() -> None:
    again = {state for state, following in TRANSITIONS.items() if "intent" in following}
    assert again == {"", "refused", "absent", "failed", "cancelled"}
    assert TRANSITIONS.keys() - {"", "refused", "absent"} == PAID
    for state in ("intent", "sent", "done"):
        with pytest.raises(JobError, match=f"that is {state} cannot become intent"):
            check_transition(state, "intent")
    with pytest.raises(JobError, match="new cannot become sent"):
        check_transition("", "sent")


def test_polls_take_errors_for_passing_ones_but_not_a_refused_key() -> None:
    log = Log()
    error = TimeoutError("silence")
    assert poll_job(Vendor(log, error), "job-1") is error
    with pytest.raises(KeyRefusedError):
        poll_job(Vendor(log, KeyRefusedError("401")), "job-1")


def test_pauses_grow_to_their_longest() -> None:
    backoff = Backoff(1.0, 4.0, 2.0)
    assert [backoff.next_s() for _ in range(4)] == [1.0, 2.0, 4.0, 4.0]
