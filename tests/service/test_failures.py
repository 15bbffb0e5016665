"""What the service must survive, against real processes."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from qpeft.errors import ServiceError
from qpeft.service.client import Client
from qpeft.service.store.database import backup_sqlite
from tests.service.checks import RY, SHORT_LEASE, SLOW, audit_database, until
from tests.service.processes import Server


def test_a_worker_killed_while_it_runs_loses_nothing(fresh_server: Callable[..., Server]) -> None:
    server = fresh_server("--executors", "0", environment=SHORT_LEASE)
    key = server.new_key("workers", "worker")
    client = server.client()
    batch = client.submit_sweep(SLOW, np.linspace(0, 1, 300)[:, None], device="simulator")
    first = server.worker(key, "first")
    until(lambda: "running" in client.connection.request("GET", f"/v1/batches/{batch['id']}").json()["states"])
    first.kill()
    second = server.worker(key, "second")
    try:
        done = client.wait_batch(batch["id"], timeout_s=60)
        assert done["states"] == {"succeeded": done["jobs"]}
        assert max(job["attempt"] for job in client.jobs()) >= 2
        audit_database(server.database_url, done["jobs"])
    finally:
        second.stop()


def test_a_worker_stopped_past_its_lease_writes_nothing_late(fresh_server: Callable[..., Server]) -> None:
    server = fresh_server("--executors", "0", environment=SHORT_LEASE)
    key = server.new_key("workers", "worker")
    client = server.client()
    slow = server.worker(key, "slow")
    batch = client.submit_sweep(SLOW, np.linspace(0, 1, 300)[:, None], device="simulator")
    until(lambda: "running" in client.connection.request("GET", f"/v1/batches/{batch['id']}").json()["states"])
    slow.signal(signal.SIGSTOP)
    other = server.worker(key, "other")
    try:
        done = client.wait_batch(batch["id"], timeout_s=60)
        before = list(client.results(batch["id"]))
        slow.signal(signal.SIGCONT)
        until(lambda: "starts anew" in (server.folder / "slow.log").read_text())
        assert list(client.results(batch["id"])) == before
        audit_database(server.database_url, done["jobs"])
        again = client.submit(RY, device="simulator", params=[0.1], shots=5)
        assert client.wait(again["id"])["state"] == "succeeded"
    finally:
        slow.stop()
        other.stop()


def kill_while_submitting(server: Server, url: str, jobs_each: int = 60, kills: int = 2) -> None:
    """Four clients submit while the API is killed again and again; nothing acknowledged is lost or doubled."""
    answers: list[str] = []

    def submit(client: Client) -> None:
        for k in range(jobs_each):
            answers.append(client.submit(RY, device="simulator", params=[0.01 * k], output="expectations")["id"])

    clients = [server.client(total_s=120) for _ in range(4)]  # a start takes long on a busy machine
    threads = [threading.Thread(target=submit, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for _ in range(kills):
        time.sleep(0.25)
        server.kill()
        server.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert len(set(answers)) == 4 * jobs_each
    until(lambda: clients[0].usage()["open_circuits"] == 0, 60)
    audit_database(url, 4 * jobs_each)


def test_the_api_killed_again_and_again(fresh_server: Callable[..., Server]) -> None:
    server = fresh_server("--executors", "0", environment=SHORT_LEASE)
    worker = server.worker(server.new_key("workers", "worker"))
    try:
        kill_while_submitting(server, server.database_url)
    finally:
        worker.stop()


def test_worker_processes_end_with_their_server(fresh_server: Callable[..., Server]) -> None:
    server = fresh_server()
    client = server.client()
    client.result(client.submit(RY, device="simulator", params=[0.1], shots=5)["id"])
    assert server.process is not None
    children = psutil.Process(server.process.pid).children()
    assert len(children) == 1
    server.kill()
    until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))


def test_a_worker_whose_key_is_revoked_ends(fresh_server: Callable[..., Server]) -> None:
    """In the middle of a lease, with results that it can hand in to nobody."""
    server = fresh_server("--executors", "0")
    client = server.client()
    key = server.new_key("workers", "worker")
    batch = client.submit_sweep(SLOW, np.linspace(0, 1, 3000)[:, None], device="simulator")
    worker = server.worker(key)
    try:
        until(lambda: "running" in client.connection.request("GET", f"/v1/batches/{batch['id']}").json()["states"])
        client.revoke_key(key.partition("_")[0])
        assert worker.popen.wait(20) == 2  # with one line in its log, and no traceback
    finally:
        worker.kill()


@pytest.mark.slow
def test_a_full_disk_refuses_and_recovers(sqlite_server: Callable[..., Server]) -> None:
    server = sqlite_server("--executors", "0")
    client = server.client(total_s=0.1)
    kept = client.submit(RY, device="simulator", params=[0.1], output="expectations")["id"]
    assert server.process is not None
    size = max(path.stat().st_size for path in server.data_dir.iterdir())
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size + 40_000, size + 40_000))

    def fill() -> None:
        for k in range(300):
            client.submit_sweep(RY, np.full((500, 1), 0.001 * k), device="simulator")

    with pytest.raises(ServiceError) as caught:
        fill()
    assert caught.value.status == 503
    assert caught.value.retry_after_s
    assert client.job(kept)["state"] == "queued"
    assert httpx.get(f"{server.url}/healthz", timeout=5).status_code == 200
    acknowledged = len(client.jobs(limit=1000))
    server.stop()
    server.start()
    worker = server.worker(server.new_key("workers", "worker"))
    try:
        until(lambda: server.client().usage()["open_circuits"] == 0)
        audit_database(server.database_url, acknowledged)
    finally:
        worker.stop()


@pytest.mark.slow
def test_a_backup_taken_under_load_restores(sqlite_server: Callable[..., Server], tmp_path: Path) -> None:
    server = sqlite_server()
    client = server.client()
    stop = threading.Event()
    acknowledged: list[str] = []

    def load() -> None:
        while not stop.is_set():
            acknowledged.append(client.submit(RY, device="simulator", params=[0.1], output="expectations")["id"])

    thread = threading.Thread(target=load)
    thread.start()
    until(lambda: len(acknowledged) > 20)
    before = list(acknowledged)
    folder = tmp_path / "restored"
    (folder / "data").mkdir(parents=True)
    backup_sqlite(server.data_dir / "service.sqlite", folder / "data" / "service.sqlite")
    stop.set()
    thread.join()
    restored = Server(folder)
    try:
        restored.key_file.write_text(server.key)
        restored.start()
        there = restored.client()
        until(lambda: there.usage()["open_circuits"] == 0)
        assert {there.job(job)["state"] for job in before} == {"succeeded"}
    finally:
        restored.close()
        restored.kill()
    assert os.stat(folder / "data" / "service.sqlite").st_mode & 0o077 == 0


@pytest.mark.postgres
def test_many_api_processes_on_postgresql_killed_and_the_database_too(
    sqlite_server: Callable[..., Server], postgres_cluster: object, postgres_url: str
) -> None:
    from tests.service.postgres import Cluster

    assert isinstance(postgres_cluster, Cluster)
    server = sqlite_server("--executors", "0", "--workers", "2", "--database", postgres_url, environment=SHORT_LEASE)
    worker = server.worker(server.new_key("workers", "worker"))
    try:
        kill_while_submitting(server, postgres_url, jobs_each=20, kills=1)
        client = server.client(total_s=60)
        postgres_cluster.stop("immediate")
        with pytest.raises(ServiceError, match=r"cannot|time|answer"):
            server.client(total_s=0.1).submit(RY, device="simulator", params=[0.1], shots=5)
        assert httpx.get(f"{server.url}/healthz", timeout=5).status_code == 200
        until(lambda: httpx.get(f"{server.url}/readyz", timeout=20).status_code == 503)  # looked at once a second
        postgres_cluster.start()
        job = client.submit(RY, device="simulator", params=[0.2], output="expectations")
        assert client.wait(job["id"], timeout_s=60)["state"] == "succeeded"
    finally:
        postgres_cluster.ensure_running()
        worker.stop()


@pytest.mark.slow
def test_a_worker_that_died_while_it_waited_is_given_nothing(fresh_server: Callable[..., Server]) -> None:
    server = fresh_server("--executors", "0", environment={"QPEFT_SERVICE_LEASE_S": "30"})
    key = server.new_key("workers", "worker")
    client = server.client()
    dead = server.worker(key, "dead")
    until(lambda: client.devices()[0]["workers"] == 1)
    time.sleep(1.0)  # it asks for work
    dead.kill()
    time.sleep(0.2)
    job = client.submit(RY, device="simulator", params=[0.1], shots=5)
    alive = server.worker(key, "alive")
    try:
        done = client.wait(job["id"], timeout_s=25)
        assert (done["state"], done["attempt"]) == ("succeeded", 1)
    finally:
        alive.stop()
