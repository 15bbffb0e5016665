"""A disk that is full, a disk that becomes read-only, a clock that jumps: real file systems, real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from qpeft.errors import ServiceError
from qpeft.service.client import Client
from tests.service.checks import RY, SHORT_LEASE, SLOW, audit_database, until
from tests.service.postgres import Cluster, binaries
from tests.service.processes import CLI, Server

FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB of its own; making one needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)):
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def refused(work: Callable[[], object]) -> None:
    """503 with a time to come back, whatever the disk said."""
    with pytest.raises(ServiceError) as caught:
        work()
    assert (caught.value.status, caught.value.code) == (503, "storage")
    assert caught.value.retry_after_s


@pytest.fixture
def served(tmp_path: Path, disk: Path) -> Iterator[Server]:
    server = Server(tmp_path, "--executors", "0", environment={"QPEFT_SERVICE_MIN_FREE_BYTES": "0"})
    server.data_dir = disk / "data"
    server.start()
    yield server
    server.close()
    server.kill()


def test_a_full_disk_refuses_keeps_what_it_has_and_recovers(served: Server, disk: Path) -> None:
    client = served.client(total_s=0.1)

    def fill() -> None:
        for k in range(200):
            client.submit_sweep(RY, np.full((500, 1), 0.001 * k), device="simulator")

    refused(fill)
    acknowledged = {job["id"] for job in client.jobs(limit=1000)}
    assert acknowledged
    assert httpx.get(f"{served.url}/healthz", timeout=5).status_code == 200
    served.kill()  # what a full disk and a crash together leave
    assert mount("-o", "remount,size=32m", str(disk))
    served.start()
    worker = served.worker(served.new_key("workers", "worker"))
    try:
        there = served.client()
        until(lambda: there.usage()["open_circuits"] == 0)
        assert {job["id"] for job in there.jobs(limit=1000)} == acknowledged
        audit_database(served.database_url, len(acknowledged))
    finally:
        worker.stop()


@pytest.mark.slow
def test_a_full_disk_that_is_emptied_needs_no_restart(served: Server, disk: Path) -> None:
    client = served.client(total_s=0.1)
    kept = client.submit(RY, device="simulator", params=[0.1], shots=5)["id"]
    (disk / "filler").write_bytes(b"\0" * (shutil.disk_usage(disk).free - 8192))
    refused(lambda: [client.submit_sweep(RY, np.zeros((500, 1)), device="simulator") for _ in range(50)])
    (disk / "filler").unlink()
    until(lambda: accepts(client))
    assert client.job(kept)["state"] == "queued"


@pytest.fixture
def small_cluster() -> Iterator[Cluster]:
    """A PostgreSQL on a file system of 128 MiB."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with tempfile.TemporaryDirectory(prefix="qpeft-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        if not mount("-t", "tmpfs", "-o", "size=128m", "tmpfs", folder):
            pytest.skip("mounting a file system needs root")
        try:
            cluster = Cluster(programs, data=Path(folder) / "pg")
            cluster.start()
            yield cluster
            if cluster.running():
                cluster.stop("immediate")
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
@pytest.mark.postgres
def test_a_full_disk_of_postgresql(small_cluster: Cluster, sqlite_server: Callable[..., Server]) -> None:
    """Refused with 503 while it is full, whether PostgreSQL lives through it or not; what was acknowledged is run afterwards."""
    url = small_cluster.create()
    server = sqlite_server("--executors", "0", "--database", url)
    client = server.client(total_s=0.1)
    kept: list[str] = []
    disk = small_cluster.data.parent
    (disk / "filler").write_bytes(b"\0" * (shutil.disk_usage(disk).free - (1 << 20)))

    def fill() -> None:
        for _ in range(200):
            kept.append(client.submit_sweep(RY, np.zeros((20_000, 1)), device="simulator")["id"])

    refused(fill)
    (disk / "filler").unlink()
    small_cluster.ensure_running()
    until(lambda: accepts(client), 60)
    worker = server.worker(server.new_key("workers", "worker"))
    try:
        until(lambda: server.client().usage()["open_circuits"] == 0, 90)
        assert kept
        for batch in kept:
            assert set(client.wait_batch(batch)["states"]) == {"succeeded"}
    finally:
        worker.stop()


def accepts(client: Client) -> bool:
    try:
        client.submit(RY, device="simulator", params=[0.2], shots=5)
    except ServiceError:
        return False
    return True


@pytest.mark.slow
def test_a_disk_that_is_read_only_is_said_at_the_start(served: Server, disk: Path) -> None:
    """And once it is writable again, everything is there."""
    client = served.client(total_s=0.1)
    kept = client.submit(RY, device="simulator", params=[0.1], shots=5)["id"]
    served.stop()
    assert mount("-o", "remount,ro", str(disk))
    command = [*CLI, "serve", "--port", "0", "--data-dir", str(served.data_dir), "--executors", "0"]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert failed.returncode != 0
    assert "read-only" in (failed.stdout + failed.stderr).lower()
    assert mount("-o", "remount,rw", str(disk))
    served.start()
    assert served.client().job(kept)["state"] == "queued"


@pytest.mark.slow
@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed (Debian: apt-get install faketime)")
def test_a_clock_that_jumps_expires_nothing_and_reorders_nothing(fresh_server: Callable[..., Server], tmp_path: Path) -> None:
    offset = tmp_path / "offset"
    environment = {
        **SHORT_LEASE,
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }

    def jump(hours: float) -> None:
        offset.write_text(f"{hours * 3600:+.0f}\n")

    jump(0)
    server = fresh_server(environment=environment, devices=("simulator", "emulator:wukong-72"))
    client = server.client()
    client.set_device("emulator:wukong-72", "maintenance")
    waiting = client.submit(RY, device="emulator:wukong-72", params=[0.1], shots=5, expires_s=3600.0)["id"]
    batches: list[str] = []

    def runs() -> bool:
        states = client.connection.request("GET", f"/v1/batches/{batches[-1]}").json()["states"]
        return bool(states.get("running", 0) > 0)

    for hours in (5, -7, 400):
        batch = client.submit_sweep(SLOW, np.linspace(0, 1, 1500)[:, None], device="simulator")  # seconds on a fast machine
        batches.append(batch["id"])
        until(runs)
        jump(hours)
        time.sleep(0.5)
        client.submit(RY, device="simulator", params=[0.1], output="expectations")
    for identifier in batches:
        done = client.wait_batch(identifier, timeout_s=120)
        assert done["states"] == {"succeeded": done["jobs"]}
    jobs = client.jobs(limit=1000)
    told = [line for line in server.output().splitlines() if '"warning"' in line or '"error"' in line]
    assert told == []  # no lease ended; on a slow machine a job may return to the bulk lane, which is an attempt
    made = [job["created_at"] for job in jobs]
    assert made == sorted(made, reverse=True)
    assert client.job(waiting)["state"] == "queued"  # an hour has not passed
    jump(-48)  # and a service that starts when the clock is two days behind
    server.stop()
    server.start()
    assert client.wait(client.submit(RY, device="simulator", params=[0.2], shots=5)["id"], timeout_s=40)["state"] == "succeeded"
