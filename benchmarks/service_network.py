"""Figures of the task service over a network: idle workers, and hosts in network namespaces of which one is cut off.

    python -m benchmarks.service_network idle --workers 1000 --rate 4 --seconds 60
    python -m benchmarks.service_network hosts --nodes 1 2 4 --jobs 4000 --cut-s 12

`idle`: connections that speak the workers' protocol and wait for work as workers do, simulated in this process since a thousand
processes do not fit on a small machine; jobs come at `--rate` a second, and whoever gets one hands in a constant. SQLite, or
PostgreSQL with `--postgres`.

`hosts` (Linux, root, PostgreSQL's programs): PostgreSQL on this machine; N API hosts and N worker hosts, each in a network
namespace of its own. 64 clients submit single jobs to all of them. With `--cut-s` an API host is cut off for so many seconds in the
middle of the load and brought back, then a worker host. Every job is then counted in the database.

Each prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import psutil
from tests.service.namespaces import Network, missing
from tests.service.postgres import Cluster, binaries

from benchmarks.service import CIRCUIT, SERVE, requests
from qpeft.service.client import Client, Retries
from qpeft.service.messages import Result, pack
from qpeft.service.workers.messages import CompleteRequest, DeviceInfo, FinishedJob, HelloRequest, LeaseAnswer, LeaseRequest

MSGPACK = "application/msgpack"
PORT = 8642


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum in milliseconds."""
    return {f"p{q:g}_ms": round(float(np.percentile(seconds, q)) * 1e3, 1) for q in (50, 99, 100)}


def served(log: Path, process: subprocess.Popen[bytes]) -> str:
    """The address that a starting server prints."""
    deadline = time.monotonic() + 120
    while "serving on" not in (text := log.read_text()) or not text.endswith("\n"):
        assert process.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    return text.partition("serving on ")[2].split("\n")[0]


class Caller:
    """One kept connection that speaks HTTP/1.1 with MessagePack."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self.host, self.port, self.key = host, port, key
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, path: str, content: Any) -> bytes:
        """The body of the answer of `POST /v1/worker/{path}`; OSError when the connection breaks."""
        if self.streams is None:
            self.streams = await asyncio.open_connection(self.host, self.port)
        reader, writer = self.streams
        body = pack(content)
        head = f"POST /v1/worker/{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.key}\r\ncontent-type: {MSGPACK}\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        payload = await reader.readexactly(length)
        assert answer[9:12] == b"200", (answer, payload)
        return payload


async def idle_worker(caller: Caller, number: int, counts: dict[str, int]) -> None:
    """Say hello, then ask for work for ever."""
    payload = pack(Result(kind="expectations", columns=4, data=np.zeros(4).tobytes()))
    info = {"simulator": DeviceInfo(max_qubits=20, exact=True, program_s=1e-3)}
    hello = msgspec.msgpack.decode(await caller.call("hello", HelloRequest(name=f"w{number}", devices=["simulator"], info=info)))
    worker, wait_s = hello["worker"], min(20.0, hello["lease_s"] / 2)
    counts["registered"] += 1
    while True:
        request = LeaseRequest(worker=worker, devices=["simulator"], max_jobs=256, wait_s=wait_s)
        lease = msgspec.msgpack.decode(await caller.call("lease", request), type=LeaseAnswer)
        counts["polls"] += 1
        if lease.jobs:
            counts["leases"] += 1
            ended = [FinishedJob(seq=job.seq, attempt=job.attempt, device_s=1e-3, payload=payload) for job in lease.jobs]
            await caller.call("complete", CompleteRequest(worker=worker, device="simulator", estimate_s=1e-3, jobs=ended))
            counts["jobs"] += len(ended)


def idle(options: argparse.Namespace) -> dict[str, Any]:
    """Idle workers wait while jobs come: what it costs, and how many are woken for a job."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cluster = None
        command = [*SERVE, "--port", "0", "--data-dir", str(folder / "data"), "--admin-key-file", str(folder / "key")]
        command += ["--executors", "0", "--device", "simulator"]
        if options.postgres:
            cluster = Cluster(_postgres_programs())
            cluster.start()
            command += ["--database", cluster.create(), "--workers", str(options.processes)]
        bounds = {
            f"QPEFT_SERVICE_{name}": str(2 * options.workers + 200) for name in ("MAX_CONNECTIONS", "MAX_CONNECTIONS_PER_ADDRESS")
        }
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **bounds})
        try:
            url = served(folder / "log", process)
            with Client(url, (folder / "key").read_text().strip()) as admin:
                worker_key = str(admin.create_key("workers", ["worker"])["key"])
                user_key = str(admin.create_key("user", ["submit", "read"])["key"])
            return asyncio.run(_idle(options, url, worker_key, user_key, process.pid))
        finally:
            process.terminate()
            process.wait(60)
            if cluster is not None:
                cluster.stop("immediate")
                cluster.remove()


