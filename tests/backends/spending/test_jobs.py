"""The journal and the runner with a client that is a few lines long: crashes, torn lines, two processes, budgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qpeft.backends.spending.budget import Budget, Cost
from qpeft.backends.spending.jobs import JobRunner
from qpeft.backends.spending.journal import Journal
from qpeft.backends.spending.submission import JobStatus, KeyRefusedError, NotSentError, VendorClient
from qpeft.errors import BackendError, BudgetError, JobError

COST = Cost(circuits=2, shots=20, programs=2, jobs=1, seconds=0.5)


class Memory(VendorClient):
    """A vendor in memory: a job's result is its payload turned round. `faults` are raised by the next calls of their name."""

    def __init__(self, **faults: list[Exception]) -> None:
        self.faults, self.jobs, self.states = faults, {}, ["waiting", "running"]
        self.polls = 0

    def _fault(self, name: str) -> None:
        if self.faults.get(name):
            raise self.faults[name].pop(0)

    def submit(self, payload: Any, tag: str) -> str:
        self._fault("submit")
        self.jobs[f"job-{len(self.jobs)}"] = payload
        self._fault("reply")
        return f"job-{len(self.jobs) - 1}"

    def poll(self, job: str) -> JobStatus:
        self._fault("poll")
        self.polls += 1
        if self.polls <= len(self.states):
            return JobStatus(self.states[self.polls - 1])  # type: ignore[arg-type]
        return JobStatus("done", "", self.jobs[job][::-1])

    def cancel(self, job: str) -> bool:
        return True


def runner(path: Path, client: Memory, **options: Any) -> JobRunner:
    return JobRunner(client, Journal(path), poll_s=0.001, **options)


def test_results_in_order_and_one_line_a_step(tmp_path: Path) -> None:
    first = runner(tmp_path / "j", Memory())
    assert first.run([("ab", COST), ("cd", COST)], lambda: {"T1": 4}) == ["ba", "dc"]
    lines = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["intent", "sent", "intent", "sent", "done", "done"]
    assert lines[0]["snapshot"] == {"T1": 4}
    assert first.journal.spent == COST + COST


def test_opened_again_it_replays_and_sends_only_what_is_new(tmp_path: Path) -> None:
    client = Memory()
    first = runner(tmp_path / "j", client)
    first.run([("ab", COST)])
    first.run([("ab", COST)])  # asked twice: two samples
    first.journal.close()
    again = runner(tmp_path / "j", client)
    assert again.run([("ab", COST)]) == ["ba"]
    assert again.run([("ab", COST)]) == ["ba"]
    assert len(client.jobs) == 2
    assert again.run([("ab", COST), ("new", COST)]) == ["ba", "wen"]
    assert len(client.jobs) == 4


def test_a_job_under_way_is_attached_to(tmp_path: Path) -> None:
    client = Memory()
    client.states = ["waiting"] * 10**6
    first = runner(tmp_path / "j", client, timeout_s=0.01)
    with pytest.raises(JobError, match="not finished") as caught:
        first.run([("ab", COST)])
    assert caught.value.job == "job-0"
    first.journal.close()
    client.states = []
    assert runner(tmp_path / "j", client).run([("ab", COST)]) == ["ba"]
    assert len(client.jobs) == 1


@pytest.mark.parametrize("lost", ["submit", "reply"])
def test_a_submission_of_unknown_fate_is_never_repeated(tmp_path: Path, lost: str) -> None:
    client = Memory(**{lost: [ConnectionError("time-out")]})
    first = runner(tmp_path / "j", client)
    with pytest.raises(JobError, match="may or may not"):
        first.run([("ab", COST)])
    sent = len(client.jobs)
    first.journal.close()
    for _ in range(3):
        again = runner(tmp_path / "j", client)
        with pytest.raises(JobError, match="may or may not") as caught:
            again.run([("ab", COST)])
        assert len(client.jobs) == sent
        assert again.journal.spent == COST
        again.journal.close()
    last = runner(tmp_path / "j", client)
    last.journal.resolve(str(caught.value.value), "job-0" if sent else None)
    assert last.run([("ab", COST)]) == ["ba"]
    assert len(client.jobs) == 1


def test_a_crash_between_two_lines(tmp_path: Path) -> None:
    """The file of a finished run, cut after every byte: whatever the crash left, no job is ever sent twice."""
    runner(tmp_path / "whole", Memory()).run([("ab", COST)])
    whole = (tmp_path / "whole").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    outcomes = []
    for cut in range(0, len(whole) + 1, 7):
        (tmp_path / f"cut{cut}").write_bytes(whole[:cut])
        client = Memory()
        client.jobs["job-0"] = "ab"
        before = len(client.jobs)
        again = runner(tmp_path / f"cut{cut}", client)
        try:
            assert again.run([("ab", COST)]) == ["ba"]
        except JobError:
            outcomes.append("unknown")
        else:
            outcomes.append("sent" if len(client.jobs) > before else "attached")
        again.journal.close()
        complete = sum(end <= cut for end in ends)
        assert outcomes[-1] == ("sent", "unknown", "attached", "attached")[complete]
    assert set(outcomes) == {"sent", "unknown", "attached"}


