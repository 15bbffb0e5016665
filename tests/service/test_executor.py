"""The process that runs circuits: cut off, cancelled, killed; and the worker goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psutil
import pytest

from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import ServiceError
from qpeft.service.workers.executor import ExecutorProcess
from qpeft.service.workers.messages import FinishedJob, LeaseAnswer, LeasedJob, LeasedProgram

RY = Circuit(1, (Op("ry", (0,), Angle(0)),), 1, 1)
LONG = Circuit(20, tuple(Op("ry", (q % 20,), Angle(0)) for q in range(4000)), 1, 1)
"""Minutes in native code."""


class Context:
    """A worker as its devices see it."""

    worker, max_result_bytes = "w", 1 << 20

    def __init__(self, max_job_s: float = 60.0) -> None:
        self.max_job_s = max_job_s
        self.cancelled: set[int] = set()

    def call(self, path: str, content: Any, kind: Any) -> Any:
        raise AssertionError(path)

    def calibration(self, device: str, name: str) -> bytes:
        raise AssertionError(name)

    def stopping(self) -> bool:
        return False

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def occupy(self, places: object) -> None:
        pass

    def still_held(self, jobs: Sequence[LeasedJob]) -> list[LeasedJob]:
        return [job for job in jobs if job.seq not in self.cancelled]


def lease(*circuits: Circuit) -> LeaseAnswer:
    programs = {circuit.id: LeasedProgram(format="qpeft.circuit", text=circuit.to_json().encode()) for circuit in circuits}
    jobs = [
        LeasedJob(
            seq=number, attempt=1, owner="u", program=circuit.id, params=np.array([0.3]).tobytes(), rows=1, shots=None, seed=None,
            output="expectations", observables=None, exclusive=False, estimate_s=0.0,
        )
        for number, circuit in enumerate(circuits)
    ]  # fmt: skip
    return LeaseAnswer(device="simulator", jobs=jobs, programs=programs, drop=[])


@pytest.fixture
def process() -> Iterator[ExecutorProcess]:
    made = ExecutorProcess(["simulator"])
    yield made
    made.close()


def run(process: ExecutorProcess, given: LeaseAnswer, context: Context) -> dict[int, FinishedJob]:
    return {one.seq: one for part in process.run("simulator", given, given.jobs, context) for one in part}


def test_a_job_that_runs_too_long_is_cut_off_alone(process: ExecutorProcess) -> None:
    ended = run(process, lease(RY, LONG, RY), Context(max_job_s=2.0))
    assert ended[0].payload is not None
    assert ended[2].payload is not None
    assert "cut off after" in ended[1].reason
    assert "bound 2 s" in ended[1].reason
    assert ended[1].device_s >= 2.0


def test_cancelling_ends_native_code(process: ExecutorProcess) -> None:
    context = Context()
    threading.Timer(1.0, lambda: context.cancelled.add(0)).start()
    start = time.monotonic()
    ended = run(process, lease(LONG, RY), context)
    assert time.monotonic() - start < 30
    assert (ended[0].payload, ended[0].reason) == (None, "cancelled")
    assert ended[1].payload is not None


def test_a_process_that_is_killed_takes_only_what_it_ran(process: ExecutorProcess) -> None:
    def kill() -> None:
        assert process._process is not None
        os.kill(process._process.pid, signal.SIGKILL)

    threading.Timer(1.5, kill).start()
    ended = run(process, lease(RY, LONG, RY), Context())
    assert ended[1].released
    assert "ended with status -9" in ended[1].reason
    assert ended[0].payload is not None
    assert ended[2].payload is not None


def test_the_process_has_no_key(process: ExecutorProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QPEFT_SERVICE_KEY", "qk_secret")
    other = ExecutorProcess(["simulator"])
    try:
        assert other._process is not None
        assert "qk_secret" not in psutil.Process(other._process.pid).environ().values()
    finally:
        other.close()


def test_a_device_that_cannot_be_opened_says_why() -> None:
    with pytest.raises(ServiceError, match="unknown backend"):
        ExecutorProcess(["nope"])
