"""Origin Quantum's cloud on loopback: a server that speaks its protocol and really runs the programs it is sent.

The OriginIR text of a job is read by qpeft's reader and run on a backend of the test's choice (`seed` makes the shots repeat).
Faults are switched on by attributes. Nothing is answered from a table: counts are drawn from the circuits' own distributions.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import ThreadingHTTPServer
from typing import Any

import numpy as np

from qpeft.backends.base import Backend, sample
from qpeft.backends.simulator import SimulatorBackend
from qpeft.circuits.text.originir import from_originir
from tests.loopback import JsonHandler, Loopback

MAX_PROGRAMS = 200
WAITING, COMPUTING, FINISHED, FAILED, QUEUING = "1", "2", "3", "4", "5"


class FakeOriginCloud(Loopback):
    """`with FakeOriginCloud() as cloud:` serves at `cloud.url` until the block ends.

    Attributes that tests set:
        states: the states a job goes through before it is finished, one a poll.
        fail: jobs end as failed. drop_polls: how many polls lose their connection.
        drop_submits: submissions that are accepted, and paid for, but whose reply is lost.
        swallow_submits: submissions that are lost before they are accepted. slow_submit_s: delay of accepting one.
        refuse_submits: submissions answered with HTTP status 422 and the message `refusal`.
        garble_submits: submissions that are accepted, and paid for, and answered with an error of unknown wording, `refusal`.
    Attributes that tests read: `jobs` (by id), `requests` (path and body, in order), `cancelled`.
    """

    def __init__(self, key: str = "test-key", backend: Backend | None = None, seed: int = 0, port: int = 0) -> None:
        self.key, self.backend, self.seed = key, backend or SimulatorBackend(), seed
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"cloud": self}))
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients are killed on purpose
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """No faults and no jobs."""
        self.states = [WAITING, QUEUING, COMPUTING]
        self.fail, self.refusal = False, "no such configuration"
        self.drop_polls = self.drop_submits = self.swallow_submits = self.refuse_submits = self.garble_submits = 0
        self.slow_submit_s = 0.0
        self.chips = {"72": True, "WK_C180": True, "WK_C180_2": False}
        self.chip_info: dict[str, Any] = chip_info()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, Any]] = []
        self.cancelled: list[str] = []

    @property
    def circuits(self) -> int:
        """How many circuits have been paid for."""
        return sum(len(job["programs"]) for job in self.jobs.values())

    def submit(self, body: dict[str, Any]) -> dict[str, Any]:
        programs = [body["QProg"]] if isinstance(body["QProg"], str) else body["QProg"]
        if len(programs) > MAX_PROGRAMS:
            return _reply(False, 50002, f"more than {MAX_PROGRAMS} programs", None)
        with self.lock:
            job = f"{len(self.jobs) + 1:08X}ABCDEF"
            self.jobs[job] = {"programs": programs, "body": body, "polls": 0}
            if self.garble_submits:
                self.garble_submits -= 1
                return _reply(False, 50001, self.refusal, None)
        return _reply(True, 10000, "", {"taskId": job})

    def detail(self, body: dict[str, Any]) -> dict[str, Any]:
        job = self.jobs.get(body["taskId"])
        if job is None:
            return _reply(False, 50003, "no such task", None)
        job["polls"] += 1
        if body["taskId"] in self.cancelled:
            return _reply(True, 10000, "", {"taskId": body["taskId"], "taskState": "8"})
        if job["polls"] <= len(self.states):
            return _reply(True, 10000, "", {"taskId": body["taskId"], "taskState": self.states[job["polls"] - 1]})
        if self.fail:
            return _reply(True, 10000, "", {"taskId": body["taskId"], "taskState": FAILED, "errorDetail": "the chip warmed up"})
        shots = int(job["body"]["Configuration"]["shot"])
        seeds = np.random.SeedSequence([self.seed, int(body["taskId"][:8], 16)]).generate_state(len(job["programs"]))
        counts = [self.run(text, shots, int(seed)) for text, seed in zip(job["programs"], seeds, strict=True)]
        return _reply(
            True,
            10000,
            "",
            {
                "taskId": body["taskId"],
                "taskState": FINISHED,
                "taskResult": [json.dumps({"key": list(c), "value": [v / shots for v in c.values()]}) for c in counts],
                "probCount": [json.dumps({"key": list(c), "value": list(c.values())}) for c in counts],
                "measureQubitSize": [len(from_originir(text).measures) for text in job["programs"]],
            },
        )

    def run(self, text: str, shots: int, seed: int) -> dict[str, int]:
        """Counts of one program as the vendor writes them: hexadecimal, bit c[0] lowest."""
        program = from_originir(text)
        exact = self.backend.compile(program.circuit).run(np.empty((1, 0)), None)
        bits = sorted(program.measures, key=lambda pair: -pair[1])  # c[0] becomes the rightmost, the lowest bit
        (row,) = sample(exact.marginal([qubit for qubit, _ in bits]).probabilities(), shots, seed).counts
        return {hex(int(word, 2)): count for word, count in row.items()}


def chip_info() -> dict[str, Any]:
    """A live chip's answer in the vendor's form: a line of six qubits, the last coupler dead."""
    edges = [(q, q + 1, 0.97 if q < 4 else 0.0) for q in range(5)]
    adjacency: dict[str, list[dict[str, Any]]] = {str(q): [] for q in range(6)}
    for a, b, w in edges:
        adjacency[str(a)].append({"v": b, "w": w})
        adjacency[str(b)].append({"v": a, "w": w})
    return {
        "ChipID": "72",
        "QubitCount": 6,
        "adjMatrix": adjacency,
        "QubitParams": [
            {"qubitId": str(q), "T1": 14.0, "T2": 1.5, "frequency": 4.1, "ReadoutFidelity": 0.93, "SingleGateFidelity": 0.996}
            for q in range(6)
        ],
        "AvailableQubits": list(range(6)),
        "HighFrequencyQubit": [0, 2, 4],
        "BasicQGate": ["RPhi", "CZ"],
        "CompensateAngle": {},
        "QGateClock": [{"gateType": "RPhi", "IntValue": 30}, {"gateType": "CZ", "IntValue": 40}],
    }


def _reply(success: bool, code: int, message: str, obj: Any) -> dict[str, Any]:
    return {"success": success, "code": code, "message": message, "obj": obj}


class _Handler(JsonHandler):
    cloud: FakeOriginCloud
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            body = json.loads(raw)
        except ValueError:
            return self._send(400, {"message": "not JSON"})
        return self._answer(body)

    def _answer(self, body: Any) -> None:
        cloud, route = self.cloud, self.path.removeprefix("/oqcs/task/")
        with cloud.lock:
            cloud.requests.append((route, body))
        if self.headers.get("Authorization") != f"oqcs_auth={cloud.key}":
            return self._send(401, _reply(False, 401, "unauthorised", None))
        if route == "getResourceList.json":
            rows = [{"machineType": 5, "onlineFlag": online, "sinanChipId": name} for name, online in cloud.chips.items()]
            return self._send(200, rows)
        if route == "origin/chipInfo.json":
            return self._send(200, _reply(True, 10000, "", cloud.chip_info))
        if route == "origin/submit.json":
            time.sleep(cloud.slow_submit_s)
            if cloud.swallow_submits:
                cloud.swallow_submits -= 1
                return self._drop()
            if cloud.refuse_submits:
                cloud.refuse_submits -= 1
                return self._send(422, _reply(False, 50001, cloud.refusal, None))
            answer = cloud.submit(body)
            if cloud.drop_submits and answer["success"]:
                cloud.drop_submits -= 1
                return self._drop()
            return self._send(200, answer)
        if route == "origin/taskDetail.json":
            if cloud.drop_polls:
                cloud.drop_polls -= 1
                return self._drop()
            return self._send(200, cloud.detail(body))
        if route == "cancelTask.json":
            cloud.cancelled.append(body["taskId"])
            return self._send(200, _reply(True, 10000, "", None))
        return self._send(404, _reply(False, 404, "no such route", None))

    def _drop(self) -> None:
        """Close the connection without an answer."""
        self.close_connection = True
        self.connection.close()
