"""Attacks on a real server: connections that say nothing, keys that are guessed, streams that are hoarded. Others are served."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest

from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.service.client import Client
from tests.service.checks import RY, health_s, until
from tests.service.processes import Server


@contextlib.contextmanager
def silent(port: int, n: int) -> Iterator[list[socket.socket]]:
    """`n` connections on which nothing is said."""
    opened: list[socket.socket] = []
    try:
        for _ in range(n):
            opened.append(socket.create_connection(("127.0.0.1", port), timeout=10))
        yield opened
    finally:
        for one in opened:
            one.close()


def test_silent_connections_keep_nobody_out(fresh_server: Callable[..., Server]) -> None:
    """Six hundred of one address: the oldest are closed, new ones are served, by key and without."""
    server = fresh_server("--executors", "0", environment={"QPEFT_SERVICE_MAX_CONNECTIONS_PER_ADDRESS": "100"})
    client = server.client()
    with silent(server.port, 600) as connections:
        assert health_s(server.url) < 2.0
        assert client.devices()
        assert connections[0].recv(1) == b""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["a key's", "nobody's"])
def test_bodies_that_never_come_keep_nobody_out(fresh_server: Callable[..., Server], form: str) -> None:
    """From five addresses, with a whole head each: 600 requests, where 200 connections are allowed."""
    server = fresh_server("--executors", "0", environment={"QPEFT_SERVICE_MAX_CONNECTIONS": "200"})
    client, slow = server.client(), f"authorization: Bearer {server.new_key('attacker')}"
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nhost: x\r\n{slow}\r\ncontent-type: application/json\r\ncontent-length: 4000\r\n\r\n"
        if form == "a key's"
        else "POST /login HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 400\r\n\r\n"
    )
    with contextlib.ExitStack() as opened:
        for k in range(600):
            attacker = opened.enter_context(socket.socket())
            attacker.settimeout(10)
            attacker.bind((f"127.0.0.{2 + k % 5}", 0))
            attacker.connect(("127.0.0.1", server.port))
            with contextlib.suppress(OSError):
                attacker.sendall(head.encode())
        assert health_s(server.url) < 2.0
        assert client.devices()


def test_forms_are_small_and_guessing_is_slowed_down(fresh_server: Callable[..., Server]) -> None:
    """20 connections that post megabytes to the login page cost no memory and hold nobody up; wrong keys get 429 unread."""
    server = fresh_server("--executors", "0", environment={"QPEFT_SERVICE_BAD_KEY_RATE_PER_S": "2"})
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    stop, statuses = threading.Event(), set()

    def post() -> None:
        while not stop.is_set():
            with contextlib.suppress(httpx.TransportError):
                statuses.add(httpx.post(f"{server.url}/login", data={"key": "x" * (8 << 20)}, timeout=20).status_code)

    threads = [threading.Thread(target=post) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    seconds = health_s(server.url)
    stop.set()
    for thread in threads:
        thread.join()
    assert statuses <= {413}
    assert seconds < 2.0
    assert process.memory_info().rss - before < 64 << 20
    guesses = {httpx.post(f"{server.url}/login", data={"key": f"qk{k}"}, timeout=20).status_code for k in range(60)}
    assert guesses == {401, 429}
    time.sleep(1.5)
    assert server.client().devices()


def test_streams_and_waits_of_one_user_are_bounded(fresh_server: Callable[..., Server]) -> None:
    environment = {"QPEFT_SERVICE_MAX_STREAMS": "3", "QPEFT_SERVICE_MAX_WAITS": "2"}
    server = fresh_server("--executors", "0", environment=environment)
    client, http = server.client(), server.http()
    job = client.submit(RY, device="simulator", params=[0.1], shots=5)["id"]
    lines: list[Iterator[str]] = []
    with contextlib.ExitStack() as open_streams:
        for _ in range(3):
            stream = open_streams.enter_context(http.stream("GET", "/v1/events"))
            lines.append(stream.iter_lines())  # a reader that is dropped closes its stream
            next(lines[-1])
        with http.stream("GET", "/v1/events") as refused:
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
        with server.http(server.new_key("other")).stream("GET", "/v1/events") as others:
            assert others.status_code == 200
    until(lambda: can_stream(http))
    assert burst(server, [server.key, str(client.rotate_key(client.my_keys()[0]["prefix"])["key"])] * 20) == 3
    until(lambda: can_stream(http))
    statuses: list[int] = []
    wait = lambda: statuses.append(http.get(f"/v1/jobs/{job}", params={"wait": 3}).status_code)  # noqa: E731
    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 200, 429, 429]


def burst(server: Server, keys: list[str]) -> int:
    """How many streams are given when all are asked for at once, with several keys of one user."""
    with contextlib.ExitStack() as opened:
        made = [opened.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20)) for _ in keys]
        for connection, key in zip(made, keys, strict=True):
            connection.sendall(f"GET /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n".encode())
        return sum(connection.recv(12) == b"HTTP/1.1 200" for connection in made)


def can_stream(http: httpx.Client) -> bool:
    with http.stream("GET", "/v1/events") as stream:
        return stream.status_code == 200


def test_small_jobs_run_while_one_takes_long(fresh_server: Callable[..., Server]) -> None:
    """The process with the long job is held up here, so that the job takes as long as the test wants."""
    server = fresh_server()
    attacker, user = server.client(server.new_key("attacker")), server.client(server.new_key("user"))

    def quick(client: Client) -> str:
        return str(client.submit(RY, device="simulator", params=[0.1], shots=10)["id"])

    user.result(quick(user))
    assert server.process is not None
    (worker,) = psutil.Process(server.process.pid).children()
    (child,) = worker.children()
    child.suspend()
    long, reserved = quick(attacker), quick(user)
    try:
        for job in (reserved, quick(user), quick(user)):
            assert user.wait(job, timeout_s=30)["state"] == "succeeded"
        assert attacker.job(long)["state"] == "running"
    finally:
        child.resume()
    assert attacker.wait(long, timeout_s=30)["attempt"] == 1


@pytest.mark.slow
def test_an_interactive_job_that_takes_long_goes_to_the_bulk_lane(fresh_server: Callable[..., Server]) -> None:
    """Noise costs an emulated chip more than anybody estimates: the second such job is returned, and others run."""
    server = fresh_server(devices=("simulator", "emulator:wukong-72"))
    attacker, user = server.client(server.new_key("attacker")), server.client(server.new_key("user"))
    gates = tuple(Op("ry", (k % 12,), Angle(0)) if k % 2 else Op("cz", (k % 11, k % 11 + 1)) for k in range(400))
    heavy = Circuit(12, gates, 0, 1)
    settings = {"device": "emulator:wukong-72", "shots": 100_000, "exclusive": True}
    jobs = [attacker.submit(heavy, params=[0.1 * k], **settings)["id"] for k in range(2)]
    until(lambda: attacker.job(jobs[1])["lane"] == "bulk", 60)
    assert "takes more than" in attacker.job(jobs[1])["reason"]
    start = time.monotonic()
    user.result(user.submit(RY, device="simulator", params=[0.1], shots=10)["id"])
    assert time.monotonic() - start < 15
    for job in jobs:
        attacker.cancel(job)
    until(lambda: attacker.usage()["open_circuits"] == 0, 30)


@pytest.mark.slow
def test_another_users_small_job_waits_for_no_deep_program(fresh_server: Callable[..., Server]) -> None:
    """Deep programs as text, whose cost nobody would see from their length, are costed and do not ride in the interactive lane."""
    server = fresh_server(environment={"QPEFT_SERVICE_MAX_JOB_S": "60"})
    attacker, user = server.client(server.new_key("attacker")), server.client(server.new_key("user"))
    user.result(user.submit(RY, device="simulator", params=[0.1], shots=10)["id"])
    body = "gate g a { h a; t a; h a; t a; h a; } " + "".join(f"g q[{k % 20}];" for k in range(120))
    text = f'OPENQASM 3.0; include "stdgates.inc"; qubit[20] q; {body}'
    jobs = [attacker.submit(text + "x q[0];" * k, device="simulator", shots=10) for k in range(4)]
    assert {attacker.job(job["id"])["lane"] for job in jobs} == {"bulk"}
    start = time.monotonic()
    quick = user.submit(RY, device="simulator", params=[0.2], shots=10)
    user.result(quick["id"], timeout_s=100)
    assert time.monotonic() - start < 15
    for job in jobs:
        attacker.cancel(job["id"])
    until(lambda: attacker.usage()["open_circuits"] == 0, 30)


@pytest.mark.slow
def test_a_crash_of_a_circuits_process_is_that_jobs_alone(fresh_server: Callable[..., Server]) -> None:
    """The process that runs circuits is killed: the worker lives, the job runs again."""
    server = fresh_server()
    client = server.client()
    long = Circuit(20, tuple(Op("h", (q % 20,)) for q in range(600)))
    job = client.submit(long, device="simulator", output="expectations")["id"]
    until(lambda: client.job(job)["state"] == "running")
    assert server.process is not None
    (worker,) = psutil.Process(server.process.pid).children()
    (child,) = worker.children()
    time.sleep(0.5)
    child.kill()
    done = client.wait(job, timeout_s=150)
    assert (done["state"], done["attempt"]) == ("succeeded", 2)
    assert worker.is_running()


@pytest.mark.slow
def test_a_job_that_crashes_its_process_each_time_fails_and_blocks_nobody(fresh_server: Callable[..., Server]) -> None:
    server = fresh_server(environment={"QPEFT_SERVICE_MAX_ATTEMPTS": "3"})
    attacker, user = server.client(server.new_key("attacker")), server.client(server.new_key("user"))
    assert server.process is not None
    (worker,) = psutil.Process(server.process.pid).children()
    gates = tuple(Op("h", (q % 20,)) for q in range(15_000))  # half a minute
    poison = attacker.submit(Circuit(20, gates), device="simulator", output="expectations")
    deadline = time.monotonic() + 150
    while attacker.job(poison["id"])["state"] in ("queued", "running") and time.monotonic() < deadline:
        time.sleep(5.0)  # a process that has just been started is not at the job yet
        for child in worker.children():
            child.kill()
    done = attacker.wait(poison["id"], timeout_s=60)
    assert (done["state"], done["attempt"]) == ("failed", 3)
    assert "attempt 3 of 3" in done["reason"]
    assert user.result(user.submit(RY, device="simulator", params=[0.1], shots=10)["id"], timeout_s=30)["state"] == "succeeded"
    assert worker.is_running()
