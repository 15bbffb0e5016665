"""Forwarding to a vendor: the real pyqpanda3 client, real processes, the stand-in cloud that runs what it is sent and counts it.

Nothing is ever paid twice, whoever is killed and whenever.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from qpeft.backends.simulator import SimulatorBackend
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import ServiceError
from qpeft.service.client import Client
from qpeft.service.ids import new_id
from qpeft.service.store import leases
from qpeft.service.vendor import tasks as vendor_tasks
from tests.backends.origin_cloud import FakeOriginCloud
from tests.service.checks import audit_database, until
from tests.service.conftest import STORES, database_arguments
from tests.service.engine import Engine
from tests.service.processes import Process, Server
from tests.service.proxy import Proxy

pytest.importorskip("pyqpanda3")

DEVICE, VENDOR_KEY, SHOTS = "pyqpanda:72", "vendors-secret-77", 4000
CIRCUIT = Circuit(3, (Op("ry", (0,), Angle(0)), Op("cx", (0, 2)), Op("x", (1,))), 1, 1)
INTENT, NEWS, COMPLETE = "/v1/worker/vendor/intent", "/v1/worker/vendor/update", "/v1/worker/complete"


class Place:
    """A service with a vendor's chip, the vendor, and workers that are started and killed by tests."""

    def __init__(self, folder: Path, database: list[str], **environment: str) -> None:
        self.cloud = FakeOriginCloud(VENDOR_KEY).__enter__()
        self.cloud.states = ["1"]
        environment = {"QPEFT_SERVICE_USER_VENDOR_SHOTS": "1000000", **environment}
        self.server = Server(folder, "--executors", "0", *database, devices=(DEVICE,), environment=environment).start()
        self.proxy = Proxy(self.server.port).__enter__()
        self.key = self.server.new_key("workers", "worker")
        self.client: Client = self.server.client()
        self.workers: list[Process] = []

    def worker(self) -> Process:
        """A new one, which takes over from the one before."""
        arguments = json.dumps({"url": self.proxy.url, "devices": [DEVICE], "name": "vendor"})
        keys = {"QPEFT_SERVICE_KEY": self.key, "PYQPANDA_API_KEY": VENDOR_KEY, "PYQPANDA_URL": self.cloud.url}
        command = [sys.executable, "-m", "qpeft.service.worker", arguments]
        self.workers.append(Process(command, self.server.folder / "worker.log", keys))
        return self.workers[-1]

    def submit(self, angle: float = 0.7) -> str:
        return str(self.client.submit(CIRCUIT, device=DEVICE, params=[angle], shots=SHOTS)["id"])

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.proxy.__exit__()
        self.server.close()
        self.server.kill()
        self.cloud.__exit__()


@pytest.fixture(params=STORES)
def make_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Place]]:
    made: list[Place] = []

    def make(**environment: str) -> Place:
        made.append(Place(tmp_path, database_arguments(request, request.param), **environment))
        return made[-1]

    yield make
    for place in made:
        place.close()


def is_right(counts: dict[str, int], angle: float) -> bool:
    """Within 6 standard deviations of the circuit's own distribution."""
    exact = SimulatorBackend().compile(CIRCUIT).run(np.array([[angle]]), None).probabilities()[0]
    seen = np.array([counts.get(f"{word:03b}", 0) for word in range(8)]) / SHOTS
    return bool((np.abs(seen - exact) <= 6 * np.sqrt(exact * (1 - exact) / SHOTS) + 1e-9).all())


def succeeded_once(place: Place, job: str, angle: float = 0.7) -> None:
    assert is_right(place.client.result(job, timeout_s=40)["counts"][0], angle)
    assert place.cloud.circuits == 1
    audit_database(place.server.database_url, 1)