async def _idle(options: argparse.Namespace, url: str, worker_key: str, user_key: str, pid: int) -> dict[str, Any]:
    port = int(url.rsplit(":", 1)[1])
    counts = {"registered": 0, "polls": 0, "leases": 0, "jobs": 0}
    workers = [
        asyncio.create_task(idle_worker(Caller("127.0.0.1", port, worker_key), number, counts)) for number in range(options.workers)
    ]
    while counts["registered"] < options.workers:
        for task in workers:
            if task.done():
                task.result()
        await asyncio.sleep(0.1)
    await asyncio.sleep(2)
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]

    def cpu_s() -> float:
        return sum(sum(one.cpu_times()[:2]) for one in processes)

    async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {user_key}"}, timeout=60) as http:

        async def writes() -> int:
            text = (await http.get("/metrics")).text
            return int(float(found[1])) if (found := re.search(r"^qpeft_writes_total (\S+)$", text, re.M)) else 0

        async def quiet(seconds: float) -> float:
            before, start = cpu_s(), time.monotonic()
            await asyncio.sleep(seconds)
            return (cpu_s() - before) / (time.monotonic() - start)

        at_rest = await quiet(min(options.seconds, 20))
        before, start, first, written = cpu_s(), time.monotonic(), dict(counts), await writes()
        waits: list[float] = []

        async def one_job() -> None:
            begin = time.monotonic()
            body = {"device": "simulator", "circuit": CIRCUIT.to_dict(), "params": [0.1] * 4, "output": "expectations"}
            job = (await http.post("/v1/jobs", json=body)).raise_for_status().json()
            done = (await http.get(f"/v1/jobs/{job['id']}/result", params={"wait": 30})).raise_for_status().json()
            assert done["state"] == "succeeded", done
            waits.append(time.monotonic() - begin)

        jobs = []
        while time.monotonic() - start < options.seconds:
            jobs.append(asyncio.create_task(one_job()))
            await asyncio.sleep(1 / options.rate)
        await asyncio.gather(*jobs)
        seconds, used = time.monotonic() - start, cpu_s() - before
        await asyncio.sleep(1.1)
        told = {name: counts[name] - first[name] for name in counts}
        looks = await writes() - written - 2 * len(jobs)  # in addition to submissions and results: a look for work, or a chore
    for task in workers:
        task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    return {
        "workers": options.workers,
        "jobs_per_s": options.rate,
        "jobs": len(jobs),
        "submit_to_result": quantiles(waits),
        "server_cores_at_rest": round(at_rest, 3),
        "server_cores": round(used / seconds, 3),
        "answers_to_workers": told["polls"],
        "leases_with_jobs": told["leases"],
        "looks_for_work": looks,
        "looks_beyond_polls_and_leases": looks - told["polls"] - told["leases"],
    }


def _postgres_programs() -> Path:
    folder = binaries()
    assert folder is not None, "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    return folder


