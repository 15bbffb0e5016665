"""Unmodified pyqpanda3 against the service. The SDK blocks and prints, so that it runs in a process of its own."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.service.conftest import STORES, database_arguments
from tests.service.processes import Server

pytestmark = pytest.mark.slow

pytest.importorskip("pyqpanda3")

BELL = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; h q[0]; cx q[0], q[1];'
PRELUDE = """
import json, sys, time
from pyqpanda3.core import CNOT, H, QProg, X, measure
from pyqpanda3.qcloud import JobStatus, QCloudJob, QCloudOptions, QCloudService
url, key = sys.argv[1:3]
service = QCloudService(key, url=url)
def bell(flip):
    program = QProg()
    if flip:
        program << X(0)
    program << H(1) << CNOT(1, 2) << measure([0, 1, 2], [0, 1, 2])
    return program
def ended(job):
    deadline = time.time() + 60
    while time.time() < deadline:
        result = job.query()
        if result.job_status() in (JobStatus.FINISHED, JobStatus.FAILED):
            break
        time.sleep(0.1)
    return result
def answer(value):
    print("ANSWER " + json.dumps(value))
"""


def sdk(server: Server, script: str, key: str, timeout: float = 120) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, server.url, key], capture_output=True, text=True, timeout=timeout, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, done.stdout + done.stderr
    return json.loads(lines[-1].removeprefix("ANSWER "))


@pytest.fixture(scope="module", params=STORES)
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    arguments = database_arguments(request, request.param)
    server = Server(tmp_path_factory.mktemp("cloud"), *arguments, devices=("simulator", "emulator:wukong-72")).start()
    try:
        with server.client() as client:  # the worker is there once this has run
            client.result(client.submit(BELL, device="emulator:wukong-72", shots=1)["id"], timeout_s=60)
        yield server
    finally:
        server.close()
        server.stop()


@pytest.fixture(scope="module")
def key(cloud: Server) -> str:
    return cloud.new_key("pyqpanda")


def test_the_chips_are_listed_and_described(cloud: Server, key: str) -> None:
    script = """
info = service.backend("72").chip_info()
answer({"backends": service.backends(), "qubits": info.qubits_num(), "edges": len(info.get_chip_topology())})
"""
    found = sdk(cloud, script, key)
    assert found["backends"]["72"] is True
    assert found["qubits"] == 72
    assert found["edges"] > 80


def test_the_best_qubits_are_lines_of_the_chip(cloud: Server, key: str) -> None:
    script = """
chip = service.backend("72")
found = chip.best_qubit_blocks(5, 1, 3)
edges = [tuple(pair.get_qubits()) for pair in chip.chip_info().double_qubits_info() if pair.get_fidelity() > 0]
many = service.best_qubit_blocks("72", 30, 1, 16)
answer({"blocks": found.qubit_blocks, "edges": edges, "chip": found.chip_id, "many": many.size()})
"""
    found = sdk(cloud, script, key)
    edges = {frozenset(map(int, pair)) for pair in found["edges"]}
    assert [len(block) for block in found["blocks"]] == [5, 5, 5]
    assert len({qubit for block in found["blocks"] for qubit in block}) == 15
    assert all(frozenset(pair) in edges for block in found["blocks"] for pair in itertools.pairwise(block))
    assert (found["chip"], 1 <= found["many"] <= 2) == ("72", True)


def test_two_hundred_circuits_on_the_emulated_chip(cloud: Server, key: str) -> None:
    script = """
job = service.backend("72").run([bell(k % 2 == 1) for k in range(200)], 500, QCloudOptions())
states, result = set(), None
deadline = time.time() + 90
while time.time() < deadline:
    result = job.query()
    states.add(str(result.job_status()))
    if result.job_status() == JobStatus.FINISHED:
        break
    time.sleep(0.2)
again = QCloudJob(job.job_id()).query()
answer({"counts": result.get_counts_list(), "again": again.get_counts_list() == result.get_counts_list(), "states": sorted(states)})
"""
    found = sdk(cloud, script, key)
    assert len(found["counts"]) == 200
    assert found["again"]
    for number, counts in enumerate(found["counts"]):
        by_outcome = {int(word, 0 if word.startswith("0x") else 2): n for word, n in counts.items()}
        assert sum(by_outcome.values()) == 500
        expected = (0b000, 0b110) if number % 2 == 0 else (0b001, 0b111)  # c[0] is the lowest bit
        assert sum(by_outcome.get(outcome, 0) for outcome in expected) > 250  # noise leaves well over a half


def test_the_exact_simulator_counts_and_gives_probabilities(cloud: Server, key: str) -> None:
    script = """
simulator = service.backend("full_amplitude")
answer({"counts": ended(simulator.run(bell(True), 1000)).get_counts(),
        "probabilities": ended(simulator.run(bell(True), [0, 1])).get_probs()})
