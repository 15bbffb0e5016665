"""Circuits of different users on one emulated chip, and the calibration that it runs under."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from qpeft.backends.emulator.backend import EmulatorBackend
from qpeft.backends.emulator.chip import Chip, load_chip
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import ServiceError
from qpeft.service.workers.messages import LeasedJob
from qpeft.service.workers.shared_chip import SharedChip, tenants
from tests.service.processes import Process, Server

DEVICE = "emulator:wukong-72"
SHOTS = 20_000
APART = Circuit(3, tuple(Op("ry", (q,), Angle(q)) for q in range(3)), 0, 3)
"""No gate joins its qubits: they may lie anywhere."""


def chain(n: int) -> Circuit:
    turns = tuple(Op("ry", (q,), Angle(q)) for q in range(n))
    return Circuit(n, turns + tuple(Op("cx", (q, q + 1)) for q in range(n - 1)), 0, n)


def chi_square(counts: dict[str, int], expected: np.ndarray) -> float:
    """How many standard deviations above its mean the statistic lies; outcomes expected less than 5 times are one bin."""
    seen = np.zeros(len(expected))
    for word, n in counts.items():
        seen[int(word, 2)] = n
    mean = expected * seen.sum()
    common = mean >= 5
    seen = np.append(seen[common], seen[~common].sum())
    mean = np.append(mean[common], mean[~common].sum())
    kept = mean > 0
    freedom = int(kept.sum()) - 1
    return float((np.sum((seen[kept] - mean[kept]) ** 2 / mean[kept]) - freedom) / np.sqrt(2 * freedom))


def test_each_tenants_counts_are_those_of_a_solo_run() -> None:
    chip = load_chip("wukong-72")
    circuits = [chain(2), chain(3), APART, chain(4), APART, chain(3)]
    angles = np.random.default_rng(5).uniform(0.3, 2.8, (6, 4))
    params = [row[None, : circuit.n_params] for row, circuit in zip(angles, circuits, strict=True)]
    outcomes = SharedChip(EmulatorBackend(chip)).run(circuits, params, SHOTS, seed=3)
    places = [qubits for _, qubits in outcomes]
    assert len({q for place in places for q in place}) == sum(circuit.n_qubits for circuit in circuits)
    assert any(b != a + 1 for place in places for a, b in itertools.pairwise(place))
    scores = np.zeros((6, 6))
    for i, (counts, _) in enumerate(outcomes):
        for j, (circuit, place) in enumerate(zip(circuits, places, strict=True)):
            solo = EmulatorBackend(chip, layout=place).compile(circuit).run(params[j], None).probabilities()[0]
            if circuit.n_qubits == circuits[i].n_qubits:
                scores[i, j] = chi_square(counts.counts[0], solo)
    assert np.abs(np.diag(scores)).max() < 5
    assert min(scores[1, 5], scores[5, 1], scores[2, 4], scores[4, 2]) > 50  # another tenant's counts would be noticed


def job(seq: int, owner: str, **changes: object) -> LeasedJob:
    values = {"seq": seq, "attempt": 1, "owner": owner, "program": "p", "params": b"", "rows": 1, "shots": 100, "seed": None,
              "output": "counts", "observables": None, "exclusive": False, "estimate_s": 0.0}  # fmt: skip
    return LeasedJob(**{**values, **changes})  # type: ignore[arg-type]


def test_who_shares_a_chip() -> None:
    jobs = [
        job(1, "a"),
        job(2, "b"),
        job(3, "b", exclusive=True),
        job(4, "b", seed=1),
        job(5, "b", rows=2),
        job(6, "b", shots=None),
    ]
    assert [[one.seq for one in group] for group in tenants(jobs)] == [[1, 2]]
    assert tenants([job(1, "a"), job(2, "a")]) == []
    assert tenants([job(1, "a"), job(2, "b", shots=7)]) == []


@pytest.fixture(scope="module")
def chip_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Process]]:
    server = Server(tmp_path_factory.mktemp("chip"), "--executors", "0", devices=(DEVICE,)).start()
    worker = server.worker(server.new_key("workers", "worker"), devices=(DEVICE,))
    yield server, worker
    worker.stop()
    server.close()
    server.stop()


def test_two_users_meet_on_one_chip(chip_server: tuple[Server, Process]) -> None:
    server, _ = chip_server
    alice, bob = (server.client(server.new_key(name)) for name in ("alice", "bob"))
    settings = {"device": DEVICE, "shots": 500, "params": [0.7, 0.4]}
    with server.client() as admin:
        admin.set_device(DEVICE, "maintenance")
        mine = alice.submit(chain(2), **settings)
        theirs = bob.submit(chain(2), **settings, output="expectations")
        alone = bob.submit(chain(2), **settings, exclusive=True)
        seeded = bob.submit(chain(2), **settings, seed=4)
        with pytest.raises(ServiceError, match="syntax error"):
            bob.submit("OPENQASM 2.0; nonsense", form="qasm", device=DEVICE, shots=500)
        admin.set_device(DEVICE, "online")
    a, b = alice.result(mine["id"]), bob.result(theirs["id"])
    assert sum(a["counts"][0].values()) == 500
    assert (a["tenants"], b["tenants"]) == (2, 2)
    for one in (alone, seeded):
        assert bob.result(one["id"])["tenants"] == 1
    with server.client() as admin:
        admin.set_device(DEVICE, "maintenance")
        mine, theirs = alice.submit(chain(2), **settings), bob.submit(chain(3), **{**settings, "params": [0.1, 0.2, 0.3]})
        admin.set_device(DEVICE, "online")
    a, b = alice.result(mine["id"]), bob.result(theirs["id"])
    assert (a["tenants"], b["tenants"]) == (2, 2)
    assert not set(a["qubits"]) & set(b["qubits"])


def worse(chip: Chip) -> dict[str, object]:
    qubits = tuple(dataclasses.replace(qubit, p1_given_0=0.3, p0_given_1=0.3) for qubit in chip.qubits)
    return dict(json.loads(dataclasses.replace(chip, qubits=qubits).to_json()))


def test_a_new_calibration_is_what_jobs_run_under_and_say(chip_server: tuple[Server, Process]) -> None:
    server, _ = chip_server
    user = server.client(server.new_key("carol"))

    def ones() -> tuple[float, str]:
        done = user.submit(Circuit(1, (Op("x", (0,)),)), device=DEVICE, shots=2000, seed=1)
        counts = user.result(done["id"])["counts"][0]
        return counts["1"] / 2000, user.job(done["id"])["calibration"]

    good, first = ones()
    with server.client() as admin:
        second = admin.set_calibration(DEVICE, worse(load_chip("wukong-72")))["calibration"]
        bad, ran_under = ones()
        assert ran_under == second != first
        assert good > 0.85
        assert 0.65 < bad < 0.75
        assert user.calibration(DEVICE)["id"] == second
        late = server.worker(server.new_key("workers", "worker"), "late", devices=(DEVICE,))
        try:
            assert user.calibration(DEVICE)["id"] == second, "a worker that starts does not undo an administrator's choice"
            assert ones()[1] == second
        finally:
            late.stop()
        admin.set_calibration(DEVICE, first)
        assert ones() == (good, first)
        acts = admin.connection.request("GET", "/v1/audit").json()["audit"]
        assert sum(entry["act"] == "device.calibration" for entry in acts) == 2
    old = user.connection.request("GET", f"/v1/devices/{DEVICE}/calibration", params={"id": second}).json()
    assert old["data"]["qubits"][0]["p1_given_0"] == 0.3


def test_the_dashboard_says_that_a_calibration_is_synthetic(chip_server: tuple[Server, Process]) -> None:
    server, _ = chip_server
    with httpx.Client(base_url=server.url, timeout=20, follow_redirects=True) as browser:
        browser.post("/login", data={"key": server.key})
        assert "Synthetic" in browser.get(f"/devices/{DEVICE}").text


def test_calibrations_that_are_none_are_refused(chip_server: tuple[Server, Process]) -> None:
    server, _ = chip_server
    path, admin = f"/v1/devices/{DEVICE}/calibration", server.http()
    assert server.http(server.new_key("dave")).post(path, json={"id": "x"}).status_code == 403
    for body, status in (({}, 422), ({"id": "nowhere"}, 404), ({"chip": {"qubits": []}}, 422), ({"chip": {}, "id": "x"}, 422)):
        answer: httpx.Response = admin.post(path, json=body)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), body
    assert admin.post("/v1/devices/nothing/calibration", json={"id": "x"}).status_code == 422


def test_a_drained_chip_runs_what_it_has(chip_server: tuple[Server, Process]) -> None:
    server, _ = chip_server
    client = server.client(total_s=0.1)
    client.set_device(DEVICE, "maintenance")
    waiting = client.submit(chain(2), device=DEVICE, shots=10, params=[0.1, 0.2])
    client.set_device(DEVICE, "draining", "recalibration")
    try:
        assert client.wait(waiting["id"])["state"] == "succeeded"
        with pytest.raises(ServiceError, match="takes no new work"):
            client.submit(chain(2), device=DEVICE, shots=10, params=[0.1, 0.2])
    finally:
        client.set_device(DEVICE, "online")
