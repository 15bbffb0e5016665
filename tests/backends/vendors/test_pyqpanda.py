"""The real pyqpanda3 client against a cloud on loopback that runs what it is sent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qpeft.backends.executor import BackendExecutor
from qpeft.backends.registry import get_backend
from qpeft.backends.simulator import SimulatorBackend
from qpeft.backends.spending.budget import Budget
from qpeft.backends.spending.journal import Journal
from qpeft.backends.spending.submission import NotSentError
from qpeft.backends.vendors.keys import Secret
from qpeft.backends.vendors.pyqpanda import Cloud
from qpeft.backends.vendors.pyqpanda_client import SdkClient
from qpeft.circuits import ansatz
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import BackendError, BudgetError, JobError
from tests.backends.origin_cloud import FAILED, FakeOriginCloud

pytest.importorskip("pyqpanda3")

KEY = "a-secret-key-0123"
Connect = Callable[..., Cloud]
CIRCUIT = Circuit(3, (Op("x", (0,)), Op("ry", (1,), Angle(0)), Op("crx", (1, 2), Angle(1))), 0, 2)
ROWS = np.random.default_rng(0).normal(size=(3, 2))
SHOTS = 2000


@pytest.fixture(scope="module")
def server() -> Iterator[FakeOriginCloud]:
    with FakeOriginCloud(KEY) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: FakeOriginCloud) -> Iterator[SdkClient]:
    """One process of the SDK for the tests that do not end it: starting it takes a second, for matplotlib that it imports."""
    shared = SdkClient(Secret(KEY), server.url, 20.0)
    yield shared
    shared.close()


@pytest.fixture
def cloud(server: FakeOriginCloud) -> FakeOriginCloud:
    server.reset()
    server.states, server.key, server.backend = server.states[:1], KEY, SimulatorBackend()
    return server


@pytest.fixture
def connect(cloud: FakeOriginCloud, client: SdkClient, tmp_path: Path) -> Iterator[Callable[..., Cloud]]:
    """Opens backends with the journal `jobs.jsonl`; the one before lets go of it, as when a process has ended."""
    opened: list[Cloud] = []

    def connect(**options: Any) -> Cloud:
        for backend in opened:
            backend.journal.close()
        settings = {
            "journal": tmp_path / "jobs.jsonl",
            "api_key": KEY,
            "url": cloud.url,
            "poll_s": 0.01,
            "client": client,
            **options,
        }
        backend = get_backend("pyqpanda:72", **settings)
        assert isinstance(backend, Cloud)
        opened.append(backend)
        return backend

    yield connect
    for backend in opened:
        backend.journal.close()


def close_to_exact(counts: Any, rows: np.ndarray, circuit: Circuit = CIRCUIT, shots: int = SHOTS) -> None:
    """Every frequency within 6 standard deviations of its probability."""
    exact = SimulatorBackend().compile(circuit).run(rows, None).probabilities()
    assert (np.abs(counts.probabilities() - exact) <= 6 * np.sqrt(exact * (1 - exact) / shots) + 1e-7).all()


def test_runs_with_bits_in_order_and_keeps_a_snapshot(cloud: FakeOriginCloud, tmp_path: Path, connect: Connect) -> None:
    backend = connect()
    counts = backend.compile(CIRCUIT).run(ROWS, SHOTS)
    close_to_exact(counts, ROWS)
    assert counts.expectations()[:, 0] == pytest.approx([-1, -1, -1])
    (body,) = [body for route, body in cloud.requests if route == "origin/submit.json"]
    assert (body["ChipID"], body["Configuration"]["amendFlag"], body["Configuration"]["shot"]) == ("72", 0, SHOTS)
    lines = [json.loads(line) for line in (tmp_path / "jobs.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["intent", "sent", "done"]
    assert lines[0]["snapshot"]["QubitCount"] == 6
    assert KEY not in (tmp_path / "jobs.jsonl").read_text()


def test_a_noisy_chip_behind_the_cloud(cloud: FakeOriginCloud, connect: Connect) -> None:
    """The stand-in runs programs on the emulated Wukong-72: what comes back follows that distribution and not the noiseless one."""
    cloud.backend = emulator = get_backend("emulator:wukong-72")
    counts = connect().compile(CIRCUIT).run(ROWS, 20_000)
    noisy = np.concatenate(
        [emulator.compile(CIRCUIT.bind(row.tolist())).run(np.empty((1, 0)), None).probabilities() for row in ROWS]
    )
    assert (np.abs(counts.probabilities() - noisy) <= 6 * np.sqrt(noisy * (1 - noisy) / 20_000)).all()
    exact = SimulatorBackend().compile(CIRCUIT).run(ROWS, None).probabilities()
    assert np.abs(counts.probabilities() - exact).max() > 0.05


def test_450_circuits_are_three_jobs(cloud: FakeOriginCloud, tmp_path: Path, connect: Connect) -> None:
    backend = connect()
    rows = np.linspace(0, 3, 900).reshape(450, 2)
    counts = backend.compile(CIRCUIT).run(rows, 100)
    assert [len(job["programs"]) for job in cloud.jobs.values()] == [200, 200, 50]
    exact = SimulatorBackend().compile(CIRCUIT).run(rows, None).expectations()
    error = (counts.expectations() - exact) / np.sqrt(np.maximum(1 - exact**2, 1e-9) / 100)
    assert np.abs(error[:, 1:].mean(axis=0)).max() < 5 / np.sqrt(450)  # standardised errors have mean 0 and variance 1


def test_the_executor_pays_once_for_equal_rows(cloud: FakeOriginCloud, tmp_path: Path, connect: Connect) -> None:
    import torch

    executor = BackendExecutor(connect(), 100)
    run = executor.compile(ansatz.qtha(2, 1))
    run(torch.zeros(30, 2), torch.zeros(8))
    assert (cloud.circuits, executor.ledger.spent.circuits, executor.ledger.deduplicated) == (1, 1, 29)


def test_empty_batch_sends_nothing(cloud: FakeOriginCloud, tmp_path: Path, connect: Connect) -> None:
    counts = connect().compile(CIRCUIT).run(np.empty((0, 2)), 100)
    assert (len(counts), cloud.jobs) == (0, {})


def test_server_corrects_readout_only_when_asked(cloud: FakeOriginCloud, tmp_path: Path, connect: Connect) -> None:
    backend = connect(readout_correction="server")
    close_to_exact(backend.compile(CIRCUIT).run(ROWS, SHOTS), ROWS)
    assert backend.corrects_readout
    assert next(iter(cloud.jobs.values()))["body"]["Configuration"]["amendFlag"] == 1


def test_failed_job(cloud: FakeOriginCloud, tmp_path: Path, connect: Connect) -> None:
    cloud.fail = True
    backend = connect()
    with pytest.raises(JobError, match="failed") as caught:
        backend.compile(CIRCUIT).run(ROWS, 100)
    assert caught.value.job in cloud.jobs
    assert FAILED == "4"


def test_wrong_key_is_said_and_not_shown(cloud: FakeOriginCloud, tmp_path: Path, connect: Connect) -> None:
    with pytest.raises(BackendError, match="401") as caught:
        connect(api_key="not-the-key", client=None)
    assert "not-the-key" not in str(caught.value)
    assert "not-the-key" not in repr(caught.value.__cause__)
    backend = connect()
    cloud.key = "changed"
    with pytest.raises(BackendError, match="401"):
        backend.compile(CIRCUIT).run(ROWS, 100)
    assert not cloud.jobs
    assert KEY not in repr(backend) + repr(vars(backend)) + repr(vars(backend.client))


def test_a_server_that_echoes_the_key_does_not_leak_it(cloud: FakeOriginCloud, tmp_path: Path, connect: Connect) -> None:
    backend = connect()
    cloud.refuse_submits, cloud.refusal = 1, f"key {KEY} has no quota"
    with pytest.raises(JobError, match=r"key \*\*\* has no quota") as caught:
        backend.compile(CIRCUIT).run(ROWS, 100)
    assert KEY not in str(caught.value)
    assert KEY not in (tmp_path / "jobs.jsonl").read_text()
    assert backend.journal.spent.circuits == 0


def test_connection_dropped_in_mid_poll(
    cloud: FakeOriginCloud, tmp_path: Path, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    backend = connect()
    cloud.drop_polls = 3  # the SDK tries a poll three times itself
    close_to_exact(backend.compile(CIRCUIT).run(ROWS, SHOTS), ROWS)
    assert cloud.drop_polls == 0
    assert len(cloud.jobs) == 1
    assert "asking again" in caplog.text


def test_a_lost_reply_to_a_submission_is_never_repeated(cloud: FakeOriginCloud, tmp_path: Path, connect: Connect) -> None:
    backend = connect()
    cloud.drop_submits = 1
    with pytest.raises(JobError, match="may or may not"):
        backend.compile(CIRCUIT).run(ROWS, SHOTS)
    assert len(cloud.jobs) == 1
    again = connect()
    with pytest.raises(JobError, match="may or may not") as caught:
        again.compile(CIRCUIT).run(ROWS, SHOTS)
    assert len(cloud.jobs) == 1
    assert again.journal.spent.circuits == len(ROWS)
    again.journal.resolve(str(caught.value.value), next(iter(cloud.jobs)))
    close_to_exact(connect().compile(CIRCUIT).run(ROWS, SHOTS), ROWS)
    assert len(cloud.jobs) == 1


@pytest.mark.parametrize(
    "words",
    [
        "unknown error.",
        "排队超限",
        "insufficient balance",
        "Failed to connect to the chip",
        "the scheduler answered with status 401",
    ],
)
def test_an_unknown_wording_is_never_taken_for_not_sent(cloud: FakeOriginCloud, connect: Connect, words: str) -> None:
    """The vendor has taken the job and is paid for it, and answers with an error that we do not know."""
    backend = connect()
    cloud.garble_submits, cloud.refusal = 1, words
    for _ in range(3):
        with pytest.raises(JobError, match="may or may not"):
            backend.compile(CIRCUIT).run(ROWS, SHOTS)
    assert len(cloud.jobs) == 1
    assert backend.journal.spent.circuits == len(ROWS)


def test_a_program_that_cannot_be_read_was_not_sent(cloud: FakeOriginCloud, client: SdkClient) -> None:
    payload = {"chip": "72", "programs": ["QINIT nonsense"], "shots": 10, "amend": False, "mapping": True}
    with pytest.raises(NotSentError):
        client.submit({**payload, "optimization": True, "block": []}, "tag")
    assert not cloud.jobs


def test_the_journals_name_of_a_job_reaches_the_vendors_pages(cloud: FakeOriginCloud, connect: Connect) -> None:
    backend = connect()
    backend.compile(CIRCUIT).run(ROWS, SHOTS)
    (job,), (key,) = cloud.jobs.values(), backend.journal.entries
    assert key in json.dumps(job["body"])


def test_an_intent_that_never_arrived_is_sent_when_that_is_said(cloud: FakeOriginCloud, connect: Connect) -> None:
    backend = connect()
    cloud.swallow_submits = 1
    with pytest.raises(JobError, match="may or may not") as caught:
        backend.compile(CIRCUIT).run(ROWS, SHOTS)
    key = str(caught.value.value)
    backend.journal.resolve(key, None)
    assert backend.journal.spent.circuits == 0
    with pytest.raises(JobError, match="no such open intent"):
        backend.journal.resolve(key, None)
    close_to_exact(connect().compile(CIRCUIT).run(ROWS, SHOTS), ROWS)
    assert len(cloud.jobs) == 1


def test_a_submission_that_takes_too_long_is_ended_and_not_repeated(cloud: FakeOriginCloud, connect: Connect) -> None:
    backend = connect(client=None)
    cloud.slow_submit_s = 1.0
    backend.client.timeout_s = 0.3
    with pytest.raises(JobError, match="may or may not") as caught:
        backend.compile(CIRCUIT).run(ROWS, SHOTS)
    while not cloud.jobs:  # it did arrive
        time.sleep(0.02)
    backend.client.close()
    again = connect()
    again.journal.resolve(str(caught.value.value), next(iter(cloud.jobs)))
    close_to_exact(again.compile(CIRCUIT).run(ROWS, SHOTS), ROWS)
    assert len(cloud.jobs) == 1


def test_silence_ends_in_an_error_that_keeps_the_job(cloud: FakeOriginCloud, tmp_path: Path, connect: Connect) -> None:
    backend = connect(timeout_s=0.05)
    cloud.states = ["1"] * 1000
    with pytest.raises(JobError, match="not finished") as caught:
        backend.compile(CIRCUIT).run(ROWS, SHOTS)
    cloud.states = []
    close_to_exact(connect().compile(CIRCUIT).run(ROWS, SHOTS), ROWS)
    assert list(cloud.jobs) == [caught.value.job]


def test_cancel(cloud: FakeOriginCloud, tmp_path: Path, connect: Connect) -> None:
    backend = connect(timeout_s=0.05)
    cloud.states = ["1"] * 1000
    with pytest.raises(JobError, match="not finished"):
        backend.compile(CIRCUIT).run(ROWS, SHOTS)
    assert backend.cancel() == list(cloud.jobs) == cloud.cancelled
    assert backend.cancel() == []


def test_a_killed_process_attaches_again_and_pays_once(cloud: FakeOriginCloud, tmp_path: Path, connect: Connect) -> None:
    """The client is killed while its second job of two waits; started again, it gets both results and sends nothing."""
    cloud.states = ["1"] * 2
    script = f"""
