"""Figures of the task service, measured on real processes while they are killed.

    python -m benchmarks.service singles --jobs 350000 --kill-s 5     accept to stored result, submit latency of 64 clients
    python -m benchmarks.service sweeps --circuits 350000             the same circuits as sweeps of 1,000
    python -m benchmarks.service latency --backlog 400000             another user's single job behind a backlog
    python -m benchmarks.service soak --circuits 1000000              resident memory, round after round

Each prints one JSON object. With `--kill-s N` a worker and the API are killed (SIGKILL) in turn every N seconds and started again.
`--database postgresql+psycopg://...` takes an empty PostgreSQL database instead of SQLite.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.service.client import Client, Retries
from qpeft.service.server import prepare
from qpeft.service.settings import Settings

CIRCUIT = Circuit(
    4,
    (
        *(Op("ry", (q,), Angle(q)) for q in range(4)),
        *(Op("cx", (q, q + 1)) for q in range(3)),
        *(Op("rz", (q,), Angle(q)) for q in range(4)),
    ),
    0,
    4,
)
SERVE = [sys.executable, "-c", "from qpeft.cli import service, main; main()", "serve"]


class Deployment:
    """A server and one worker process, kept alive and killed."""

    def __init__(self, folder: Path, database: str | None) -> None:
        self.folder, self.database = folder, database
        settings: dict[str, Any] = {"data_dir": folder / "data", "devices": ("simulator",)}
        if database:
            settings["database"] = database
        (folder / "data").mkdir()
        self.admin, self.worker_key = prepare(Settings(**settings))
        assert self.admin is not None, "the database is not empty"
        self.port = 0
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.kills: dict[str, int] = {"api": 0, "worker": 0}
        self.stopping = threading.Event()
        self.start("api")
        self.start("worker")

    def start(self, kind: str) -> None:
        log = (self.folder / f"{kind}.log").open("ab")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "QPEFT_SERVICE_KEY": self.worker_key}
        if kind == "api":
            command = [
                *SERVE,
                "--port",
                str(self.port),
                "--data-dir",
                str(self.folder / "data"),
                "--executors",
                "0",
                "--device",
                "simulator",
            ]
            command += ["--database", self.database] if self.database else []
        else:
            command = [
                sys.executable,
                "-m",
                "qpeft.service.worker",
                json.dumps({"url": self.url, "devices": ["simulator"], "name": "benchmark"}),
            ]
        self.processes[kind] = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        log.close()
        while kind == "api" and self.port == 0:
            assert self.processes[kind].poll() is None, (self.folder / "api.log").read_text()
            text = (self.folder / "api.log").read_text()
            if "serving on" in text and text.endswith("\n"):
                self.port = int(text.partition("serving on ")[2].split("\n")[0].rsplit(":", 1)[1])
            time.sleep(0.02)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill_every(self, seconds: float) -> None:
        def loop() -> None:
            kinds = ["worker", "api"]
            while not self.stopping.wait(seconds):
                kind = kinds[0]
                kinds.reverse()
                self.processes[kind].kill()
                self.processes[kind].wait()
                self.kills[kind] += 1
                self.start(kind)

        threading.Thread(target=loop, daemon=True).start()

    def client(self, key: str | None = None) -> Client:
        return Client(self.url, key or self.admin, retries=Retries(request_s=60, total_s=300))

    def key(self, user: str) -> str:
        with self.client() as client:
            return str(client.create_key(user, ["submit", "read"])["key"])

    def memory_mib(self) -> dict[str, float]:
        """Resident memory of each process."""
        import psutil

        return {kind: round(psutil.Process(process.pid).memory_info().rss / 2**20, 1) for kind, process in self.processes.items()}

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds of each process since it was last started."""
        import psutil

        return {kind: round(sum(psutil.Process(process.pid).cpu_times()[:2]), 1) for kind, process in self.processes.items()}

    def stop(self) -> None:
        """The worker first, so that it can hand in what it has."""
        self.stopping.set()
        for kind in ("worker", "api"):
            self.processes[kind].send_signal(signal.SIGTERM)
            self.processes[kind].wait(60)


async def _post(host: str, port: int, request: bytes, connection: list[Any]) -> int:
    """One request on a kept connection; the status, 0 when the connection broke."""
    try:
        if not connection:
            connection[:] = await asyncio.wait_for(asyncio.open_connection(host, port), 10)
        reader, writer = connection
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await asyncio.wait_for(reader.readexactly(length), 60)
        return int(head[9:12])
    except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError, ValueError):
        if connection:
            connection[1].close()
        connection.clear()
        return 0


