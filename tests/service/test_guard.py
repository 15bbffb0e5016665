"""Hostile input, tenants who look at each other, keys that lose their rights, and what listens where."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import ServiceError
from qpeft.service.logs import without_keys
from qpeft.service.server import check_settings, is_loopback, owned
from qpeft.service.settings import Settings
from tests.service.processes import CLI, Server

RY = Circuit(1, (Op("ry", (0,), Angle(0)),), 1, 1)
DEEP = Circuit(18, tuple(Op("ry", (0,), Angle(0)) for _ in range(1500)), 0, 1)
"""Estimated at more than the seconds of one slice."""
JOB = {"device": "simulator", "circuit": RY.to_dict(), "params": [0.1], "shots": 5}


@pytest.fixture(scope="module")
def http(server: Server) -> httpx.Client:
    with server.client() as client:  # the worker has told the simulator's limits once it has run something
        client.result(client.submit(RY, device="simulator", params=[0.1], shots=1)["id"])
    return server.http(server.new_key("mallory"))


def body(**changes: object) -> bytes:
    return json.dumps({**JOB, **changes}).encode()


HOSTILE = {
    "not json": (b"{", 400),
    "nested deeply": (b'{"device":' + b"[" * 200_000 + b"]" * 200_000 + b"}", 422),
    "nested deeply elsewhere": (b'{"circuit":' + b"[" * 200_000 + b"]" * 200_000 + b"}", 400),
    "nested deeply in the circuit": (body().replace(b'"ops": [', b'"ops": [' + b"[" * 50_000 + b"]" * 50_000 + b","), 400),
    "NaN": (body().replace(b"0.1", b"NaN"), 400),
    "infinity by overflow": (body().replace(b"0.1", b"1e999"), 422),
    "a huge integer": (body().replace(b'"shots": 5', b'"shots": ' + b"9" * 5000), 422),
    "a lone surrogate in the name": (body().replace(b'"shots": 5', b'"shots": 5, "name": "\\ud800"'), 400),
    "raw bytes that are not UTF-8": (body(name="x").replace(b'"x"', b'"\xff\xfe"'), 400),
    "a control character in the name": (body(name="a\0b"), 422),
    "a billion shots": (body(shots=10**9), 422),
    "no shots": (body(shots=0), 422),
    "a fraction of a shot": (body(shots=1.5), 422),
    "shots true": (body(shots=True), 422),
    "72 qubits of state vector": (body(circuit=Circuit(72, (Op("h", (0,)),)).to_dict(), params=[]), 422),
    "a million qubits": (body(circuit={**RY.to_dict(), "n_qubits": 10**6}), 422),
    "an unknown field": (body(callback="http://example.org"), 422),
    "two programs": (body(qasm="OPENQASM 2.0;"), 422),
    "no program": (json.dumps({"device": "simulator", "shots": 1}).encode(), 422),
    "a device of a path": (body(device="../../etc/passwd"), 404),
    "wrong number of parameters": (body(params=[0.1, 0.2]), 422),
    "a repeated qubit in an observable": (body(output="expectations", observables=[[[1.0, [[0, "X"], [0, "Z"]]]]]), 422),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_guard_bodies_are_refused_with_a_reason(http: httpx.Client, name: str) -> None:
    content, status = HOSTILE[name]
    answer = http.post("/v1/jobs", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]
    assert http.get("/healthz").status_code == 200


def test_headers_content_types_and_paths(http: httpx.Client) -> None:
    assert http.post("/v1/jobs", content=body(), headers={"content-type": "text/plain"}).status_code == 415
    assert http.post("/v1/jobs", content=body(), headers={"content-type": "application/x-python-pickle"}).status_code == 415
    long_key = {"content-type": "application/json", "idempotency-key": "k" * 200}
    assert http.post("/v1/jobs", content=body(), headers=long_key).status_code == 422
    assert http.get("/v1/jobs", params={"limit": "1e9"}).status_code == 422
    assert http.get("/v1/jobs", params={"limit": "nan"}).status_code == 422
    assert http.get("/v1/jobs/%2e%2e%2fdata").status_code == 404
    assert http.get("/nowhere").status_code == 404
    for path, allowed in (("/v1/jobs", "GET, POST"), ("/healthz", "GET"), ("/v1/jobs/j1", "DELETE, GET")):
        answer = http.put(path)
        assert (answer.status_code, sorted({*answer.headers["allow"].split(", ")} - {"HEAD"})) == (405, allowed.split(", "))
    assert http.get("/v1/events", params={"after": "\u00b2-1"}).status_code == 422
    answer = http.get("/v1/devices")
    for header in ("x-content-type-options", "content-security-policy", "referrer-policy", "x-frame-options"):
        assert header in answer.headers
    assert "server" not in answer.headers


def test_a_body_too_large_is_refused_before_the_key_is_looked_at(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\ncontent-type: application/json\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_body_that_grows_too_large_in_chunks_is_refused(http: httpx.Client) -> None:
    chunks = (b"x" * 65536 for _ in range(200))
    answer = http.post("/v1/jobs", content=chunks, headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_slow_clients_are_disconnected(fresh_server: Callable[..., Server]) -> None:
    environment = {"QPEFT_SERVICE_HEADER_TIMEOUT_S": "0.5", "QPEFT_SERVICE_BODY_TIMEOUT_S": "0.5"}
    server = fresh_server("--executors", "0", environment=environment)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as head:
        head.sendall(b"POST /v1/jobs HTTP/1.1\r\nhost: ")
        start = time.monotonic()
        assert head.recv(4096) == b""
        assert time.monotonic() - start < 5
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        head_text = f"POST /v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {server.key}\r\n"
        slow.sendall(head_text.encode() + b"content-length: 100\r\ncontent-type: application/json\r\n\r\n{")
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")


BOMBS = {
    "an include outside": 'OPENQASM 3.0; include "/etc/passwd"; qubit q;',
    "a loop without end": "OPENQASM 3.0; qubit q; for int i in [0:1000000000] { x q; }",
    "gates that call each other": "OPENQASM 2.0; qreg q[1]; gate a x { b x; } gate b x { a x; } a q[0];",
    "gates that double": "OPENQASM 2.0; qreg q[1]; gate g0 x { U(0,0,0) x; } "
    + " ".join(f"gate g{k} x {{ g{k - 1} x; g{k - 1} x; }}" for k in range(1, 40))
    + " g39 q[0];",
    "a huge register": "OPENQASM 3.0; qubit[1000000000] q;",
}


@pytest.mark.parametrize("name", BOMBS)
def test_program_bombs_are_refused_and_nobody_else_waits(http: httpx.Client, name: str) -> None:
    start = time.monotonic()
    answer = http.post("/v1/jobs", json={"device": "simulator", "qasm": BOMBS[name], "shots": 10})
    assert answer.status_code == 422
    assert "root:" not in answer.text
    assert time.monotonic() - start < 30
    assert http.post("/v1/jobs", content=body(), headers={"content-type": "application/json"}).status_code == 201


def test_text_that_a_database_refuses_is_refused_at_the_door(http: httpx.Client) -> None:
    """NUL in a program, a device's name, a path or a query; nothing of it reaches the database or a worker."""
    json_type = {"content-type": "application/json"}
    for content in (
        json.dumps({"device": "simulator", "qasm": "OPENQASM 3.0;\0 qubit q;", "shots": 1}),
        json.dumps({"device": "simu\0lator", "qasm": "OPENQASM 3.0; qubit q;", "shots": 1}),
        json.dumps({"device": "simulator", "originir": "QINIT 1\nCREG 1\0", "shots": 1}),
    ):
        assert http.post("/v1/jobs", content=content, headers=json_type).status_code == 422, content
    for method, path in (("POST", "/v1/jobs/%00/cancel"), ("GET", "/v1/jobs/%00"), ("DELETE", "/v1/batches/a%00b")):
        assert http.request(method, path).status_code == 404
    assert http.get("/v1/jobs", params={"device": "a\0"}).status_code == 422
    for route in ("/oqcs/task/origin/taskDetail.json", "/oqcs/task/cancelTask.json"):
        assert http.post(route, json={"taskId": "a\0"}).status_code == 422


