"""`qpeft serve`: what it refuses before it serves, with TLS, and when it is ready."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from qpeft.backends.vendors.pyqpanda import KEY_VARIABLES
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import ServiceError
from qpeft.service.server import check_devices, check_key_file
from qpeft.service.settings import DEFAULT_DEVICES, Settings
from tests.service.checks import RY, SLOW, until
from tests.service.processes import CLI, Server


def refused(*arguments: str, **environment: str) -> str:
    """What `qpeft serve` says when it does not start."""
    done = subprocess.run(
        [*CLI, "serve", "--port", "0", *arguments],
        capture_output=True, text=True, timeout=90, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode != 0
    assert "serving on" not in done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr + done.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--device", "nope:1"], {}, "no such device"),
        (["--device", "emulator:nope"], {}, "wukong-72"),
        ([], {"QPEFT_SERVICE_MAX_SHOT": "5"}, "did you mean QPEFT_SERVICE_MAX_SHOTS"),
        ([], {"QPEFT_SERVICE_MAX_SHOTS": "many"}, "max_shots"),
        (["--tls-cert", "missing.pem", "--tls-key", "missing.key"], {}, "certificate cannot be read"),
        (["--device", "emulator:missing.json"], {}, "missing.json: cannot read the chip"),
        (["--database", "postgresql+psycopg://q@127.0.0.1:1/none"], {}, "database cannot be used"),
        (["--database", "postgresql+psycopg://q:secret@127.0.0.1:1/none"], {}, "password on the command line"),
    ],
)
def test_what_cannot_run_is_said_in_one_line(tmp_path: Path, arguments: list[str], environment: dict[str, str], said: str) -> None:
    assert said in refused("--data-dir", str(tmp_path / "data"), *arguments, **environment)


def test_devices_that_cannot_be_opened_are_said_before_anything_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in KEY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    check_devices(Settings(devices=DEFAULT_DEVICES))
    with pytest.raises(ServiceError, match="cannot be opened: no key for pyqpanda"):
        check_devices(Settings(devices=("simulator", "pyqpanda:72")))
    check_devices(Settings(devices=("pyqpanda:72",), executors=0))  # somebody else's worker has the key


def test_a_file_that_the_first_key_cannot_go_to_is_refused(tmp_path: Path) -> None:
    check_key_file(tmp_path / "admin.key")
    for file in (tmp_path, tmp_path / "missing" / "admin.key"):
        with pytest.raises(ServiceError, match="file for the first key"):
            check_key_file(file)


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are words with commas, or JSON; what cannot be read is said in one line, with all else that is wrong."""
    monkeypatch.setenv("QPEFT_SERVICE_DEVICES", "simulator, emulator:wukong-72")
    monkeypatch.setenv("QPEFT_SERVICE_WEBHOOK_HOSTS", '["hooks.example.org"]')
    monkeypatch.setenv("QPEFT_SERVICE_PORT", "9000")
    found = Settings.load()
    assert (found.devices, found.webhook_hosts, found.port) == (
        ("simulator", "emulator:wukong-72"),
        ("hooks.example.org",),
        9000,
    )
    monkeypatch.setenv("QPEFT_SERVICE_WEBHOOK_HOSTS", '["hooks.example.org"')
    monkeypatch.setenv("QPEFT_SERVICE_BEHIND_PROXY", "perhaps")
    with pytest.raises(ServiceError, match=r"behind_proxy: .*webhook_hosts: |webhook_hosts: .*behind_proxy: "):
        Settings.load()


@pytest.mark.slow
def test_variables_are_settings_and_options_have_priority(tmp_path: Path) -> None:
    environment = {"QPEFT_SERVICE_HOST": "0.0.0.0", "QPEFT_SERVICE_DATA_DIR": str(tmp_path / "data")}
    assert "without TLS" in refused(**environment)
    assert "SQLite has one writer" in refused("--host", "127.0.0.1", **environment, QPEFT_SERVICE_WORKERS="2")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for another name than the workers use."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(cert, key)
    return cert, key