def test_jobs_of_many_users_are_one_task(make_place: Callable[..., Place]) -> None:
    place = make_place()
    other = place.server.client(place.server.new_key("other"))
    mine = [place.submit(angle) for angle in (0.2, 1.1)]
    sweep = other.submit_sweep(CIRCUIT, [[0.4], [2.0], [3.0]], device=DEVICE, shots=SHOTS, output="counts")
    qasm = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; x q[1];'
    theirs = other.submit(qasm, device=DEVICE, shots=SHOTS, output="expectations")["id"]
    words = [[[1.0, [[0, "X"]]]]]  # what this vendor cannot measure
    bad = other.submit(qasm, device=DEVICE, shots=SHOTS, output="expectations", observables=words)["id"]
    place.worker()
    for job, angle in zip(mine, (0.2, 1.1), strict=True):
        assert is_right(place.client.result(job, timeout_s=60)["counts"][0], angle)
    found = [counts for line in other.results(sweep["id"]) for counts in line["counts"]]
    assert [is_right(counts, angle) for counts, angle in zip(found, (0.4, 2.0, 3.0), strict=True)] == [True] * 3
    assert other.result(theirs)["expectations"] == [[1.0, -1.0]]
    assert other.wait(bad)["state"] == "failed"
    (task,) = place.client.vendor_tasks()
    assert (task["state"], task["circuits"], task["shots"]) == ("sent", 6, 6 * SHOTS)
    assert list(place.cloud.jobs) == [task["vendor_job"]]
    assert place.cloud.jobs[task["vendor_job"]]["body"]["batchNo"] == task["id"]
    job = place.client.job(mine[0])
    assert job["device_s"] == pytest.approx(SHOTS * 100e-6)
    calibration = place.client.calibration(DEVICE)
    assert calibration["id"] == job["calibration"] == task["calibration"]
    assert len(calibration["data"]["qubits"]) == 6
    with pytest.raises(ServiceError, match="scope"):
        other.vendor_tasks()
    logs = "".join(path.read_text() for path in place.server.folder.glob("*.log"))
    assert VENDOR_KEY not in logs


def kill_at(place: Place, point: str) -> Process:
    """Have the worker killed at a point of forwarding its first job."""
    worker = place.worker()
    if point == "the vendor took it":
        submit = place.cloud.submit

        def taken(body: dict[str, Any]) -> dict[str, Any]:
            answer = submit(body)
            worker.kill()
            return answer

        place.cloud.submit = taken  # type: ignore[method-assign]
    else:
        when, path = point.split(" ")
        getattr(place.proxy, when)[{"intent": INTENT, "news": NEWS, "complete": COMPLETE}[path]] = worker.kill
    return worker


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before intent", "after news", "before complete", "after complete"])
def test_a_worker_killed_where_its_successor_knows_what_to_do(make_place: Callable[..., Place], point: str) -> None:
    place = make_place()
    killed = kill_at(place, point)
    job = place.submit()
    assert killed.popen.wait(30) == -9
    place.worker()
    succeeded_once(place, job)