"""
    found = sdk(cloud, script, key)
    assert set(found["counts"]) == {"001", "111"}
    assert sum(found["counts"].values()) == 1000
    assert found["probabilities"] == pytest.approx({"01": 0.5, "11": 0.5})


def test_binary_programs_and_native_instructions(cloud: Server, key: str) -> None:
    script = """
chip = service.backend("72")
two = ended(chip.run([bell(False), bell(True)], 500, QCloudOptions(), True)).get_counts_list()
flip = '[[{"RPhi":[1,0.0,180.0,0]},{"Measure":[[1],30]}]]'
answer({"two": two, "one": ended(chip.run(bell(True), 500, QCloudOptions(), True)).get_counts(),
        "flip": ended(chip.run_instruction(flip, 500, QCloudOptions())).get_counts()})
"""
    found = sdk(cloud, script, key)
    for counts, expected in ((found["two"][0], ("000", "110")), (found["two"][1], ("001", "111")), (found["one"], ("001", "111"))):
        assert sum(counts.values()) == 500
        assert sum(counts.get(word, 0) for word in expected) > 250
    assert found["flip"]["1"] > 400


def test_what_cannot_run_is_refused_with_the_reason(cloud: Server, key: str) -> None:
    script = """
refused = ""
try:
    service.backend("72").run_quantum_state_tomography(bell(True), 100, QCloudOptions())
except Exception as error:
    refused = str(error)
broken = QProg()
for q in range(73):
    broken << H(q)
broken << measure([0], [0])
try:
    service.backend("72").run([bell(True), broken], 100, QCloudOptions())
    said = ""
except Exception as error:
    said = str(error)
answer({"refused": refused, "said": said})
"""
    found = sdk(cloud, script, key)
    assert "this kind of task is not run here" in found["refused"]
    assert "circuit 1" in found["said"]
    assert "too few qubits" in found["said"]


def test_one_bad_circuit_hides_nothing_of_its_task(cloud: Server, key: str) -> None:
    """The second of three programs ends without outcomes: the others' are shown, with the reason."""
    with cloud.client() as admin, cloud.client(key) as client:
        admin.set_device("emulator:wukong-72", "maintenance")
        try:
            job = sdk(
                cloud,
                'answer(service.backend("72").run([bell(False), bell(True), bell(False)], 300, QCloudOptions()).job_id())',
                key,
            )
            client.cancel(next(one["id"] for one in client.jobs(limit=3) if one["index"] == 1))
        finally:
            admin.set_device("emulator:wukong-72", "online")
        client.wait_batch(job)
    script = f"""
result = ended(QCloudJob("{job}"))
answer({{"counts": result.get_counts_list(), "status": result.job_status().name, "said": result.origin_data()}})
"""
    found = sdk(cloud, script, key)
    assert found["status"] == "FINISHED"
    assert [sum(counts.values()) for counts in found["counts"]] == [300, 0, 300]
    assert "program 1: cancelled by its owner" in found["said"]


def test_no_shots_are_refused(cloud: Server, key: str) -> None:
    script = """
try:
    answer(service.backend("72").run([bell(False)], 0, QCloudOptions()).job_id())
except Exception as error:
    answer(str(error))
"""
    assert "at least one shot" in sdk(cloud, script, key)


def test_cancelling_a_task(cloud: Server, key: str) -> None:
    script = """
job = service.backend("72").run([bell(False)], 10, QCloudOptions())
cancelled = QCloudJob(job.job_id()).cancel()
time.sleep(0.5)
answer({"id": job.job_id(), "cancelled": bool(cancelled)})
"""
    with cloud.client() as admin:
        admin.set_device("emulator:wukong-72", "maintenance")
        try:
            found = sdk(cloud, script, key)
        finally:
            admin.set_device("emulator:wukong-72", "online")
    with cloud.client(key) as client:
        assert client.wait_batch(found["id"])["state"] == "cancelled"


def test_a_wrong_key_is_refused(cloud: Server) -> None:
    script = """
try:
    service.backend("72").run([bell(False)], 10, QCloudOptions()).job_id()
    answer("taken")
except Exception as error:
    answer(str(error))
"""
    assert "401" in sdk(cloud, script, "qk0000000000_" + "0" * 64)


def test_another_users_task_is_not_there(cloud: Server, key: str) -> None:
    with cloud.client(key) as client:
        batch = client.submit_batch([{"originir": "QINIT 1\nCREG 1\nH q[0]\nMEASURE q[0],c[0]"}], device="simulator", shots=5)
    stranger = cloud.http(cloud.new_key("stranger"))
    answer = stranger.post("/oqcs/task/origin/taskDetail.json", json={"taskId": batch["id"]})
    assert answer.status_code == 404
