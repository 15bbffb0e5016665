"""IQM Server API v1: the rules that its clients rely on, and the clients themselves, unmodified, each in its own environment."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from qpeft.backends.emulator.backend import EmulatorBackend
from qpeft.backends.emulator.chip import load_chip
from qpeft.circuits.ir import Angle, Circuit, Op
from tests.service.checks import until
from tests.service.iqm_server import iqm_server
from tests.service.processes import Server

CHIP = load_chip("wukong-72")
SHOTS = 4000


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with iqm_server(tmp_path_factory.mktemp("iqm")) as server:
        yield server


@pytest.fixture(scope="module")
def key(cloud: Server) -> str:
    return cloud.new_key("iqm")


@pytest.fixture(scope="module")
def http(cloud: Server, key: str) -> httpx.Client:
    return cloud.http(key)


def prx(qubit: str, angle: float, phase: float = 0.0) -> dict[str, Any]:
    return {"name": "prx", "locus": [qubit], "args": {"angle": angle, "phase": phase}}


def cz(a: str, b: str) -> dict[str, Any]:
    return {"name": "cz", "locus": [a, b], "args": {}}


def measure(key: str, *qubits: str) -> dict[str, Any]:
    return {"name": "measure", "locus": list(qubits), "args": {"key": key}}


def circuit(*instructions: dict[str, Any], name: str = "circuit") -> dict[str, Any]:
    return {"name": name, "metadata": None, "instructions": list(instructions)}


def ended(http: httpx.Client, job: str) -> dict[str, Any]:
    answer = http.get(f"/api/v1/jobs/{job}", params={"wait_until_terminal": "true", "timeout_seconds": 15})
    assert answer.headers.get("iqm-long-poll-timed-out") is None
    found: dict[str, Any] = answer.json()
    return found


def submit(http: httpx.Client, *circuits: Any, **fields: Any) -> httpx.Response:
    body = {"circuits": list(circuits), "shots": SHOTS, "qubit_mapping": None, "heralding_mode": "none", **fields}
    return http.post("/api/v1/jobs/wukong72/circuit", params={"use_timeslot": "false"}, json=body)


def pair_far_from_where_a_circuit_would_be_placed() -> tuple[int, int]:
    """The worst coupled pair of the chip, by the CZ's error: no search would choose it."""
    return max(((a, b) for a in CHIP.neighbours for b in CHIP.neighbours[a]), key=lambda pair: CHIP.neighbours[pair[0]][pair[1]])


def test_circuits_run_on_the_qubits_they_name(http: httpx.Client) -> None:
    """Counts agree with the emulator on that pair, and less with where it would place the circuit; keys and bits in order."""
    a, b = pair_far_from_where_a_circuit_would_be_placed()
    first, second = f"QB{a + 1}", f"QB{b + 1}"
    turns = [
        prx(first, 1.1, 0.4),
        prx(second, -0.7, 2.0),
        cz(first, second),
        prx(second, 0.9),
        cz(second, first),
        prx(first, 0.3, -1.0),
    ]
    ops = []
    for one in turns:
        qubits = tuple((first, second).index(name) for name in one["locus"])
        if one["name"] == "cz":
            ops.append(Op("cz", qubits))
        else:
            angle, phase = one["args"]["angle"], one["args"]["phase"]
            rotations = (("rz", -phase), ("rx", angle), ("rz", phase))
            ops += [Op(gate, qubits, Angle(shift=value)) for gate, value in rotations if gate == "rx" or phase]
    ours = Circuit(2, tuple(ops), 0, 0)
    here = EmulatorBackend(CHIP, native=True, layout=(a, b)).compile(ours).run(np.empty((1, 0)), None).probabilities()[0]
    elsewhere = EmulatorBackend(CHIP).compile(ours).run(np.empty((1, 0)), None).probabilities()[0]
    sent = circuit(*turns, measure("y", second), {"name": "barrier", "locus": [first, second], "args": {}}, measure("x", first))
    answer = submit(http, sent, sent, shots=20_000)
    assert answer.status_code == 201
    job = ended(http, answer.json()["id"])
    assert (job["status"], job["errors"], [one["status"] for one in job["timeline"]][-1]) == ("completed", [], "completed")
    for shots in http.get(f"/api/v1/jobs/{job['id']}/artifacts/measurements").json():
        bits = np.array([shots["x"], shots["y"]])[:, :, 0]
        found = np.bincount(2 * bits[0] + bits[1], minlength=4) / 20_000
        assert np.abs(found - here).max() < 5 * math.sqrt(0.25 / 20_000)
        assert not np.array_equal(bits, np.sort(bits, axis=1))  # shots come in no order
        assert np.abs(found - elsewhere).max() > np.abs(found - here).max()
    counted = http.get(f"/api/v1/jobs/{job['id']}/artifacts/measurement_counts").json()
    assert [one["measurement_keys"] for one in counted] == [["x", "y"]] * 2
    table = np.array([counted[0]["counts"].get(word, 0) for word in ("00", "01", "10", "11")]) / 20_000
    assert np.abs(table - here).max() < 5 * math.sqrt(0.25 / 20_000)
    assert http.get(f"/api/v1/jobs/{job['id']}/payload").json()["circuits"] == [sent, sent]