def test_refused_and_failed_jobs_may_be_sent_again(tmp_path: Path) -> None:
    client = Memory(submit=[NotSentError("quota"), KeyRefusedError("401")])
    first = runner(tmp_path / "j", client)
    for words in ("quota", "401"):
        with pytest.raises(JobError, match=words):
            first.run([("ab", COST)])
    assert first.journal.spent == Cost()
    client.poll = lambda job: JobStatus("failed", "the chip warmed up")  # type: ignore[method-assign]
    with pytest.raises(JobError, match="warmed up"):
        first.run([("ab", COST)])
    assert first.journal.spent == COST
    first.journal.close()
    client.poll = lambda job: JobStatus("done", "", "result")  # type: ignore[method-assign]
    assert runner(tmp_path / "j", client).run([("ab", COST)]) == ["result"]


def test_passing_silence_is_waited_out_and_lasting_silence_is_not(tmp_path: Path) -> None:
    client = Memory(poll=[ConnectionError("dropped")] * 3)
    first = runner(tmp_path / "j", client)
    assert first.run([("ab", COST)]) == ["ba"]
    client.faults["poll"] = [ConnectionError("dropped")] * 10**4
    with pytest.raises(JobError, match="no answer"):
        runner(tmp_path / "k", client, patience_s=0.01).run([("cd", COST)])
    client.faults["poll"] = [KeyRefusedError("401")]
    with pytest.raises(JobError, match="no longer takes the key"):
        runner(tmp_path / "l", client).run([("cd", COST)])


def test_jobs_that_failed_count(tmp_path: Path) -> None:
    """A vendor charges for what it ran: ten attempts at two jobs that fail do not fit under a budget of four."""
    client = Memory()
    client.poll = lambda job: JobStatus("failed", "the chip warmed up")  # type: ignore[method-assign]
    first, ends = runner(tmp_path / "j", client, budget=Budget(jobs=4)), []
    for _ in range(10):
        with pytest.raises(BackendError) as caught:
            first.run([("ab", COST), ("cd", COST)])
        ends.append(type(caught.value))
    assert ends[-1] is BudgetError
    assert len(client.jobs) <= 4
    assert first.journal.spent.jobs == len(client.jobs)
    first.journal.close()
    with Journal(tmp_path / "j") as again:
        assert again.spent.jobs == len(client.jobs)


def test_a_vendor_that_recognises_a_repeat_gets_it_again(tmp_path: Path) -> None:
    """After a lost reply: the same tag, one job, one cost."""

    class Recognising(Memory):
        idempotent = True

        def submit(self, payload: Any, tag: str) -> str:
            known = self.__dict__.setdefault("tags", {})
            if tag not in known:
                known[tag] = super().submit(payload, tag)
            self._fault("late")
            return str(known[tag])

    client = Recognising(late=[ConnectionError("dropped")])
    first = runner(tmp_path / "j", client, budget=Budget(jobs=1))
    with pytest.raises(JobError, match="may or may not"):
        first.run([("ab", COST)])
    assert first.run([("ab", COST)]) == ["ba"]
    assert len(client.jobs) == 1
    assert first.journal.spent == COST


def test_an_answer_without_an_id_is_ambiguous(tmp_path: Path) -> None:
    client = Memory()
    client.submit = lambda payload, tag: ""  # type: ignore[method-assign]
    with pytest.raises(JobError, match="without an id"):
        runner(tmp_path / "j", client).run([("ab", COST)])


def test_budget_covers_everything_that_is_left_to_send(tmp_path: Path) -> None:
    client = Memory()
    first = runner(tmp_path / "j", client, budget=Budget(jobs=2))
    with pytest.raises(BudgetError, match="3 jobs"):
        first.run([("a", COST), ("b", COST), ("c", COST)])
    assert not client.jobs
    first.run([("a", COST), ("b", COST)])
    with pytest.raises(BudgetError, match="0 left"):
        first.run([("c", COST)])
    first.journal.close()
    again = runner(tmp_path / "j", client, budget=Budget(jobs=2))
    assert again.run([("a", COST), ("b", COST)]) == ["a", "b"]  # paid already


def test_a_calibration_that_cannot_be_had_sends_nothing(tmp_path: Path) -> None:
    def broken() -> Any:
        raise ConnectionError("down")

    client = Memory()
    with pytest.raises(JobError, match="calibration"):
        runner(tmp_path / "j", client).run([("a", COST)], broken)
    assert not client.jobs


def test_cancel(tmp_path: Path) -> None:
    client = Memory()
    client.states = ["waiting"] * 10**6
    first = runner(tmp_path / "j", client, timeout_s=0.0)
    with pytest.raises(JobError):
        first.run([("ab", COST)])
    assert first.cancel() == ["job-0"]
    assert first.cancel() == []


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path / "j"), pytest.raises(BackendError, match="another process"):
        Journal(tmp_path / "j")
    Journal(tmp_path / "j").close()


@pytest.mark.parametrize(
    "text", ["hello\n", "{}\n", '{"format":2}\n', '{"format":1,"key":"a","event":"sent","job":"x"}\n', "[1]\n"]
)
def test_files_that_are_no_journal(tmp_path: Path, text: str) -> None:
    (tmp_path / "j").write_text(text)
    with pytest.raises(BackendError, match="line 1"):
        Journal(tmp_path / "j")


def test_resolve_wants_an_open_intent(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal, pytest.raises(JobError, match="no such open intent"):
        journal.resolve("nothing", None)
