"""API v1 on a real server with a real worker."""

from __future__ import annotations

import json
import math
import struct
import threading

import httpx
import numpy as np
import pytest

from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.circuits.text.qasm import to_qasm2, to_qasm3
from qpeft.errors import ServiceError
from qpeft.service.client import AsyncClient, Client
from tests.service.processes import Server

RY = Circuit(1, (Op("ry", (0,), Angle(0)),), 1, 1)
ASYMMETRIC = Circuit(3, (Op("x", (0,)), Op("h", (1,)), Op("cx", (1, 2))))


@pytest.fixture(scope="module")
def key(server: Server) -> str:
    return server.new_key("alice")


@pytest.fixture(scope="module")
def client(server: Server, key: str) -> Client:
    return server.client(key)


@pytest.fixture(scope="module")
def http(server: Server, key: str) -> httpx.Client:
    return server.http(key)


def test_one_job_in_each_form_has_the_same_outcomes(client: Client) -> None:
    programs = [(ASYMMETRIC, None), (to_qasm2(ASYMMETRIC), "qasm"), (to_qasm3(ASYMMETRIC), "qasm")]
    for program, form in programs:
        job = client.submit(program, form=form, device="simulator", output="probabilities", name="three")
        assert job["state"] == "queued"
        result = client.result(job["id"])
        np.testing.assert_allclose(result["probabilities"], [[0, 0, 0, 0, 0.5, 0, 0, 0.5]], atol=1e-12)
        done = client.job(job["id"])
        assert (done["state"], done["attempt"], done["name"]) == ("succeeded", 1, "three")
        assert done["created_at"] <= done["started_at"] <= done["finished_at"]
        assert done["calibration"]


def test_counts_with_a_seed_repeat_and_sum_to_the_shots(client: Client) -> None:
    jobs = [client.submit(ASYMMETRIC, device="simulator", shots=200, seed=seed) for seed in (7, 7, 8)]
    counts = [client.result(job["id"])["counts"][0] for job in jobs]
    assert counts[0] == counts[1]
    assert set(counts[0]) == {"100", "111"}
    assert all(sum(count.values()) == 200 for count in counts)


def test_expectations_of_any_pauli_word(client: Client) -> None:
    words = [[[1.0, [[0, "X"]]]], [[0.5, [[0, "Z"]]], [0.25, []]]]
    job = client.submit(RY, device="simulator", params=[0.3], output="expectations", observables=words)
    expected = [math.sin(0.3), 0.5 * math.cos(0.3) + 0.25]
    np.testing.assert_allclose(client.result(job["id"])["expectations"], [expected], atol=1e-9)


@pytest.mark.parametrize("binary", [True, False])
def test_a_sweep_is_cut_and_comes_back_in_order(client: Client, binary: bool) -> None:
    angles = np.linspace(0, 3, 2500)[:, None]
    batch = client.submit_sweep(RY, angles, device="simulator", binary=binary)
    assert batch["circuits"] == 2500
    assert batch["jobs"] >= 3
    values = [row for line in client.results(batch["id"]) for row in line["expectations"]]
    np.testing.assert_allclose(values, np.cos(angles), atol=1e-6 if binary else 1e-9)
    assert client.wait_batch(batch["id"])["states"] == {"succeeded": batch["jobs"]}


def test_results_as_numbers(client: Client, http: httpx.Client) -> None:
    angles = np.linspace(0, 3, 40)[:, None]
    batch = client.submit_sweep(RY, angles, device="simulator")
    client.wait_batch(batch["id"])
    answer = http.get(f"/v1/batches/{batch['id']}/results", headers={"accept": "application/octet-stream"})
    assert answer.headers["qpeft-columns"] == "1"
    np.testing.assert_allclose(np.frombuffer(answer.content, "<f8"), np.cos(angles[:, 0]), atol=1e-6)


def test_a_batch_runs_every_circuit_and_pages(client: Client, http: httpx.Client) -> None:
    circuits = [{"circuit": RY.to_dict(), "params": [0.1 * k]} for k in range(30)]
    with pytest.raises(ServiceError, match=r"circuit 30: .*syntax error"):
        client.submit_batch([*circuits, {"qasm": "OPENQASM 2.0; nonsense"}], device="simulator", output="expectations")
    batch = client.submit_batch(circuits, device="simulator", output="expectations")
    lines = list(client.results(batch["id"]))
    np.testing.assert_allclose([line["expectations"][0][0] for line in lines], np.cos(0.1 * np.arange(30)), atol=1e-9)
    assert client.wait_batch(batch["id"])["state"] == "succeeded"
    page = http.get(f"/v1/batches/{batch['id']}/results", params={"cursor": 28, "limit": 2})
    assert [json.loads(line)["index"] for line in page.text.splitlines()] == [28, 29]
    assert (page.headers["qpeft-cursor"], page.headers["qpeft-complete"]) == ("30", "true")


