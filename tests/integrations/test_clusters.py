"""deploy/slurm on a one-node Slurm from Debian's packages; deploy/skypilot by SkyPilot's own reader."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.one_node_slurm import Cluster
from tests.peers import peer_python, run_peer
from tests.service.checks import RY, until
from tests.service.processes import Server

pytestmark = pytest.mark.timeout(1800)  # the first run installs

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "slurm"
    folder.mkdir()
    made = Cluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.mark.slow
def test_the_worker_s_sbatch_file(cluster: Cluster, tmp_path: Path) -> None:
    """The job runs a circuit; requeued, it keeps its name and takes over; told to stop by Slurm's signal, it ends by itself."""
    server = Server(tmp_path / "service", "--executors", "0")
    server.folder.mkdir()
    server.start(wait=False)
    secrets = tmp_path / "worker.env"
    secrets.write_text(f"QPEFT_SERVICE_URL={server.url}\nQPEFT_SERVICE_KEY={server.new_key('cluster', 'worker')}\n")
    secrets.chmod(0o600)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "qpeft").write_text(f'#!/bin/sh\nexec {sys.executable} -m qpeft.cli "$@"\n')
    (programs / "qpeft").chmod(0o755)
    cluster.environment |= {
        "PATH": f"{programs}{os.pathsep}{cluster.environment['PATH']}",
        "QPEFT_WORKER_ENV": str(secrets),
        "QPEFT_DEVICE": "simulator",
    }
    log = tmp_path / "job.log"
    try:
        client = server.client()
        first = client.submit(RY, device="simulator", params=[0.3], shots=20)["id"]
        options = ("--parsable", "--cpus-per-task=1", f"--output={log}")
        job = cluster.command("sbatch", *options, str(DEPLOY / "slurm" / "worker.sbatch"))
        assert client.result(first, timeout_s=120)["counts"]
        names = [worker["name"] for worker in server.http().get("/v1/workers").json()["workers"]]
        assert f"slurm-{job}" in names
        cluster.command("scontrol", "requeue", job)
        second = client.submit(RY, device="simulator", params=[0.3], shots=20)["id"]
        assert client.result(second, timeout_s=180)["counts"]
        cluster.command("scancel", "--signal=TERM", job)  # what --signal=TERM@60 sends to the job's step
        until(lambda: cluster.state(job) in ("COMPLETED", "FAILED", "CANCELLED"), 60)
        assert cluster.state(job) == "COMPLETED", log.read_text()
    finally:
        server.close()
        server.stop()


@pytest.mark.peer
@pytest.mark.parametrize("path", sorted((DEPLOY / "skypilot").glob("*.yaml")), ids=lambda path: path.stem)
def test_skypilot_reads_the_file(path: Path, tmp_path: Path) -> None:
    python = peer_python("skypilot", "skypilot>=0.10", ours=False)
    script = f"import sky; task = sky.Task.from_yaml({str(path)!r}); print(task.name, task.run)"
    assert "qpeft" in run_peer(python, script, HOME=str(tmp_path))
