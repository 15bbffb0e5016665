"""A service with something to show: users, jobs in every state, a batch, a queue, calibrations, usage."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import msgspec

from qpeft.backends.emulator.chip import Chip, load_chip
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.service.ids import new_id
from tests.service.processes import Server

CHIP = "emulator:wukong-72"
BELL = Circuit(2, (Op("h", (0,)), Op("cx", (0, 1))))


def ghz(n: int) -> Circuit:
    return Circuit(n, (Op("h", (0,)), *(Op("cx", (q, q + 1)) for q in range(n - 1))))


def ansatz(n: int, layers: int) -> Circuit:
    """Rotations and a ladder of CZ, as adapters use."""
    ops: list[Op] = []
    angle = 0
    for _ in range(layers):
        for q in range(n):
            ops.append(Op("ry", (q,), Angle(angle)))
            angle += 1
        ops += [Op("cz", (q, q + 1)) for q in range(n - 1)]
    return Circuit(n, tuple(ops), 0, angle)


def altered(chip: Chip, factor: float) -> dict[str, object]:
    """The chip with its errors multiplied, a qubit switched off and dead couplers as they are."""
    qubits = [
        dataclasses.replace(
            qubit,
            enabled=qubit.enabled and number != 17,
            p1_given_0=min((qubit.p1_given_0 or 0) * factor, 0.4),
            p0_given_1=min((qubit.p0_given_1 or 0) * factor, 0.4),
            error_1q=min((qubit.error_1q or 0) * factor, 0.2),
        )
        for number, qubit in enumerate(chip.qubits)
    ]
    return dict(json.loads(dataclasses.replace(chip, qubits=tuple(qubits)).to_json()))


def vendor_server(folder: Path) -> tuple[Server, dict[str, str]]:
    """A service with tasks at a vendor, of a worker that speaks the protocol: state -> task. Nobody knows what became of one."""
    device = "pyqpanda:WK_C180"
    server = Server(folder, "--executors", "0", devices=(device,)).start(wait=False)
    client = server.client(server.new_key("carol", max_vendor_shots=10**6))
    http = server.http(server.new_key("vendor-worker", "worker"))

    def ask(path: str, **body: object) -> dict[str, Any]:
        answer = http.post(
            f"/v1/worker/{path}", content=msgspec.msgpack.encode(body), headers={"content-type": "application/msgpack"}
        )
        answer.raise_for_status()
        return dict(msgspec.msgpack.decode(answer.content))

    told = {"max_qubits": 169, "max_shots": 10_000, "simulated": False, "chip": True, "lease_s": 600.0}
    worker = ask("hello", name="at the vendor", devices=[device], info={device: told})["worker"]
    states = {"sent": ("8F3A21", ""), "refused": ("", "the circuit is too deep"), "intent": ("", "the connection was cut off")}
    for shots in (1000, 2000, 3000):
        client.submit(ghz(5), device=device, shots=shots, name=f"on the real chip, {shots} shots")
    jobs = ask("lease", worker=worker, devices=[device], max_jobs=3)["jobs"]
    found: dict[str, str] = {}
    for job, (state, (name, reason)) in zip(jobs, states.items(), strict=True):
        found[state] = new_id("t")
        members = [[job["seq"], job["attempt"], job["rows"]]]
        ask("vendor/intent", worker=worker, task=found[state], device=device, shots=job["shots"], members=members)
        ask("vendor/update", task=found[state], state=state, vendor_job=name, reason=reason)
        if state == "intent":
            parked = {"seq": job["seq"], "attempt": job["attempt"], "device_s": 0.0, "reason": reason, "parked": True}
            ask("complete", worker=worker, device=device, estimate_s=job["estimate_s"], jobs=[parked])
    return server, found


def fill(server: Server, user: str = "alice") -> tuple[str, dict[str, str]]:
    """Fill the service; a key of the user, and ids of things to look at."""
    key = server.new_key(user, max_day_circuits=200, max_day_shots=100_000)
    client, other, admin = server.client(key), server.client(server.new_key("bob")), server.client()
    chip = load_chip("wukong-72")
    for factor in (1.3, 0.8, 1.1):
        admin.set_calibration(CHIP, altered(chip, factor))
    found: dict[str, str] = {}
    done = client.submit(ghz(4), device=CHIP, shots=2000, name="GHZ on the chip")
    client.result(done["id"])
    found["job"] = str(done["id"])
    values = client.submit(
        ansatz(5, 2), device="simulator", params=[math.sin(k + 1) for k in range(10)], output="expectations", name="adapter circuit"
    )
    client.result(values["id"])
    found["values"] = str(values["id"])
    for k in range(6):
        client.result(client.submit(BELL, device="simulator", shots=1000, name=f"Bell pair {k}")["id"])
    batch = client.submit_batch(
        [{"circuit": json.loads(ghz(n).to_json())} for n in (2, 3, 4)], device="simulator", shots=500, name="GHZ of three sizes"
    )
    found["batch"] = str(batch["id"])
    client.wait_batch(batch["id"])
    admin.set_device("simulator", "draining", "new cryostat on Monday")
    admin.set_device("simulator", "online")
    admin.set_device(CHIP, "maintenance", "calibration until 14:00")
    for k in range(4):
        queued = client.submit(ghz(3 + k), device=CHIP, shots=4000, name=f"GHZ of {3 + k} qubits")
        other.submit(ghz(3), device=CHIP, shots=4000, name="somebody else's")
    found["queued"] = str(queued["id"])
    client.cancel(client.submit(BELL, device=CHIP, shots=100, name="changed my mind")["id"])
    return key, found