def test_a_request_of_too_many_jobs_is_refused_with_the_figure(http: httpx.Client) -> None:
    rows = {"device": "simulator", "circuit": RY.to_dict(), "params": [[0.1]] * 200_000, "shots": 1_000_000, "seed": 1}
    answer = http.post("/v1/sweeps", json={**rows, "circuit": DEEP.to_dict()})
    assert (answer.status_code, answer.json()["code"], answer.json()["bound"]) == (422, "jobs", 20_000), answer.text


def test_a_stranger_sees_nothing(server: Server, http: httpx.Client) -> None:
    with server.client(server.new_key("victim")) as victim:
        job = victim.submit(RY, device="simulator", params=[0.1], shots=5, name="private")["id"]
        batch = victim.submit_sweep(RY, [[0.1]], device="simulator")["id"]
        victim.wait(job)
        victim.wait_batch(batch)
        for method, path in (
            ("GET", f"/v1/jobs/{job}"),
            ("GET", f"/v1/jobs/{job}/result"),
            ("POST", f"/v1/jobs/{job}/cancel"),
            ("DELETE", f"/v1/jobs/{job}"),
            ("GET", f"/v1/batches/{batch}"),
            ("GET", f"/v1/batches/{batch}/results"),
            ("POST", f"/v1/batches/{batch}/cancel"),
            ("DELETE", f"/v1/batches/{batch}"),
        ):
            foreign = http.request(method, path)
            missing = http.request(method, path.replace(job, "j" + "0" * 26).replace(batch, "b" + "0" * 26))
            assert foreign.status_code == missing.status_code == 404, (method, path)
            assert foreign.json()["title"] == missing.json()["title"]
        assert job not in http.get("/v1/jobs").text
        assert "victim" not in http.get("/v1/usage").text
        with http.stream("GET", "/v1/events", headers={"last-event-id": "0-0"}) as stream:
            seen = next(stream.iter_text())
            assert job not in seen
        assert victim.job(job)["state"] == "succeeded"


