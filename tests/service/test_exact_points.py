"""Killed at exact points: a proxy stops the world before a call is seen, or when it is committed and not yet answered."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from qpeft.service.client import Client, Retries
from tests.service.checks import RY, audit_database, until
from tests.service.processes import Process, Server
from tests.service.proxy import Proxy

POLL_S = 2.0  # a worker's request for work waits as long: half of the lease
LEASE, COMPLETE, JOBS = "/v1/worker/lease", "/v1/worker/complete", "/v1/jobs"


class Place:
    """A service, a proxy before it, and one named worker at a time behind the proxy."""

    def __init__(self, server: Server) -> None:
        self.server, self.proxy = server, Proxy(server.port).__enter__()
        self.client = server.client()
        self.key = server.new_key("workers", "worker")
        self.workers: list[Process] = []

    def worker(self) -> Process:
        arguments = json.dumps({"url": self.proxy.url, "devices": ["simulator"], "name": "one"})
        command = [sys.executable, "-m", "qpeft.service.worker", arguments]
        self.workers.append(Process(command, self.server.folder / "worker.log", {"QPEFT_SERVICE_KEY": self.key}))
        return self.workers[-1]

    def crash(self) -> None:
        """kill -9 of the API, and its next start."""
        self.server.kill()
        self.server.start()

    def submit(self) -> str:
        return str(self.client.submit(RY, device="simulator", params=[0.3], output="expectations")["id"])

    def ended(self, job: str) -> int:
        """Its attempts, once it has succeeded and the database holds it once."""
        done = self.client.wait(job, timeout_s=40)
        assert done["state"] == "succeeded", done
        until(lambda: self.client.usage()["open_circuits"] == 0)
        audit_database(self.server.database_url, len(self.client.jobs(limit=1000)))
        return int(done["attempt"])


@pytest.fixture
def place(fresh_server: Callable[..., Server]) -> Iterator[Place]:
    made = Place(fresh_server("--executors", "0", environment={"QPEFT_SERVICE_LEASE_S": str(2 * POLL_S)}))
    yield made
    for worker in made.workers:
        worker.kill()
    made.proxy.__exit__()


def test_a_worker_killed_around_its_calls(place: Place) -> None:
    """Before a lease is seen, when it is committed, before its results are seen, and when they are committed."""
    for when, path, attempts in (("before", LEASE, 1), ("after", LEASE, 2), ("before", COMPLETE, 2), ("after", COMPLETE, 1)):
        job = place.submit()
        worker = place.worker()
        getattr(place.proxy, when)[path] = worker.kill
        assert worker.popen.wait(30) == -9
        successor = place.worker()
        assert place.ended(job) == attempts, (when, path)
        successor.kill()
        time.sleep(POLL_S + 0.2)  # its last request, which the proxy still holds open, must not be given the next job


@pytest.mark.slow
def test_answers_lost_on_the_way_to_a_worker_that_lives(place: Place) -> None:
    job = place.submit()
    place.proxy.after[LEASE] = place.proxy.after[COMPLETE] = lambda: None
    place.worker()
    assert place.ended(job) == 2
    assert not place.proxy.after


@pytest.mark.slow
def test_the_api_killed_around_a_workers_calls(place: Place) -> None:
    place.worker()
    for when, path in (("before", COMPLETE), ("after", COMPLETE), ("after", LEASE)):
        until(lambda: place.client.devices()[0]["workers"] == 1)
        getattr(place.proxy, when)[path] = place.crash
        assert place.ended(place.submit()) <= 2, (when, path)
        assert path not in getattr(place.proxy, when)


def test_the_api_killed_around_a_submission(place: Place) -> None:
    """Before it is seen, and committed but not answered: the client says it again, and there is one job."""
    with Client(place.proxy.url, place.server.key, retries=Retries(request_s=20, total_s=40)) as client:
        for when in ("before", "after"):
            getattr(place.proxy, when)[JOBS] = place.crash
            job = client.submit(RY, device="simulator", params=[0.5], output="expectations")["id"]
            assert not place.proxy.before
            assert not place.proxy.after
            assert [one["id"] for one in place.client.jobs(state="queued")] == [job], when
            place.client.cancel(job)
            assert httpx.get(f"{place.server.url}/readyz", timeout=5).status_code == 200