@pytest.mark.parametrize(
    ("point", "arrived"),
    [pytest.param("after intent", False, marks=pytest.mark.slow), ("the vendor took it", True),
     pytest.param("before news", True, marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_worker_killed_where_nobody_can_know_waits_for_a_word(
    make_place: Callable[..., Place], point: str, arrived: bool
) -> None:
    place = make_place()
    killed = kill_at(place, point)
    job = place.submit()
    assert killed.popen.wait(30) == -9
    assert len(place.cloud.jobs) == arrived
    place.worker()
    until(lambda: place.client.job(job)["attempt"] == 2)
    time.sleep(2.5)
    assert len(place.cloud.jobs) == arrived
    (task,) = place.client.vendor_tasks("intent")
    at_vendor = next((name for name, one in place.cloud.jobs.items() if one["body"]["batchNo"] == task["id"]), None)
    place.client.resolve_vendor_task(task["id"], at_vendor)
    succeeded_once(place, job)
    with pytest.raises(ServiceError, match="needs no resolving"):
        place.client.resolve_vendor_task(task["id"], None)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["drop_submits", "swallow_submits"])
def test_a_submission_without_an_answer_is_not_repeated(make_place: Callable[..., Place], fault: str) -> None:
    place = make_place()
    setattr(place.cloud, fault, 1)
    job = place.submit()
    place.worker()
    until(lambda: "cut off" in (place.client.vendor_tasks("intent") or [{"reason": ""}])[0]["reason"], 60)
    time.sleep(2)
    assert len(place.cloud.jobs) == (fault == "drop_submits")
    (task,) = place.client.vendor_tasks("intent")
    place.client.resolve_vendor_task(task["id"], next(iter(place.cloud.jobs), None))
    succeeded_once(place, job)


def test_an_unresolved_task_blocks_itself_alone(make_place: Callable[..., Place]) -> None:
    """Its job waits without a worker; others' jobs on the device run; a metric counts it; what is cancelled meanwhile ends."""
    place = make_place()
    place.cloud.swallow_submits = 1
    stuck, cancelled = place.submit(), place.submit()
    place.worker()
    until(lambda: "administrator" in place.client.job(stuck)["reason"], 60)
    assert is_right(place.client.result(place.submit(1.1), timeout_s=40)["counts"][0], 1.1)
    assert place.client.job(stuck)["state"] == "running"
    until(lambda: "qpeft_vendor_tasks_unresolved 1.0" in httpx.get(f"{place.server.url}/metrics", timeout=10).text)
    place.client.cancel(cancelled)
    assert place.client.wait(cancelled, timeout_s=20)["state"] == "cancelled"
    (task,) = place.client.vendor_tasks("intent")
    place.client.resolve_vendor_task(task["id"], None)
    assert is_right(place.client.result(stuck, timeout_s=40)["counts"][0], 0.7)
    assert place.cloud.circuits == 2
    assert place.client.usage()["open_circuits"] == 0


@pytest.mark.slow
def test_the_api_killed_after_the_intents_commit(make_place: Callable[..., Place]) -> None:
    place = make_place()

    def crash() -> None:
        place.server.kill()
        place.server.start()

    place.proxy.after[INTENT] = crash
    job = place.submit()
    place.worker()
    succeeded_once(place, job)
    assert [task["state"] for task in place.client.vendor_tasks()] == ["sent"]


@pytest.mark.slow
def test_what_the_vendor_refuses_costs_nothing(make_place: Callable[..., Place]) -> None:
    place = make_place(QPEFT_SERVICE_MAX_VENDOR_SHOTS=str(2 * SHOTS))
    place.cloud.refuse_submits = 1
    job = place.submit()
    place.worker()
    succeeded_once(place, job)
    assert [task["state"] for task in place.client.vendor_tasks()] == ["sent", "refused"]
    place.cloud.refuse_submits = 99
    refused = place.client.wait(place.submit(), timeout_s=40)
    assert refused["state"] == "failed"
    assert "no such configuration" in refused["reason"]
    place.cloud.refuse_submits = 0
    assert place.client.wait(place.submit(), timeout_s=40)["state"] == "succeeded"
    beyond = place.client.wait(place.submit(), timeout_s=40)
    assert "budget" in beyond["reason"]
    assert place.cloud.circuits == 2


@pytest.mark.slow
def test_a_user_spends_no_more_than_he_may(make_place: Callable[..., Place]) -> None:
    """Reserved at submission, given back by what was never sent, gone with what was."""
    place = make_place(QPEFT_SERVICE_USER_VENDOR_SHOTS="0")
    user = place.server.client(place.server.new_key("spender"))
    with pytest.raises(ServiceError, match="costs money"):
        user.submit(CIRCUIT, device=DEVICE, params=[0.7], shots=SHOTS)
    place.client.set_user("spender", max_vendor_shots=2 * SHOTS)
    jobs = [user.submit(CIRCUIT, device=DEVICE, params=[0.7], shots=SHOTS)["id"] for _ in range(2)]
    with pytest.raises(ServiceError, match="costs money"):
        user.submit(CIRCUIT, device=DEVICE, params=[0.7], shots=1)
    user.cancel(jobs[1])
    assert user.usage()["vendor_shots"] == SHOTS
    place.worker()
    user.result(jobs[0], timeout_s=60)
    assert user.usage()["vendor_shots"] == SHOTS
    assert place.cloud.circuits == 1


@pytest.mark.slow
def test_jobs_wait_for_a_vendor_that_is_away(make_place: Callable[..., Place]) -> None:
    place = make_place()
    place.worker()
    until(lambda: place.client.devices()[0]["workers"] == 1)
    told, place.cloud.chip_info = place.cloud.chip_info, {}
    job = place.submit()
    until(lambda: "jobs wait for it" in (place.server.folder / "worker.log").read_text())
    time.sleep(2)
    assert place.client.job(job)["state"] == "running"
    place.cloud.chip_info = told
    succeeded_once(place, job)
    assert place.client.job(job)["attempt"] == 1


@pytest.mark.slow
def test_cancelling_reaches_the_vendor(make_place: Callable[..., Place]) -> None:
    place = make_place()
    place.cloud.states = ["1"] * 10_000
    job = place.submit()
    place.worker()
    until(lambda: len(place.client.vendor_tasks("sent")) == 1)
    place.client.cancel(job)
    assert place.client.wait(job, timeout_s=40)["state"] == "cancelled"
    assert place.cloud.cancelled == list(place.cloud.jobs)


MALFORMED = [
    {"probCount": ["no json"], "taskResult": ["no json"]},  # pyqpanda3 itself cannot read it, however often it is asked
    {"probCount": [], "taskResult": []},
    {"probCount": ['{"key": ["0x0"], "value": [-4000]}'], "taskResult": ['{"key": ["0x0"], "value": [-1.0]}']},
    {"taskState": "99"},
]


@pytest.mark.slow
def test_a_malformed_answer_fails_its_job_and_not_the_worker(make_place: Callable[..., Place]) -> None:
    place = make_place()
    worker = place.worker()
    right = place.cloud.detail
    for number, wrong in enumerate(MALFORMED):

        def detail(body: dict[str, Any], wrong: dict[str, Any] = wrong) -> dict[str, Any]:
            told = right(body)
            told["obj"].update(wrong if told["obj"]["taskState"] == "3" else {})
            return told

        place.cloud.detail = detail  # type: ignore[method-assign]
        job = place.client.wait(place.submit(0.1 * number), timeout_s=60)
        assert (job["state"], job["attempt"]) == ("failed", 1), (wrong, job)
        assert job["reason"], wrong
    place.cloud.detail = right  # type: ignore[method-assign]
    assert is_right(place.client.result(place.submit(), timeout_s=40)["counts"][0], 0.7)
    assert worker.popen.poll() is None
    assert len(place.cloud.jobs) == len(MALFORMED) + 1  # none was sent twice


def forwarded(engine: Engine) -> tuple[str, str, leases.LeaseCommand]:
    """A job that is with the vendor: its owner, task, and the request that leased it."""
    owner = engine.user("u")
    engine.submit(engine.submission(owner))
    worker = engine.hello(owner)
    (job,) = engine.lease(worker, owner).jobs
    intent = vendor_tasks.Intent(worker, owner, new_id("t"), "simulator", 100, ((job.seq, job.attempt, 1),))
    operation = vendor_tasks.RecordIntent(engine.settings)
    assert engine.writer.call_sync(operation, intent) == intent.task
    assert engine.writer.call_sync(operation, intent) == intent.task  # the same once more
    other = vendor_tasks.Intent(worker, owner, new_id("t"), "simulator", 100, ((job.seq, job.attempt, 1),))
    with pytest.raises(ServiceError, match="with the vendor already"):
        engine._value(engine.writer.call_sync(operation, other))
    news = vendor_tasks.VendorTaskUpdate(intent.task, "sent", "V1", "")
    assert engine.writer.call_sync(vendor_tasks.settle, news) == "sent"
    return owner, intent.task, leases.LeaseCommand(worker, owner, ("simulator",), (), 1)


def test_paid_work_outlives_any_number_of_workers(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(max_attempts=2)
    owner, _, request = forwarded(engine)
    worker = request.worker
    for attempt in range(2, 6):
        engine.lose(worker)
        worker = engine.hello(owner)
        (job,) = engine.lease(worker, owner).jobs
        assert job.attempt == attempt
    assert engine.complete(worker, owner, [leases.JobOutcome(job.seq, job.attempt, b"r", "", 0.0, None)]) == [True]


def test_the_schema_is_not_taken_back_under_paid_work(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    forwarded(engine)
    with pytest.raises(RuntimeError, match="1 unfinished jobs are with a vendor"):
        engine.database.migrate("0004")
    assert engine.queries.vendor_tasks(None, 10)[0].vendor_job == "V1"
