"""The database itself dies in the middle of the work, and comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import httpx
import numpy as np
import pytest

from tests.service.checks import RY, SLOW, audit_database, until
from tests.service.postgres import Cluster
from tests.service.processes import Server

pytestmark = pytest.mark.postgres


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_postgresql_stopped_again_and_again_under_load(
    sqlite_server: Callable[..., Server], postgres_cluster: Cluster, postgres_url: str, mode: str
) -> None:
    """`immediate` is a crash with recovery from the log. Submissions, leases, results and events are under way each time."""
    server = sqlite_server("--executors", "0", "--workers", "2", "--database", postgres_url)
    workers = [server.worker(server.new_key("workers", "worker"), f"worker{k}") for k in range(2)]
    clients = [server.client(total_s=90) for _ in range(3)]
    batch = clients[0].submit_sweep(SLOW, np.linspace(0, 1, 300)[:, None], device="simulator")
    answers: list[str] = []
    stop = threading.Event()

    def submit(number: int) -> None:
        while not stop.is_set():
            job = clients[number].submit(RY, device="simulator", params=[0.1 * number], output="expectations")
            answers.append(job["id"])

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            before = len(answers)
            until(lambda: len(answers) > before + 10, 60)  # noqa: B023 - called at once
            postgres_cluster.stop(mode)
            time.sleep(0.5)
            assert httpx.get(f"{server.url}/healthz", timeout=10).status_code == 200
            postgres_cluster.start()
    finally:
        postgres_cluster.ensure_running()
        stop.set()
        for thread in threads:
            thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    until(lambda: clients[0].usage()["open_circuits"] == 0, 90)
    assert len(set(answers)) == len(answers)
    assert clients[0].wait_batch(batch["id"])["states"] == {"succeeded": batch["jobs"]}
    audit_database(postgres_url, len(answers) + batch["jobs"])
    for worker in workers:
        assert worker.stop() == 0
