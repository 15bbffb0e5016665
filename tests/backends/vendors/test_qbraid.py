"""qBraid both ways with the real package: its qudora client against a cloud on loopback, and qpeft as one of its providers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qpeft.backends.registry import get_backend
from qpeft.backends.simulator import SimulatorBackend
from qpeft.backends.spending.journal import Journal
from qpeft.backends.spending.submission import KeyRefusedError, NotSentError
from qpeft.backends.vendors.qbraid import program, refusal
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.circuits.text.qasm import from_qasm
from qpeft.errors import BackendError
from tests.backends.vendors.qudora_cloud import FakeQudoraCloud
from tests.peers import entry_points, peer_python, run_peer

CIRCUIT = Circuit(3, (Op("x", (0,)), Op("ry", (1,), Angle(0)), Op("crx", (1, 2), Angle(1))), 0, 2)
ROWS = np.random.default_rng(0).normal(size=(6, 2))
SHOTS = 4000

OPEN = """
import json, sys
import numpy as np
from qpeft.backends.registry import get_backend
from qpeft.backends.spending.budget import Budget
from qpeft.circuits.ir import Circuit
circuit = Circuit.from_dict(json.loads('''%s'''))
rows, shots = np.array(%s), %d
def open_device(journal, **options):
    return get_backend("qbraid:qudora:emulator@qudora.example", journal=journal, poll_s=0.05, **options)
"""


@pytest.fixture(scope="module")
def python() -> str:
    return peer_python("qbraid", "qbraid>=0.13")


@pytest.fixture
def cloud() -> Iterator[FakeQudoraCloud]:
    with FakeQudoraCloud() as running:
        yield running


def script(body: str) -> str:
    return OPEN % (json.dumps(CIRCUIT.to_dict()), ROWS.tolist(), SHOTS) + body


def environment(cloud: FakeQudoraCloud) -> dict[str, str]:
    return {"QUDORA_BASE_URL": cloud.url, "QUDORA_API_TOKEN": cloud.token}


def check_distribution(found: Any) -> None:
    exact = SimulatorBackend().compile(CIRCUIT).run(ROWS, None).probabilities()
    off = np.abs(np.array(found) - exact)
    assert (off <= 6 * np.sqrt(exact * (1 - exact) / SHOTS) + 1e-9).all()


@pytest.mark.peer
def test_a_device_of_qbraid_as_a_backend(python: str, cloud: FakeQudoraCloud, tmp_path: Path) -> None:
    """Six circuits in two jobs of at most four, counts with qubit 0 last, a budget that holds, and a journal that replays."""
    body = f"""
backend = open_device({str(tmp_path / "j")!r}, budget=Budget(jobs=2))
counts = backend.compile(circuit).run(rows, shots)
try:
    backend.compile(circuit).run(rows, shots)
except Exception as error:
    name = type(error).__name__
backend.close()
again = open_device({str(tmp_path / "j")!r})
same = again.compile(circuit).run(rows, shots).counts == counts.counts
print(json.dumps([counts.probabilities().tolist(), name, same, backend.limits.max_qubits, backend.limits.max_shots]))
"""
    found, error, same, qubits, most = json.loads(run_peer(python, script(body), **environment(cloud)).splitlines()[-1])
    check_distribution(found)
    assert (error, same, qubits, most) == ("BudgetError", True, 6, 10_000)
    assert [len(job["input_data"]) for job in cloud.bodies] == [4, 2]


@pytest.mark.peer
def test_a_job_of_an_earlier_process_is_found_again(python: str, cloud: FakeQudoraCloud, tmp_path: Path) -> None:
    first = f"""
backend = open_device({str(tmp_path / "j")!r})
backend.client.poll = lambda job: (_ for _ in ()).throw(KeyboardInterrupt)
try:
    backend.compile(circuit).run(rows[:4], shots)
except KeyboardInterrupt:
    print("cut off")
"""
    assert "cut off" in run_peer(python, script(first), **environment(cloud))
    second = f"""
