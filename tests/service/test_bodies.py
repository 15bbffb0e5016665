"""Bodies that are long to decode: counted before they are decoded, and a user's own to wait for."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable

import pytest

from qpeft.errors import ServiceError
from qpeft.service.api.bodies import MAX_LISTS, MAX_OBJECTS, Pace, check_values
from tests.service.checks import RY, health_s
from tests.service.processes import Server


def test_values_are_counted_outside_of_strings() -> None:
    circuits = [{"circuit": RY.to_dict(), "params": [0.1]}] * 20_000
    programs = [{"qasm": 'qubit[9] q; // "{[\\' + "x q[3]; {" * 200}] * 2_000
    for allowed in (circuits, programs):
        check_values(json.dumps({"device": "simulator", "circuits": allowed}).encode())
    check_values(json.dumps({"params": [[0.5, 1.0]] * (MAX_LISTS - 5)}).encode())
    for text, what in (
        (b'{"circuits":[' + b"{}," * MAX_OBJECTS + b"{}]}", "objects"),
        (b'{"name":"\\\\","circuits":[' + b"{}," * MAX_OBJECTS + b"{}]}", "objects"),
        (b'{"params":[' + b"[]," * MAX_LISTS + b"[]]}", "lists"),
        (b"[" * (8 << 20), "lists"),
    ):
        with pytest.raises(ServiceError, match=f"too many {what}"):
            check_values(text)


def test_a_users_bodies_are_decoded_one_after_the_other() -> None:
    async def seconds(*names: str) -> float:
        pace = Pace(share=0.5)
        start = time.monotonic()
        await asyncio.gather(*(pace.turn(name, 0.05) for name in names))
        return time.monotonic() - start

    assert asyncio.run(seconds("a", "a", "a")) >= 0.19
    assert asyncio.run(seconds("a", "b", "c")) < 0.15


@pytest.mark.slow
def test_large_bodies_of_one_user_keep_nobody_waiting(fresh_server: Callable[..., Server]) -> None:
    server = fresh_server("--executors", "0")
    bodies = {
        "/v1/batches": b'{"device":"simulator","circuits":[' + b"{}," * (8_000_000 // 3) + b"{}]}",
        "/v1/sweeps": b'{"device":"simulator","circuit":{},"params":[' + b"[1]," * 2_000_000 + b"[1]]}",
        "/v1/batches#": b'{"device":"simulator","circuits":[' + b"{}," * 43_000 + b"{}]}",
        "/v1/jobs": b'{"device":"simulator","circuit":{},"params":[' + b"1," * 4_000_000 + b"1]}",
        "/oqcs/task/origin/submit.json": b'{"Configuration":{},"QProgBytes":[' + b"1," * 4_000_000 + b"1]}",
    }
    key = server.new_key("attacker")
    stop, statuses = threading.Event(), set()

    def post(path: str) -> None:
        with server.http(key) as http:
            while not stop.is_set():
                headers = {"content-type": "application/json"}
                statuses.add(http.post(path.strip("#"), content=bodies[path], headers=headers, timeout=120).status_code)

    threads = [threading.Thread(target=post, args=(path,)) for path in [*bodies] * 2]
    for thread in threads:
        thread.start()
    time.sleep(2.0)
    seconds = health_s(server.url)
    stop.set()
    for thread in threads:
        thread.join()
    assert statuses <= {413, 422, 429}  # 413: pyqpanda3 programs of 4 million bytes
    assert seconds < 1.0