def test_scopes(server: Server, http: httpx.Client) -> None:
    reader = server.http(server.new_key("mallory", "read"))
    assert reader.post("/v1/jobs", json=JOB).status_code == 403
    assert reader.get("/v1/jobs").status_code == 200
    worker = server.http(server.new_key("mallory", "worker"))
    assert worker.get("/v1/jobs").status_code == 403
    for path in ("/v1/keys", "/v1/workers", "/v1/audit", "/v1/vendor-tasks"):
        assert http.get(path).status_code == 403
    assert http.get("/v1/usage", params={"all": 1}).status_code == 403
    assert http.post("/v1/devices/simulator/status", json={"status": "maintenance"}).status_code == 403
    msgpack = {"content-type": "application/msgpack"}
    for path in ("hello", "lease", "heartbeat", "complete", "vendor/intent", "vendor/update", "vendor/status"):
        assert http.post(f"/v1/worker/{path}", content=b"\x80", headers=msgpack).status_code == 403
    assert server.http().post("/v1/worker/lease", content=b"\x80", headers=msgpack).status_code == 403
    anonymous = httpx.get(f"{server.url}/v1/jobs", timeout=10)
    assert (anonymous.status_code, "www-authenticate" in anonymous.headers) == (401, True)


def test_a_revoked_key_is_refused_and_its_stream_ends(server: Server) -> None:
    key = server.new_key("short-lived")
    revoked = server.http(key)
    with revoked.stream("GET", "/v1/events") as stream:
        lines = stream.iter_lines()
        next(lines)
        with server.client() as admin:
            admin.revoke_key(key.split("_")[0])
        assert "event: closed" in list(lines)
    assert revoked.get("/v1/jobs").status_code == 401
    assert key.split("_")[1] not in server.output()


def test_wrong_keys_are_slowed_down(server: Server) -> None:
    """A guesser shuts out nobody else at his address whose key was good before."""
    wrong, good = server.http("qk0000000000_" + "0" * 64), server.http()
    assert good.get("/v1/jobs").status_code == 200
    time.sleep(2.1)  # the key is looked up again
    statuses = {wrong.get("/v1/jobs").status_code for _ in range(60)}
    assert statuses == {401, 429}
    assert good.get("/v1/jobs").status_code == 200


def test_keys_are_taken_out_of_logs() -> None:
    key = "qk0123456789_" + "ab" * 32
    assert key not in str(without_keys(None, "info", {"event": f"got {key} here", "n": 1}))