def requests(key: str, n: int) -> Any:
    """Complete requests, one for each job, each with parameters and an idempotency key of its own."""
    generator = random.Random(0)
    circuit = CIRCUIT.to_json()
    for index in range(n):
        params = ",".join(f"{generator.uniform(-3, 3):.6f}" for _ in range(4))
        body = f'{{"device":"simulator","circuit":{circuit},"params":[{params}],"output":"expectations"}}'.encode()
        head = f"POST /v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        yield f"{head}idempotency-key: {index:032x}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def _load(port: int, key: str, n: int, clients: int) -> tuple[list[float], dict[int, int]]:
    """Post `n` jobs from `clients` connections; latencies of acknowledged posts from their first try on, and statuses seen."""
    todo = iter(requests(key, n))
    latencies: list[float] = []
    statuses: dict[int, int] = {}

    async def one_client() -> None:
        connection: list[Any] = []
        for request in todo:
            start = time.perf_counter()
            while (status := await _post("127.0.0.1", port, request, connection)) not in (200, 201):
                statuses[status] = statuses.get(status, 0) + 1
                await asyncio.sleep(0.05)
            statuses[status] = statuses.get(status, 0) + 1
            latencies.append(time.perf_counter() - start)

    await asyncio.gather(*(one_client() for _ in range(clients)))
    return latencies, statuses


def _quantiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{q:g}_ms": round(float(np.percentile(seconds, q)) * 1e3, 2) for q in (50, 95, 99, 99.9)}


def _wait_until_done(client: Client, timeout_s: float = 1200) -> None:
    deadline = time.monotonic() + timeout_s
    while client.usage()["open_circuits"]:
        assert time.monotonic() < deadline, "not done in time"
        time.sleep(0.1)


def _verify(deployment: Deployment, n: int) -> dict[str, Any]:
    """Every job there once, succeeded, with one result; and the database sound."""
    import sqlalchemy as sa

    from qpeft.service.store.database import Database
    from qpeft.service.store.schema import jobs, results

    database = Database(deployment.database or f"sqlite:///{deployment.folder / 'data' / 'service.sqlite'}")
    with database.reader.connect() as connection:

        def counted(column: Any) -> dict[Any, int]:
            return dict(connection.execute(sa.select(column, sa.func.count()).group_by(column)).tuples().all())

        states = counted(jobs.c.state)
        n_results = connection.execute(sa.select(sa.func.count()).select_from(results)).scalar_one()
        attempts = counted(jobs.c.attempt)
        sound = connection.exec_driver_sql("PRAGMA integrity_check").scalar() if database.sqlite else "ok"
    database.dispose()
    lost = n - states.get("succeeded", 0)
    return {
        "states": states,
        "results": n_results,
        "lost": lost,
        "duplicates": n_results - states.get("succeeded", 0),
        "attempts": attempts,
        "integrity": sound,
    }


def singles(deployment: Deployment, options: argparse.Namespace) -> dict[str, Any]:
    key = deployment.key("load")
    if options.kill_s:
        deployment.kill_every(options.kill_s)
    start = time.perf_counter()
    latencies, statuses = asyncio.run(_load(deployment.port, key, options.jobs, options.clients))
    accepted_s = time.perf_counter() - start
    with deployment.client(key) as client:
        _wait_until_done(client)
    done_s = time.perf_counter() - start
    deployment.stopping.set()
    return {
        "jobs": options.jobs,
        "accepted_s": round(accepted_s, 1),
        "done_s": round(done_s, 1),
        "accepted_per_s": round(options.jobs / accepted_s),
        "done_per_s": round(options.jobs / done_s),
        "submit": _quantiles(latencies),
        "statuses": statuses,
        **_verify(deployment, options.jobs),
    }


def sweeps(deployment: Deployment, options: argparse.Namespace) -> dict[str, Any]:
    params = np.random.default_rng(0).uniform(-3, 3, (options.circuits, 4)).astype(np.float32)
    key = deployment.key("sweeps")
    with deployment.client(key) as client:
        client.result(client.submit(CIRCUIT, device="simulator", params=[0.0] * 4, output="expectations")["id"])
        if options.kill_s:
            deployment.kill_every(options.kill_s)
        start = time.perf_counter()
        batches = [client.submit_sweep(CIRCUIT, params[i : i + 1000], device="simulator") for i in range(0, len(params), 1000)]
        submitted_s = time.perf_counter() - start
        _wait_until_done(client)
        stored_s = time.perf_counter() - start
        values = [row for batch in batches for line in client.results(batch["id"]) for row in line["expectations"]]
        read_s = time.perf_counter() - start
    deployment.stopping.set()
    assert len(values) == options.circuits
    return {
        "circuits": options.circuits,
        "submitted_s": round(submitted_s, 2),
        "stored_s": round(stored_s, 2),
        "read_back_s": round(read_s, 2),
        **_verify(deployment, sum(batch["jobs"] for batch in batches) + 1),
    }