import json, numpy as np
from qpeft.circuits.ir import Circuit
from qpeft.backends.registry import get_backend
CIRCUIT = Circuit.from_dict(json.loads({json.dumps(CIRCUIT.to_dict())!r}))
backend = get_backend("pyqpanda:72", journal={str(tmp_path / "jobs.jsonl")!r}, url={cloud.url!r}, poll_s=0.05)
compiled = backend.compile(CIRCUIT)
first = compiled.run(np.full((2, 2), 0.3), 500)
print("first", flush=True)
second = compiled.run(np.full((3, 2), 0.7), 500)
print(first.probabilities().tolist(), second.probabilities().tolist(), flush=True)
backend.close()
"""
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "PYQPANDA_API_KEY": KEY, "PYTHONPATH": os.pathsep.join(["src", "."]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "first\n"
    cloud.states = ["1"] * 10_000
    deadline = time.monotonic() + 60
    while len(cloud.jobs) < 2 or next(reversed(cloud.jobs.values()))["polls"] < 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    cloud.states = []
    finished = subprocess.run(command, capture_output=True, env=environment, text=True, timeout=100)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("first\n[[")
    assert [len(job["programs"]) for job in cloud.jobs.values()] == [2, 3]
    with Journal(tmp_path / "jobs.jsonl") as journal:
        assert journal.spent.circuits == 5


def test_budget_is_checked_before_anything_is_sent(cloud: FakeOriginCloud, tmp_path: Path, connect: Connect) -> None:
    backend = connect(budget=Budget(shots=1000))
    compiled = backend.compile(CIRCUIT)
    with pytest.raises(BudgetError, match=r"6,000 shots'; allowed: 1,000 left"):
        compiled.run(ROWS, 2000)
    assert not cloud.jobs
    compiled.run(ROWS, 300)
    again = connect(budget=Budget(shots=1000)).compile(CIRCUIT)
    with pytest.raises(BudgetError, match="allowed: 100 left"):  # what was spent is remembered
        again.run(ROWS + 1, 300)


def test_unknown_and_offline_chips(cloud: FakeOriginCloud, tmp_path: Path) -> None:
    for name, words in (("origin_wukong", "no such chip"), ("WK_C180_2", "offline")):
        with pytest.raises(BackendError, match=words):
            get_backend(f"pyqpanda:{name}", journal=tmp_path / "jobs.jsonl", api_key=KEY, url=cloud.url)
    assert not (tmp_path / "jobs.jsonl").exists()


def test_chip_info_gives_a_chip(cloud: FakeOriginCloud, tmp_path: Path, connect: Connect) -> None:
    backend = connect()
    theirs, ours = cloud.chip_info, backend.chip_info
    assert ours["QubitCount"] == theirs["QubitCount"]
    assert ours["AvailableQubits"] == theirs["AvailableQubits"]
    edges = {(int(a), e["v"]): e["w"] for a, row in ours["adjMatrix"].items() for e in row}
    assert edges == {(int(a), e["v"]): e["w"] for a, row in theirs["adjMatrix"].items() for e in row}
    before = backend.calibration
    cloud.chip_info["QubitParams"][0]["T1"] = 9.0
    backend.compile(CIRCUIT).run(ROWS, 10)
    assert backend.calibration != before
