"""QUDORA's cloud on loopback, as far as qBraid's client asks: programs are really run, by the simulator, and counted."""

from __future__ import annotations

import json
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from qpeft.backends.simulator import SimulatorBackend
from qpeft.circuits.text.qasm import from_qasm
from tests.loopback import JsonHandler, Loopback


class FakeQudoraCloud(Loopback):
    """`with FakeQudoraCloud() as cloud:` serves at `cloud.url`.

    Attributes that tests set: `status` of a submission (HTTP), `lose` (submissions that are taken and answered with 500).
    Attributes that tests read: `jobs` by id, `bodies` as they came.
    """

    def __init__(self, token: str = "qudora-token", max_programs: int = 4) -> None:
        self.token, self.max_programs = token, max_programs
        self.status, self.lose = 200, 0
        self.jobs: dict[int, dict[str, Any]] = {}
        self.bodies: list[Any] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cloud": self}))
        self.server.daemon_threads = True

    def backends(self) -> list[dict[str, Any]]:
        return [
            {
                "username": "emulator@qudora.example",
                "full_name": "An emulator",
                "user_id": 7,
                "simulator": True,
                "max_n_qubits": 6,
                "max_shots": 10_000,
                "max_programs_per_job": self.max_programs,
                "basis_gates": ["rx", "ry", "rz", "cx"],
                "user_settings_schema": {"properties": {}},
            }
        ]

    def submit(self, body: dict[str, Any]) -> int:
        number = len(self.jobs) + 1
        results = []
        for text, shots in zip(body["input_data"], body["shots"], strict=True):
            counts = SimulatorBackend().compile(from_qasm(text)).run(np.empty((1, 0)), int(shots), seed=number).counts[0]
            results.append(json.dumps({bits[::-1]: count for bits, count in counts.items()}))  # qubit 0 last
        self.jobs[number] = {"job_id": number, "target": "An emulator", "status": "Completed", "result": results, "polls": 0}
        return number

    def job(self, number: int, include_results: bool) -> list[dict[str, Any]]:
        job = self.jobs.get(number)
        if job is None:
            return []
        job["polls"] += 1
        status = "Running" if job["polls"] == 1 else job["status"]
        return [{**job, "status": status, "result": job["result"] if include_results else None, "user_error": ""}]


class _Handler(JsonHandler):
    cloud: FakeQudoraCloud
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if self.headers.get("Authorization") != f"Bearer {self.cloud.token}":
            return self._send(401, {"detail": "no"})
        if parts.path == "/backends/":
            return self._send(200, self.cloud.backends())
        if parts.path == "/backends/status/7":
            return self._send(200, "Idle")
        if parts.path == "/jobs/":
            return self._send(200, self.cloud.job(int(query["job_id"]), query["include_results"].lower() == "true"))
        return self._send(404, {"detail": parts.path})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.cloud.bodies.append(body)
        if self.cloud.status != 200:
            return self._send(self.cloud.status, {"detail": "refused"})
        number = self.cloud.submit(body)
        if self.cloud.lose:
            self.cloud.lose -= 1
            self.close_connection = True
            self.connection.close()
            return None
        return self._send(200, number)

    def do_PUT(self) -> None:
        self._send(200, None)
