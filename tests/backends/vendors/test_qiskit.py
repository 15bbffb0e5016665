"""Qiskit's backends where jobs are paid for: journal, budget, and jobs that an earlier process sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qpeft.backends.simulator import SimulatorBackend
from qpeft.backends.spending.budget import Budget
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import BackendError, BudgetError, JobError

pytest.importorskip("qiskit_aer")

from qiskit_aer import AerSimulator

from qpeft.backends.vendors.qiskit import QiskitBackend

CIRCUIT = Circuit(2, (Op("ry", (0,), Angle(0)), Op("cx", (0, 1)), Op("rx", (1,), Angle(1))), 0, 2)
ROWS = np.array([[0.4, 1.0], [2.0, -0.3], [1.5, 0.0]])
SHOTS = 3000


class Provider(AerSimulator):
    """Aer behind a provider's manners: every job has an id under which it is found again, here for the length of a test."""

    known: dict[str, Any] = {}  # noqa: RUF012 - what the provider remembers

    def run(self, *args: Any, **options: Any) -> Any:
        job = super().run(*args, **options)
        self.known[job.job_id()] = job
        return job

    def retrieve_job(self, job: str) -> Any:
        return self.known[job]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Provider.known.clear()
    return tmp_path / "jobs.jsonl"


def right(counts: Any) -> bool:
    exact = SimulatorBackend().compile(CIRCUIT).run(ROWS, None).probabilities()
    return bool((np.abs(counts.probabilities() - exact) <= 6 * np.sqrt(exact * (1 - exact) / SHOTS) + 1e-9).all())


def test_a_device_that_is_not_known_to_be_a_simulator_needs_a_journal() -> None:
    with pytest.raises(BackendError, match=r"not known to be a simulator.*journal"):
        QiskitBackend(Provider(), simulated=False)
    assert QiskitBackend(AerSimulator()).journal is None


def test_journal_and_budget(path: Path) -> None:
    backend = QiskitBackend(Provider(), simulated=False, journal=path, budget=Budget(shots=3 * SHOTS, seconds=10))
    assert right(backend.compile(CIRCUIT).run(ROWS, SHOTS))
    assert backend.journal is not None
    spent = backend.journal.spent
    assert (spent.circuits, spent.shots, spent.jobs) == (3, 3 * SHOTS, 1)
    assert spent.seconds == pytest.approx(3 * SHOTS * 100e-6)
    with pytest.raises(BudgetError, match="0 left"):
        backend.compile(CIRCUIT).run(ROWS, SHOTS)
    backend.close()
    again = QiskitBackend(Provider(), simulated=False, journal=path, patience_s=5)
    assert right(again.compile(CIRCUIT).run(ROWS, SHOTS))
    again.close()


def test_a_job_of_an_earlier_process_is_found_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = QiskitBackend(Provider(), simulated=False, journal=path, patience_s=5)
    monkeypatch.setattr(first.client, "poll", lambda job: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        first.compile(CIRCUIT).run(ROWS, SHOTS)
    first.close()
    sent = len(Provider.known)
    second = QiskitBackend(Provider(), simulated=False, journal=path, patience_s=5)
    assert right(second.compile(CIRCUIT).run(ROWS, SHOTS))
    assert len(Provider.known) == sent
    second.close()


def test_a_provider_that_forgets_is_said_and_not_paid_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = QiskitBackend(AerSimulator(), simulated=False, journal=path, patience_s=5)
    monkeypatch.setattr(first.client, "poll", lambda job: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        first.compile(CIRCUIT).run(ROWS, SHOTS)
    first.close()
    second = QiskitBackend(AerSimulator(), simulated=False, journal=path, patience_s=5)
    for _ in range(2):
        with pytest.raises(JobError, match="cannot look at"):
            second.compile(CIRCUIT).run(ROWS, SHOTS)
    assert second.journal is not None
    assert second.journal.spent.jobs == 1
    second.close()