def make_certificate(cert: Path, key: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=quantum.example",
         "-addext", "subjectAltName=DNS:quantum.example", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip


class TlsServer(Server):
    """A server whose own certificate is the only one that its clients trust."""

    certificate: Path

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def context(self) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(self.certificate))
        made.check_hostname = False
        return made

    def ready(self) -> None:
        until(lambda: self.get("/healthz").status_code == 200, 60)
        until(lambda: self.get("/readyz").status_code == 200, 60)

    def get(self, path: str) -> httpx.Response:
        try:
            return httpx.get(self.url + path, verify=self.context(), timeout=10)
        except httpx.TransportError:
            return httpx.Response(599)


def test_with_tls_its_own_workers_run(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    server = TlsServer(tmp_path, "--tls-cert", str(cert), "--tls-key", str(key))
    server.certificate = cert
    try:
        server.start()
        headers = {"authorization": f"Bearer {server.key}"}
        with httpx.Client(base_url=server.url, verify=server.context(), headers=headers, timeout=30) as http:
            job = http.post("/v1/jobs", json={"device": "simulator", "circuit": RY.to_dict(), "params": [0.1], "shots": 5}).json()
            assert http.get(f"/v1/jobs/{job['id']}", params={"wait": 30}).json()["state"] == "succeeded"
    finally:
        assert server.stop() == 0


def test_a_replaced_certificate_is_served_without_a_restart(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """New connections get it, the server's own workers go on; a damaged file leaves the old one in place."""
    cert, key = certificate
    server = TlsServer(tmp_path, "--tls-cert", str(cert), "--tls-key", str(key))
    server.certificate = cert
    try:
        server.start()
        before = ssl.get_server_certificate(("127.0.0.1", server.port))
        cert.write_text("damaged")
        until(lambda: "the old one stays" in server.output(), 20)
        assert ssl.get_server_certificate(("127.0.0.1", server.port)) == before
        make_certificate(cert, key)
        until(lambda: ssl.get_server_certificate(("127.0.0.1", server.port)) != before, 20)
        assert "the certificate was renewed" in server.output()
        headers = {"authorization": f"Bearer {server.key}"}
        with httpx.Client(base_url=server.url, verify=server.context(), headers=headers, timeout=60) as http:
            job = http.post("/v1/jobs", json={"device": "simulator", "circuit": RY.to_dict(), "params": [0.1], "shots": 5}).json()
            assert http.get(f"/v1/jobs/{job['id']}", params={"wait": 50}).json()["state"] == "succeeded"
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=[pytest.mark.postgres, pytest.mark.slow])])
def test_a_server_that_drains_serves_until_it_is_looked_away_from(
    sqlite_server: Callable[..., Server], processes: int, request: pytest.FixtureRequest
) -> None:
    shared = ["--workers", "2", "--database", request.getfixturevalue("postgres_url")] if processes == 2 else []
    server = sqlite_server(*shared, environment={"QPEFT_SERVICE_DRAIN_S": "6"})
    client = server.client(total_s=0.1)
    assert server.process is not None
    server.process.signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{server.url}/readyz", timeout=10).json().get("code") == "stopping", 5)
    done = client.result(client.submit(RY, device="simulator", params=[0.1], shots=5)["id"])
    assert done["state"] == "succeeded"
    assert server.process.popen.wait(40) == 0