backend = open_device({str(tmp_path / "j")!r})
print(json.dumps(backend.compile(circuit).run(rows[:4], shots).probabilities().tolist()))
"""
    found = json.loads(run_peer(python, script(second), **environment(cloud)).splitlines()[-1])
    assert np.array(found).shape == (4, 8)
    assert len(cloud.jobs) == 1


@pytest.mark.peer
def test_refused_and_lost_submissions(python: str, cloud: FakeQudoraCloud, tmp_path: Path) -> None:
    body = f"""
try:
    open_device({str(tmp_path / "j")!r}).compile(circuit).run(rows[:1], shots)
except Exception as error:
    print(type(error).__name__, error)
"""
    cloud.status = 422
    assert "did not take it" in run_peer(python, script(body), **environment(cloud))
    with Journal(tmp_path / "j") as journal:
        assert journal.spent.jobs == 0
    cloud.status, cloud.lose = 200, 10
    assert "may or may not" in run_peer(python, script(body), **environment(cloud))
    sent = len(cloud.jobs)
    assert "may or may not" in run_peer(python, script(body), **environment(cloud))
    assert len(cloud.jobs) == sent


@pytest.mark.peer
def test_qpeft_is_a_provider(python: str, tmp_path: Path) -> None:
    """Found by entry point; one program and a list; counts with qubit 0 last; programs that measure otherwise are refused."""
    body = """
from qbraid.runtime import load_provider, load_job, get_providers
from qpeft.backends.vendors.qbraid import program
assert "qpeft" in get_providers()
provider = load_provider("qpeft")
device = provider.get_device("simulator")
assert "emulator:wukong-72" in [d.id for d in provider.get_devices()]
texts = [program(circuit, row.tolist()) for row in rows]
job = device.run(texts, shots=shots)
counts = job.result().data.get_counts()
single = device.run(texts[0], shots=100).result().data.get_counts()
assert load_job(job.id, "qpeft").result().data.get_counts() == counts
try:
    device.run(texts[0].replace("c = measure q;", "c[0] = measure q[1]; c[1] = measure q[0]; c[2] = measure q[2];"), shots=10)
except Exception as error:
    refused = str(error)
emulated = provider.get_device("emulator:wukong-72")
assert emulated.profile["synthetic"] is True
assert sum(emulated.run(texts[0], shots=50).result().data.get_counts().values()) == 50
table = [[row.get(format(k, "03b")[::-1], 0) / shots for k in range(8)] for row in counts]
print(json.dumps([table, sum(single.values()), refused]))
"""
    shown = run_peer(python, script(body), PYTHONPATH=str(entry_points(tmp_path / "site")))
    found, total, refused = json.loads(shown.splitlines()[-1])
    check_distribution(found)
    assert total == 100
    assert "qubit k goes into bit k" in refused


def test_programs_measure_qubit_k_into_bit_k() -> None:
    text = program(CIRCUIT, ROWS[0].tolist())
    assert text.endswith("bit[3] c;\nc = measure q;\n")
    back = from_qasm(text)
    exact = SimulatorBackend().compile(CIRCUIT).run(ROWS[:1], None).probabilities()
    assert np.allclose(SimulatorBackend().compile(back).run(np.empty((1, 0)), None).probabilities(), exact)


class Answer(Exception):
    def __init__(self, status: int) -> None:
        self.response = type("Response", (), {"status_code": status})()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Answer(401), KeyRefusedError),
        (Answer(403), KeyRefusedError),
        (Answer(422), NotSentError),
        (Answer(429), NotSentError),
        (Answer(408), type(None)),
        (Answer(409), type(None)),
        (Answer(500), type(None)),
        (ConnectionError("Connection aborted."), type(None)),
        (ConnectionError("NewConnectionError: refused"), NotSentError),
        (ValueError("words nobody knows"), type(None)),
    ],
)
def test_only_what_is_known_means_not_sent(error: Exception, kind: type) -> None:
    wrapped = RuntimeError("the client's own error")
    wrapped.__cause__ = error
    assert type(refusal(error)) is kind
    assert type(refusal(wrapped)) is kind


@pytest.mark.parametrize("name", ["qbraid:", "qbraid:ionq", "qbraid:ionq:", "qbraid::device"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(BackendError):
        get_backend(name, journal="unused")


def test_without_a_journal_nobody_is_asked() -> None:
    with pytest.raises(BackendError, match="needs a journal"):
        get_backend("qbraid:ionq:simulator")