def test_where_it_listens(tmp_path: Path) -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    with pytest.raises(ServiceError, match="without TLS"):
        check_settings(Settings(host="0.0.0.0"))
    check_settings(Settings(host="0.0.0.0", behind_proxy=True))
    with pytest.raises(ServiceError, match="one writer"):
        check_settings(Settings(workers=2))
    with owned(tmp_path), pytest.raises(ServiceError, match="another server"), owned(tmp_path):
        pass


def test_the_first_key_is_shown_once_and_its_file_is_private(sqlite_server: Callable[..., Server]) -> None:
    server = sqlite_server("--executors", "0")
    assert server.key_file.stat().st_mode & 0o777 == 0o600
    assert (server.data_dir / "service.sqlite").stat().st_mode & 0o077 == 0
    first = server.key
    server.stop()
    server.start()
    assert server.key == first
    assert first.split("_")[1].encode() not in (server.data_dir / "service.sqlite").read_bytes()
    listed = subprocess.run(
        [*CLI, "keys", "list", "--url", server.url, "--key", first, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "admin" in {key["user"] for key in json.loads(listed.stdout)}


def test_the_description_covers_every_route(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    committed = Path(__file__).parents[2] / "docs" / "openapi.json"
    assert json.loads(committed.read_text()) == document, "run: python -m qpeft.service.app > docs/openapi.json"


@pytest.mark.slow
def test_a_reader_that_does_not_read_costs_others_nothing(fresh_server: Callable[..., Server]) -> None:
    """A stream of 6,000 events that nobody reads: memory stays, others are served, and nothing is missed when it is read later."""
    server = fresh_server("--executors", "0")
    client = server.client()
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    circuits = [{"circuit": RY.to_dict(), "params": [0.1]}] * 1500
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
        slow.settimeout(30)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(f"GET /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {server.key}\r\n\r\n".encode())
        seen = slow.recv(64)
        batches = [client.submit_batch(circuits, device="simulator", shots=1)["id"]]
        time.sleep(1.0)
        before = process.memory_info().rss
        batches += [client.submit_batch(circuits, device="simulator", shots=1)["id"] for _ in range(3)]
        start = time.monotonic()
        for _ in range(20):
            client.devices()
        assert time.monotonic() - start < 5
        assert process.memory_info().rss - before < 40 * 2**20
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        pieces = [seen]
        while sum(piece.count(b"\nevent: job") for piece in pieces) < 5_990:
            pieces.append(slow.recv(1 << 20))
            assert pieces[-1], "the stream ended"
        seen = b"".join(pieces)
        while seen.count(b"\nevent: job") < 6_000:
            seen += slow.recv(1 << 20)
    assert all(seen.count(batch.encode()) >= 1499 for batch in batches)


def test_a_stranger_reads_nothing_anywhere(server: Server) -> None:
    """Every route of the description that reads, asked by another user: no name, id or parameter of the victim's in any answer.

    What the stranger asked for by its id, and is told that there is none of, is not counted. The dashboard's pages are in
    test_dashboard.py.
    """
    marks = ("victim-of-reads", "private-name-77", "0.777125")
    with server.client(server.new_key(marks[0])) as victim:
        job = victim.submit(RY, device="simulator", params=[float(marks[2])], shots=5, name=marks[1])["id"]
        batch = victim.submit_sweep(RY, [[float(marks[2])]], device="simulator", name=marks[1])["id"]
        victim.wait(job)
        victim.wait_batch(batch)
    stranger = server.http(server.new_key("stranger-of-reads"))
    reads = [path for path, methods in stranger.get("/openapi.json").json()["paths"].items() if "get" in methods]
    assert len(reads) > 15
    for path in [*reads, "/metrics"]:
        for name in (job, batch, "simulator"):
            url = path.replace("{id}", name).replace("{prefix}", name)
            if path == "/v1/events":
                with stranger.stream("GET", url, headers={"last-event-id": "0-0"}) as stream:
                    text = next(stream.iter_text())
            else:
                text = stranger.get(url, params={"all": 1} if path == "/v1/usage" else {}).text
            told = [mark for mark in (*marks, job, batch) if mark != name and mark in text]
            assert not told, (url, told, text[:300])