def latency(deployment: Deployment, options: argparse.Namespace) -> dict[str, Any]:
    heavy, light = deployment.key("heavy"), deployment.key("light")
    waits: list[float] = []
    with deployment.client(heavy) as backlog, deployment.client(light) as other:
        other.result(other.submit(CIRCUIT, device="simulator", params=[0.0] * 4, output="expectations")["id"])
        circuit = CIRCUIT.to_dict()
        with deployment.client() as admin:
            admin.set_device("simulator", "maintenance", "the backlog is being queued")
        start = time.perf_counter()
        for first in range(0, options.backlog, 10_000):
            batch = [
                {"circuit": circuit, "params": [0.1, 0.2, 0.3, k * 1e-6]}
                for k in range(first, min(first + 10_000, options.backlog))
            ]
            backlog.submit_batch(batch, device="simulator", output="expectations")
        submitted_s = time.perf_counter() - start
        with deployment.client() as admin:
            admin.set_device("simulator", "online")
        if options.kill_s:
            deployment.kill_every(options.kill_s)
        queued = backlog.usage()["open_circuits"]
        while len(waits) < options.probes and backlog.usage()["open_circuits"]:
            start = time.perf_counter()
            other.result(other.submit(CIRCUIT, device="simulator", params=[0.5] * 4, output="expectations")["id"])
            waits.append(time.perf_counter() - start)
        left = backlog.usage()["open_circuits"]
    deployment.stopping.set()
    return {
        "backlog": options.backlog,
        "submitted_s": round(submitted_s, 1),
        "queued_at_first_probe": queued,
        "queued_at_last_probe": left,
        "probes": len(waits),
        "accept_to_result": _quantiles(waits),
    }


def soak(deployment: Deployment, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of 10,000 jobs in a batch and 10,000 circuits in sweeps, results read back; memory after each round."""
    key = deployment.key("soak")
    circuit, generator = CIRCUIT.to_dict(), np.random.default_rng(0)
    curve: list[dict[str, float]] = []
    jobs = done = 0
    start = time.perf_counter()
    with deployment.client(key) as client:
        if options.kill_s:
            deployment.kill_every(options.kill_s)
        while done < options.circuits:
            params = generator.uniform(-3, 3, (10_000, 4)).astype(np.float32)
            singles = [{"circuit": circuit, "params": row} for row in params.tolist()]
            batches = [client.submit_batch(singles, device="simulator", output="expectations")]
            batches += [client.submit_sweep(CIRCUIT, params[i : i + 1000], device="simulator") for i in range(0, 10_000, 1000)]
            read = sum(len(line["expectations"]) for batch in batches for line in client.results(batch["id"]))
            assert read == 20_000, read
            jobs += sum(batch["jobs"] for batch in batches)
            done += read
            curve.append({"circuits": done, **deployment.memory_mib()})
    seconds = time.perf_counter() - start
    deployment.stopping.set()
    return {"circuits": done, "seconds": round(seconds, 1), "rss_mib": curve, **_verify(deployment, jobs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("singles", "sweeps", "latency", "soak"))
    parser.add_argument("--jobs", type=int, default=350_000)
    parser.add_argument("--circuits", type=int, help="default 350,000; of a soak 1,000,000")
    parser.add_argument("--backlog", type=int, default=400_000)
    parser.add_argument("--probes", type=int, default=300)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--kill-s", type=float, default=0.0)
    parser.add_argument("--database")
    options = parser.parse_args()
    options.circuits = options.circuits or (1_000_000 if options.what == "soak" else 350_000)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        deployment = Deployment(Path(folder), options.database)
        try:
            figures = {"singles": singles, "sweeps": sweeps, "latency": latency, "soak": soak}[options.what](deployment, options)
            figures["kills"] = deployment.kills
            figures["memory_mib"], figures["cpu_s"] = deployment.memory_mib(), deployment.cpu_s()
        finally:
            deployment.stop()
    figures["load_average"] = {"before": round(load, 1), "after": round(os.getloadavg()[0], 1)}  # of the machine, one minute
    figures["load_cpu_s"] = round(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
