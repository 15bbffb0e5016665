"""PennyLane devices where jobs are paid for: what is sent is on the disk, and nothing is paid twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qpeft.backends.simulator import SimulatorBackend
from qpeft.backends.spending.budget import Budget
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import BackendError, BudgetError, JobError

qml = pytest.importorskip("pennylane")

from qpeft.backends.vendors.pennylane import PennyLaneBackend  # noqa: E402

CIRCUIT = Circuit(2, (Op("ry", (0,), Angle(0)), Op("cx", (0, 1)), Op("rx", (1,), Angle(1))), 0, 2)
ROWS = np.array([[0.4, 1.0], [2.0, -0.3]])


def hardware(path: Path, **options: object) -> PennyLaneBackend:
    return PennyLaneBackend("default.qubit", simulated=False, exact=False, journal=path, **options)  # type: ignore[arg-type]


def test_a_device_that_is_no_simulator_of_pennylanes_needs_a_journal() -> None:
    with pytest.raises(BackendError, match="needs a journal"):
        PennyLaneBackend("default.qubit", simulated=False)
    assert PennyLaneBackend("default.qubit").journal is None


def test_results_budget_and_replay(tmp_path: Path) -> None:
    shots = 4000
    backend = hardware(tmp_path / "j", budget=Budget(jobs=1))
    counts = backend.compile(CIRCUIT).run(ROWS, shots)
    exact = SimulatorBackend().compile(CIRCUIT).run(ROWS, None).probabilities()
    assert (np.abs(counts.probabilities() - exact) <= 6 * np.sqrt(exact * (1 - exact) / shots) + 1e-9).all()
    with pytest.raises(BudgetError, match="0 left"):
        backend.compile(CIRCUIT).run(ROWS, shots)
    backend.close()
    again = hardware(tmp_path / "j", budget=Budget(jobs=1))
    assert again.compile(CIRCUIT).run(ROWS, shots).counts == counts.counts
    again.close()


def test_a_job_that_was_cut_off_is_not_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hardware(tmp_path / "j")
    monkeypatch.setattr(first, "results", lambda *_: (_ for _ in ()).throw(ConnectionError("dropped")))
    with pytest.raises(JobError, match="may or may not"):
        first.compile(CIRCUIT).run(ROWS, 100)
    first.close()
    second = hardware(tmp_path / "j")
    with pytest.raises(JobError, match="may or may not"):
        second.compile(CIRCUIT).run(ROWS, 100)
    assert second.journal is not None
    assert second.journal.spent.jobs == 1
    second.close()