def test_it_is_ready_when_jobs_run(sqlite_server: Callable[..., Server]) -> None:
    server = sqlite_server()
    assert httpx.get(f"{server.url}/readyz", timeout=10).json()["workers"] == {"simulator": 1}
    lonely = sqlite_server("--executors", "0")
    assert httpx.get(f"{lonely.url}/readyz", timeout=10).json()["workers"] == {"simulator": 0}
    full = sqlite_server("--executors", "0", environment={"QPEFT_SERVICE_MIN_FREE_BYTES": str(1 << 60)}, wait=False)
    until(lambda: httpx.get(f"{full.url}/healthz", timeout=10).status_code == 200, 60)
    answer = httpx.get(f"{full.url}/readyz", timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (503, "disk")


@pytest.mark.parametrize("backend", ["sqlite", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow])])
def test_large_results_are_stored_and_larger_ones_refused(
    sqlite_server: Callable[..., Server], backend: str, request: pytest.FixtureRequest
) -> None:
    """20 qubits of probabilities are 8 MiB, more than a user's request may have; what does not fit is refused with the figure."""
    database = ["--database", request.getfixturevalue("postgres_url")] if backend == "postgres" else []
    server = sqlite_server(*database, environment={"QPEFT_SERVICE_MAX_RESULT_BYTES": str(12 << 20)})
    client = server.client()
    wide = Circuit(20, (Op("h", (0,)), Op("x", (19,))))
    for _ in range(3):
        job = client.submit(wide, device="simulator", output="probabilities")["id"]
        values = client.result(job)["probabilities"][0]
        assert len(values) == 1 << 20
        assert (values[1], values[(1 << 19) + 1]) == pytest.approx((0.5, 0.5))
        assert client.job(job)["attempt"] == 1
    rows = [[0.1 * k] for k in range(7)]  # at 18 qubits six fill a job's result to the byte
    sweep = client.submit_sweep(Circuit(18, (Op("ry", (0,), Angle(0)),), 1, 1), rows, device="simulator", output="probabilities")
    assert [len(line["probabilities"]) for line in client.results(sweep["id"])] == [6, 1]
    http = server.http()
    many = {"device": "simulator", "qasm": "OPENQASM 3.0; qubit[20] q;", "shots": 1_000_000}
    answer = http.post("/v1/jobs", json=many)
    assert (answer.status_code, answer.json()["code"], answer.json()["bound"]) == (422, "result", 12 << 20)


@pytest.mark.slow
def test_a_long_native_run_does_not_silence_its_worker(fresh_server: Callable[..., Server]) -> None:
    server = fresh_server(environment={"QPEFT_SERVICE_LEASE_S": "1.5", "QPEFT_SERVICE_MAX_JOB_S": "20"})
    client = server.client()
    long = Circuit(20, tuple(Op("h", (q % 20,)) for q in range(6000)))  # seconds in one call
    job = client.submit(long, device="simulator", output="expectations")
    done = client.wait(job["id"], timeout_s=60)
    assert done["attempt"] == 1, done
    longer = Circuit(20, tuple(Op("h", (q % 20,)) for q in range(15_000)))
    with pytest.raises(ServiceError, match=r"would take too long.*20 s"):
        client.submit(longer, device="simulator", output="expectations")
    again = client.submit(long, device="simulator", output="expectations")
    until(lambda: client.job(again["id"])["state"] == "running")
    time.sleep(1.5)
    client.cancel(again["id"])
    start = time.monotonic()
    assert client.wait(again["id"], timeout_s=30)["state"] == "cancelled"
    assert time.monotonic() - start < 10
    quick = client.submit(RY, device="simulator", params=[0.1], shots=5)
    assert client.wait(quick["id"], timeout_s=30)["state"] == "succeeded"


def test_two_workers_of_one_name_live_together(fresh_server: Callable[..., Server]) -> None:
    server = fresh_server("--executors", "0")
    client = server.client()
    key = server.new_key("workers", "worker")
    workers = [server.worker(key, name=f"twin{k}", worker_name="twin") for k in range(2)]
    try:
        until(lambda: sum("runs simulator" in (server.folder / f"twin{k}.log").read_text() for k in range(2)) == 2, 60)
        batch = client.submit_sweep(SLOW, [[0.1]] * 600, device="simulator")
        done = client.wait_batch(batch["id"], timeout_s=120)
        assert done["states"] == {"succeeded": done["jobs"]}
        told = "".join((server.folder / f"twin{k}.log").read_text() for k in range(2))
        assert told.count("starts anew") <= 1
    finally:
        assert [worker.stop() for worker in workers] == [0, 0]


def test_a_worker_whose_service_is_gone_asks_with_patience(fresh_server: Callable[..., Server]) -> None:
    server = fresh_server("--executors", "0")
    worker = server.worker(server.new_key("workers", "worker"))
    try:
        until(lambda: server.client().devices()[0]["workers"] == 1, 60)
        server.kill()
        time.sleep(4.0)
        lines = [json.loads(line) for line in (server.folder / "worker.log").read_text().splitlines()]
        assert 1 <= sum("does not answer" in line["event"] for line in lines) <= 30
        assert psutil.Process(worker.pid).is_running()
    finally:
        worker.kill()