class Hosts:
    """N API hosts, and N worker hosts each of which knows one API host."""

    def __init__(self, n: int, folder: Path, cluster: Cluster, network: Network) -> None:
        self.n, self.folder, self.network = n, folder, network
        self.url = cluster.create()
        self.postmaster = int((cluster.data / "db" / "postmaster.pid").read_text().split()[0])
        self.key_file = folder / "admin.key"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for k in range(n):
            self._start_api(k)
        self.admin = self.key_file.read_text().strip()
        with self.client(0) as client:
            worker_key = str(client.create_key("workers", ["worker"])["key"])
            self.key = str(client.create_key("load", ["submit", "read"])["key"])
        for k in range(n):
            arguments = {"url": f"http://{network.address[f'api{k}']}:{PORT}", "devices": ["simulator"], "name": f"worker{k}"}
            self._run(f"worker{k}", ["-m", "qpeft.service.worker", json.dumps(arguments)], QPEFT_SERVICE_KEY=worker_key)

    def _run(self, name: str, arguments: list[str], **environment: str) -> Path:
        log = self.folder / f"{name}.log"
        with log.open("wb") as stream:
            self.processes[name] = subprocess.Popen(
                [*self.network.on(name), sys.executable, *arguments],
                stdout=stream,
                stderr=stream,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )
        return log

    def _start_api(self, k: int) -> None:
        name = f"api{k}"
        arguments = [*SERVE[1:], "--host", self.network.address[name], "--port", str(PORT), "--behind-proxy", "--executors", "0"]
        arguments += ["--device", "simulator", "--data-dir", str(self.folder / name), "--admin-key-file", str(self.key_file)]
        log = self._run(name, arguments, QPEFT_SERVICE_DATABASE=self.url)
        served(log, self.processes[name])

    def client(self, k: int) -> Client:
        """A client of API host k, with the administrator's key."""
        return Client(f"http://{self.network.address[f'api{k}']}:{PORT}", self.admin, retries=Retries(request_s=30, total_s=120))

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds so far of all API processes, all workers, PostgreSQL and this process."""
        found = {"api": 0.0, "worker": 0.0, "postgresql": 0.0, "load": sum(psutil.Process().cpu_times()[:2])}
        roots = [(name.rstrip("0123456789"), process.pid) for name, process in self.processes.items()]
        for part, pid in [*roots, ("postgresql", self.postmaster)]:
            root = psutil.Process(pid)
            found[part] += sum(root.cpu_times()[: 4 if part == "postgresql" else 2])  # with its children that have ended
            found[part] += sum(sum(one.cpu_times()[:2]) for one in root.children(recursive=True))
        return found

    def stop(self) -> None:
        for name in sorted(self.processes, reverse=True):  # workers first
            self.processes[name].terminate()
        for process in self.processes.values():
            process.wait(60)


async def load(addresses: Sequence[str], key: str, n: int, clients: int) -> tuple[list[float], int]:
    """Post `n` jobs; a client whose host does not answer in two seconds goes to the next. Latencies, and how often that was."""
    todo, latencies, moved = iter(requests(key, n)), list[float](), 0

    async def post(address: str, request: bytes, connection: list[Any]) -> int:
        if not connection:
            connection[:] = await asyncio.open_connection(address, PORT)
        reader, writer = connection
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
        return int(head[9:12])

    async def one_client(number: int) -> None:
        nonlocal moved
        connection: list[Any] = []
        at = number
        for request in todo:
            start = time.perf_counter()
            while True:
                try:
                    if await asyncio.wait_for(post(addresses[at % len(addresses)], request, connection), 2.0) in (200, 201):
                        break
                    await asyncio.sleep(0.05)
                except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError):
                    if connection:
                        connection[1].transport.abort()
                    connection.clear()
                    at, moved = at + 1, moved + 1
            latencies.append(time.perf_counter() - start)
        if connection:
            connection[1].close()
            await connection[1].wait_closed()

    await asyncio.gather(*(one_client(number) for number in range(clients)))
    return latencies, moved


def hosts(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Throughput of 1, 2, 4 hosts, with an API host and a worker host cut off and brought back."""
    if (why := missing()) is not None:
        raise SystemExit(f"no network namespaces here: {why}")
    return [measure_hosts(n, options) for n in options.nodes]