def test_idempotency_keys(server: Server, http: httpx.Client) -> None:
    body = json.dumps({"device": "simulator", "circuit": RY.to_dict(), "params": [0.5], "output": "expectations"})
    headers = {"content-type": "application/json", "idempotency-key": "one"}
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(http.post("/v1/jobs", content=body, headers=headers))) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200] * 11 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = http.post("/v1/jobs", content=body.replace("0.5", "0.6"), headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency")
    assert other.headers["content-type"] == "application/problem+json"
    stranger = server.http(server.new_key("bob")).post("/v1/jobs", content=body.replace("0.5", "0.6"), headers=headers)
    assert stranger.status_code == 201


def test_cancel_and_delete(server: Server, client: Client, http: httpx.Client) -> None:
    with server.client() as admin:
        admin.set_device("simulator", "maintenance", "a test")
        try:
            job = client.submit(RY, device="simulator", params=[0.1], shots=10)
            batch = client.submit_sweep(RY, np.zeros((3000, 1)), device="simulator")
            assert client.job(job["id"])["queue_position"] == 0
            assert client.queue("simulator")["yours"]["bulk"] >= 3
            with pytest.raises(ServiceError, match="not finished"):
                client.delete(job["id"])
            assert client.cancel(job["id"])["state"] == "cancelled"
            assert client.cancel_batch(batch["id"])["state"] == "cancelled"
        finally:
            admin.set_device("simulator", "online")
    with pytest.raises(ServiceError, match="no result"):
        client.result(job["id"])
    client.delete(job["id"])
    client.delete_batch(batch["id"])
    for path in (f"/v1/jobs/{job['id']}", f"/v1/batches/{batch['id']}", f"/v1/batches/{batch['id']}/results"):
        assert http.get(path).status_code == 404


def test_events_resume_where_they_were_left(client: Client) -> None:
    seen: list[tuple[str, dict[str, object]]] = []
    first = client.result(client.submit(RY, device="simulator", params=[0.1], output="expectations")["id"])
    stream = client.events(after="0-0", timeout_s=5)
    for name, job in stream:
        seen.append((name, job))
        if job["id"] == first["id"] and job["state"] == "succeeded":
            break
    second = client.result(client.submit(RY, device="simulator", params=[0.2], output="expectations")["id"])
    later = []
    for _, job in client.events(after=seen[-1][0], timeout_s=5):
        later.append(job)
        if job["id"] == second["id"] and job["state"] == "succeeded":
            break
    assert first["id"] not in {job["id"] for job in later}


def test_devices_usage_and_calibration(client: Client) -> None:
    (device,) = client.devices()
    assert device["id"] == "simulator"
    assert device["status"] == "online"
    assert device["workers"] == 1
    assert client.calibration("simulator")["id"] == device["calibration"]
    before = {(row["day"], row["device"]): row for row in client.usage()["usage"]}
    client.result(client.submit(RY, device="simulator", params=[0.1], shots=123)["id"])
    used = client.usage()
    after = {(row["day"], row["device"]): row for row in used["usage"]}
    day = max(after)
    assert after[day]["shots"] - before.get(day, {"shots": 0})["shots"] == 123
    assert after[day]["device_s"] > 0
    assert used["open_circuits"] == 0


async def _round_trip(server: Server, key: str) -> list[float]:
    async with AsyncClient(server.url, key) as client:
        batch = await client.submit_sweep(RY, [[0.0], [1.0]], device="simulator")
        job = await client.submit(RY, device="simulator", params=[2.0], output="expectations")
        values = [row[0] async for line in client.results(batch["id"]) for row in line["expectations"]]
        return [*values, (await client.result(job["id"]))["expectations"][0][0]]


def test_the_async_client(server: Server) -> None:
    import asyncio

    values = asyncio.run(_round_trip(server, server.new_key("carol")))
    np.testing.assert_allclose(values, np.cos([0.0, 1.0, 2.0]), atol=1e-6)


def test_waiting_ends(server: Server, client: Client) -> None:
    with server.client() as admin:
        admin.set_device("simulator", "maintenance")
        try:
            job = client.submit(RY, device="simulator", params=[0.1], shots=10)
            with pytest.raises(ServiceError, match="did not end in time"):
                client.result(job["id"], timeout_s=0.3)
        finally:
            admin.set_device("simulator", "online")
    client.result(job["id"])


def test_a_job_expires_in_the_queue(server: Server, client: Client) -> None:
    with server.client() as admin:
        admin.set_device("simulator", "maintenance")
        try:
            job = client.submit(RY, device="simulator", params=[0.1], shots=10, expires_s=0.1)
            assert client.wait(job["id"], timeout_s=10)["state"] == "expired"
        finally:
            admin.set_device("simulator", "online")


def test_a_draining_device_takes_nothing_new(server: Server, http: httpx.Client) -> None:
    with server.client() as admin:
        admin.set_device("simulator", "draining", "recalibration")
        try:
            answer = http.post("/v1/jobs", json={"device": "simulator", "circuit": RY.to_dict(), "params": [0.1], "shots": 1})
            assert answer.status_code == 503
            assert "recalibration" in answer.json()["detail"]
            assert int(answer.headers["retry-after"]) > 0
        finally:
            admin.set_device("simulator", "online")
        acts = admin.connection.request("GET", "/v1/audit").json()["audit"]
        assert any(entry["act"] == "device.status" and "recalibration" in entry["detail"] for entry in acts)


def test_a_binary_sweep_of_the_wrong_size_is_refused(http: httpx.Client) -> None:
    head = json.dumps({"device": "simulator", "circuit": RY.to_dict(), "rows": 5}).encode()
    for body in (b"", struct.pack("<I", 10**9), struct.pack("<I", len(head)) + head + b"\0" * 8):
        answer = http.post("/v1/sweeps", content=body, headers={"content-type": "application/octet-stream"})
        assert answer.status_code in (400, 422)


def test_the_quota_is_a_429_that_says_so(server: Server) -> None:
    client = server.client(server.new_key("small", max_open_circuits=10), total_s=0.1)
    with pytest.raises(ServiceError, match="too many circuits") as caught:
        client.submit_sweep(RY, np.zeros((11, 1)), device="simulator")
    assert caught.value.status == 429
    assert caught.value.retry_after_s