def test_a_key_of_several_qubits_and_names_of_ones_own(http: httpx.Client) -> None:
    mapping = [{"logical_name": name, "physical_name": f"QB{q + 1}"} for name, q in zip("abc", CHIP.live_qubits, strict=False)]
    answer = submit(http, circuit(prx("b", math.pi), measure("all", "c", "b", "a")), qubit_mapping=mapping, shots=500)
    job = ended(http, answer.json()["id"])
    (shots,) = http.get(f"/api/v1/jobs/{job['id']}/artifacts/measurements").json()
    assert np.array(shots["all"]).mean(axis=0).round().tolist() == [0, 1, 0]
    assert http.get(f"/api/v1/jobs/{job['id']}/payload").json()["qubit_mapping"] == mapping
    assert http.delete(f"/api/v1/jobs/{job['id']}").status_code == 204
    assert http.get(f"/api/v1/jobs/{job['id']}").status_code == 404


DEAD = next((sorted(one.qubits) for one in CHIP.couplers if not one.enabled), None)
REFUSED = {
    "not coupled": circuit(cz("QB1", "QB40"), measure("m", "QB1")),
    "no such qubit": circuit(prx("QB73", 1.0), measure("m", "QB73")),
    "not offered": circuit({"name": "move", "locus": ["QB1", "QB2"], "args": {}}, measure("m", "QB1")),
    "measured already": circuit(measure("m", "QB1"), prx("QB1", 1.0)),
    "keys of measurements differ": circuit(measure("m", "QB1"), measure("m", "QB2")),
    "delays are not emulated": circuit({"name": "delay", "locus": ["QB1"], "args": {"duration": 1e-7}}, measure("m", "QB1")),
    "measures at least one qubit": circuit(prx("QB1", 1.0)),
    "is a number": circuit({"name": "prx", "locus": ["QB1"], "args": {"angle": "x"}}, measure("m", "QB1")),
    "no such implementation": circuit({**prx("QB1", 1.0), "implementation": "other"}, measure("m", "QB1")),
    "QIR is not read": "declare void @__quantum__rt__initialize()",
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_the_chip_cannot_do_is_refused_with_the_place(http: httpx.Client, said: str) -> None:
    good = circuit(prx("QB1", 1.0), measure("m", "QB1"))
    answer = submit(http, good, REFUSED[said])
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("circuit 1")
    assert said in answer.json()["detail"]


def test_what_the_service_cannot_honour_is_refused(http: httpx.Client) -> None:
    good = circuit(prx("QB1", 1.0), measure("m", "QB1"))
    assert submit(http, good, heralding_mode="zeros").status_code == 422
    assert submit(http, good, dd_mode="enabled").status_code == 422
    assert submit(http, good, calibration_set_id=str(uuid.uuid4())).status_code == 422
    assert submit(http, good, shots=10**9).status_code == 422
    assert submit(http, *[good] * 100, shots=900_000).json()["code"] == "result"  # 90 million bits
    assert http.post("/api/v1/jobs/simulator/circuit", json={"circuits": [good], "shots": 1}).status_code == 404


def test_calibration_and_metrics_are_served_and_say_synthetic(http: httpx.Client) -> None:
    base = "/api/v1/calibration-sets/wukong72"
    offered = http.get(f"{base}/default/dynamic-quantum-architecture").json()
    assert len(offered["qubits"]) == len(CHIP.live_qubits)
    assert len(offered["gates"]["cz"]["implementations"]["tgss"]["loci"]) == sum(map(len, CHIP.neighbours.values())) // 2
    name = offered["calibration_set_id"]
    for which in ("default", name):
        told = http.get(f"{base}/{which}").json()
        assert (told["observation_set_id"], "synthetic" in told["dut_label"]) == (name, True)
    metrics = http.get(f"{base}/{name}/metrics").json()
    assert (metrics["describes_id"], "synthetic" in metrics["dut_label"]) == (name, True)
    by_field = {one["dut_field"]: one["value"] for one in told["observations"] + metrics["observations"]}
    assert by_field["characterization.model.QB1.t1_time"] == pytest.approx(CHIP.qubits[0].t1_us * 1e-6)  # type: ignore[operator]
    assert by_field["metrics.ssro.measure.constant.QB2.error_0_to_1"] == CHIP.qubits[1].p1_given_0
    static = http.get("/api/v1/quantum-computers/wukong72/artifacts/static-quantum-architectures").json()
    assert len(static[0]["connectivity"]) == len(CHIP.couplers)
    assert http.get("/api/v1/quantum-computers/wukong72/health").json()["healthy"] is True
    assert http.get(f"{base}/{uuid.uuid4()}").status_code == 404


def test_two_tenants_do_not_see_each_other(cloud: Server, http: httpx.Client) -> None:
    good = circuit(prx("QB1", 1.0), measure("m", "QB1"))
    job = submit(http, good).json()["id"]
    ended(http, job)
    stranger = cloud.http(cloud.new_key("stranger of iqm"))
    for path in ("", "/payload", "/artifacts/measurements", "/artifacts/measurement_counts"):
        assert stranger.get(f"/api/v1/jobs/{job}{path}").status_code == 404
    assert stranger.post(f"/api/v1/jobs/{job}/cancel").status_code == 404
    assert stranger.delete(f"/api/v1/jobs/{job}").status_code == 404
    assert stranger.get(f"/circuits/{job}/counts").status_code == 404
    assert httpx.get(f"{cloud.url}/api/v1/jobs/{job}").status_code == 401
    assert http.post(f"/api/v1/jobs/{job}/cancel").status_code == 409
    reader = cloud.http(cloud.new_key("reader of iqm", "read"))
    assert submit(reader, good).status_code == 403
    small = cloud.http(cloud.new_key("small", max_open_circuits=3))
    assert submit(small, *[good] * 4).status_code == 429


def test_a_queued_job_is_cancelled_and_told_as_waiting(cloud: Server, http: httpx.Client) -> None:
    with cloud.client() as admin:
        admin.set_device("emulator:wukong-72", "maintenance")
        try:
            assert http.get("/api/v1/quantum-computers/wukong72/health").json()["healthy"] is False
            job = submit(http, circuit(measure("m", "QB1"))).json()
            assert (job["status"], job["queue_position"]) == ("waiting", 0)
            answer = http.get(f"/api/v1/jobs/{job['id']}", params={"wait_until_terminal": "true", "timeout_seconds": 0.2})
            assert answer.headers["iqm-long-poll-timed-out"] == "true"
            assert http.get(f"/api/v1/jobs/{job['id']}/artifacts/measurements").status_code == 409
            assert http.delete(f"/api/v1/jobs/{job['id']}").status_code == 409
            assert http.post(f"/api/v1/jobs/{job['id']}/cancel").json()["status"] == "cancelled"
        finally:
            admin.set_device("emulator:wukong-72", "online")


def test_the_same_idempotency_key_is_one_job(http: httpx.Client) -> None:
    body = {"circuits": [circuit(measure("m", "QB1"))], "shots": 7}
    headers = {"idempotency-key": "once"}
    first, second = (http.post("/api/v1/jobs/wukong72/circuit", json=body, headers=headers) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]


CUDAQ = {
    "qubit_mapping": [{"logical_name": f"QB{i + 1}", "physical_name": f"QB{q + 1}"} for i, q in enumerate(CHIP.live_qubits)],
    "circuits": [
        {
            "name": "bell",
            "instructions": [
                {"name": "prx", "qubits": ["QB1"], "args": {"angle_t": 0.5, "phase_t": 0.0}},
                {"name": "prx", "qubits": ["QB2"], "args": {"angle_t": 0.25, "phase_t": 0.25}},
                {"name": "measure", "qubits": ["QB1"], "args": {"key": "m_QB1"}},
                {"name": "measure", "qubits": ["QB2"], "args": {"key": "m_QB2"}},
            ],
        }
    ],
    "shots": 2000,
}
"""What CUDA-Q's IQMServerHelper sends, by its source of 2026."""


def test_cuda_q_by_replayed_bodies(http: httpx.Client) -> None:
    offered = http.get("/calibration-sets/default/dynamic-quantum-architecture").json()
    assert offered["gates"]["prx"]["default_implementation"] in offered["gates"]["prx"]["implementations"]
    job = http.post("/circuits", json=CUDAQ).json()["id"]
    until(lambda: http.get(f"/circuits/{job}/counts").json()["status"] == "ready", 30)
    told = http.get(f"/circuits/{job}/counts").json()
    assert told["metadata"]["request"] == CUDAQ
    (counts,) = told["counts_batch"]
    place = counts["measurement_keys"].index("m_QB1")
    ones = [sum(n for word, n in counts["counts"].items() if word[k] == "1") / 2000 for k in (place, 1 - place)]
    assert ones[0] > 0.85  # half a turn
    assert 0.35 < ones[1] < 0.65  # a quarter