def measure_hosts(n: int, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of N API hosts and N worker hosts.

    Args:
        n: number of each.
        options: `jobs`, `clients`, `cut_s` and `after_s` of the command line.
    """
    names = [f"{kind}{k}" for kind in ("api", "worker") for k in range(n)]
    network = Network(names)
    with tempfile.TemporaryDirectory() as name:
        cluster = Cluster(_postgres_programs(), network.gateway)
        deployed = None
        try:
            cluster.start()
            deployed = Hosts(n, Path(name), cluster, network)
            return _loaded(deployed, options)
        finally:
            if deployed is not None:
                deployed.stop()
            cluster.stop("immediate")
            cluster.remove()
            network.close()


def _loaded(deployed: Hosts, options: argparse.Namespace) -> dict[str, Any]:
    network, n = deployed.network, deployed.n
    cuts: list[str] = []

    def cut_one_after_the_other() -> None:
        for name in (f"api{n - 1}", f"worker{n - 1}"):
            time.sleep(options.after_s)
            cuts.append(name)
            network.cut(name)
            time.sleep(options.cut_s)
            network.join(name)

    before, start = deployed.cpu_s(), time.perf_counter()
    cutter = threading.Thread(target=cut_one_after_the_other, daemon=True)
    if options.cut_s:
        cutter.start()
    addresses = [network.address[f"api{k}"] for k in range(n)]
    latencies, moved = asyncio.run(load(addresses, deployed.key, options.jobs, options.clients))
    accepted_s = time.perf_counter() - start
    if options.cut_s:
        cutter.join()
    with Client(f"http://{addresses[0]}:{PORT}", deployed.key, retries=Retries(request_s=30, total_s=120)) as client:
        deadline = time.monotonic() + 300
        while client.usage()["open_circuits"]:
            assert time.monotonic() < deadline, "not done in time"
            time.sleep(0.1)
    done_s, used = time.perf_counter() - start, deployed.cpu_s()
    return {
        "hosts": n,
        "jobs": options.jobs,
        "cut": cuts,
        "accepted_s": round(accepted_s, 1),
        "accepted_per_s": round(options.jobs / accepted_s),
        "done_s": round(done_s, 1),
        "submit": quantiles(latencies),
        "moved_to_another_host": moved,
        "cores": {name: round((used[name] - before[name]) / done_s, 2) for name in used},
        "cores_of_this_process": len(os.sched_getaffinity(0)),
        **_counted(deployed.url, options.jobs),
    }


def _counted(url: str, n: int) -> dict[str, int]:
    import sqlalchemy as sa

    from qpeft.service.store.database import Database
    from qpeft.service.store.schema import jobs, results

    database = Database(url)
    with database.reader.connect() as connection:
        succeeded = connection.execute(sa.select(sa.func.count()).where(jobs.c.state == "succeeded")).scalar_one()
        stored = connection.execute(sa.select(sa.func.count()).select_from(results)).scalar_one()
    database.dispose()
    return {"lost": n - succeeded, "duplicates": stored - succeeded}


def plot(figures: Sequence[dict[str, Any]], file: Path) -> None:
    """Throughput by number of hosts, and which part took how much of the processor cores.

    Args:
        figures: from `hosts`.
        file: picture to write.
    """
    import matplotlib.pyplot as plt

    from qpeft.report.style import LIGHT, drawing

    with drawing(LIGHT):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
        names = [str(one["hosts"]) for one in figures]
        left.bar(names, [one["jobs"] / one["done_s"] for one in figures], width=0.5)
        left.set(xlabel="API hosts, and as many worker hosts", ylabel="jobs/s, submitted to stored")
        bottom = np.zeros(len(figures))
        for part in figures[0]["cores"]:
            values = np.array([one["cores"][part] for one in figures])
            right.bar(names, values, width=0.5, bottom=bottom, label=part)
            bottom += values
        cores = figures[0]["cores_of_this_process"]
        right.axhline(cores, linestyle="--", color=LIGHT.ink, label="all cores")
        right.set(xlabel="API hosts, and as many worker hosts", ylabel=f"cores in use, of {cores}")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
        most = max(sum(one["cores"].values()) for one in figures) / cores
        figure.suptitle(f"More hosts share the same cores, of which up to {most:.0%} are in use", fontsize=10)
        figure.savefig(file, dpi=150)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("idle", "hosts"))
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--processes", type=int, default=1, help="API processes of `idle`")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--jobs", type=int, default=4000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--cut-s", type=float, default=0.0)
    parser.add_argument("--plot", type=Path, help="of `hosts`: write a picture")
    parser.add_argument("--after-s", type=float, default=2.0, help="seconds of load before each cut")
    options = parser.parse_args()
    load_average = round(os.getloadavg()[0], 1)
    figures: Any = idle(options) if options.what == "idle" else hosts(options)
    if options.plot is not None and options.what == "hosts":
        plot(figures, options.plot)
    print(json.dumps({"load_average_before": load_average, options.what: figures}))


if __name__ == "__main__":
    main()
