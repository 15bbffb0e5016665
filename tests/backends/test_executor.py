"""BackendExecutor: what it runs, what it does not run again, what it counts, and when it stops. And Counts, which it reads."""

from __future__ import annotations

import math
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qpeft.backends import executor as module
from qpeft.backends.base import Counts, Limits, sample
from qpeft.backends.executor import BackendExecutor
from qpeft.backends.simulator import SimulatorBackend
from qpeft.backends.spending.budget import Budget, Cost, Ledger, cost_of
from qpeft.backends.spending.cache import ResultCache
from qpeft.circuits import ansatz
from qpeft.circuits.executor import Executor
from qpeft.circuits.ir import Circuit, Observable, Op
from qpeft.circuits.simulator.simulate import expectations
from qpeft.errors import BackendError, BudgetError, CircuitError, ResourceError

CIRCUIT = ansatz.qtha(3, 1)
INPUTS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
ANGLES = torch.randn(12, generator=torch.Generator().manual_seed(1))
WORDS = [Observable.pauli("XYZ"), Observable(((0.25, ()), (2.0, ((1, "Y"),)), (-1.0, ((0, "Z"), (2, "Z")))))]


def test_is_an_executor_with_the_simulators_values_shapes_and_dtypes() -> None:
    executor = BackendExecutor(SimulatorBackend())
    assert isinstance(executor, Executor)
    for observables in (None, WORDS):
        for dtype in (torch.float32, torch.float64):
            for shape in ((3,), (6, 3), (2, 3, 3), (0, 3)):
                inputs = INPUTS.new_zeros(shape) if 0 in shape else INPUTS.flatten()[: np.prod(shape)].reshape(shape)
                inputs, angles = inputs.to(dtype), ANGLES.to(dtype)
                found = executor.compile(CIRCUIT, observables)(inputs, angles)
                want = expectations(CIRCUIT, inputs, angles, observables)
                assert found.dtype == want.dtype
                torch.testing.assert_close(found, want, rtol=0, atol=2e-6 if dtype == torch.float32 else 1e-12)


def test_wrong_shapes_and_observables() -> None:
    executor = BackendExecutor(SimulatorBackend())
    run = executor.compile(CIRCUIT)
    for inputs, angles in ((INPUTS[:, :2], ANGLES), (INPUTS, ANGLES[:5]), (torch.tensor(1.0), ANGLES)):
        with pytest.raises(CircuitError):
            run(inputs, angles)
    for observables in ([], [Observable.z(3)]):
        with pytest.raises(CircuitError):
            executor.compile(CIRCUIT, observables)


def test_no_circuit_without_parameters_runs_twice() -> None:
    circuit, executor = Circuit(2, (Op("h", (0,)), Op("cx", (0, 1)))), BackendExecutor(SimulatorBackend(), 100, seed=0)
    values = executor.compile(circuit, [Observable.pauli("ZZ")])(torch.empty(50, 0), torch.empty(0))
    assert (values == 1).all()
    assert executor.ledger.spent.circuits == 1
    assert executor.ledger.deduplicated == 49


def test_seeds() -> None:
    def values(seed: int | None) -> torch.Tensor:
        run = BackendExecutor(SimulatorBackend(), 100, seed=seed).compile(CIRCUIT)
        return torch.stack([run(INPUTS, ANGLES), run(INPUTS, ANGLES)])

    first, again, other = values(3), values(3), values(4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1]), "two runs of one executor are different samples"
    assert not torch.equal(values(None), values(None))


class Recorder(SimulatorBackend):
    """Counts the rows that it is asked for."""

    rows = 0

    def compile(self, circuit: Circuit) -> Any:
        compiled = super().compile(circuit)
        run = compiled.run

        def counted(params: Any, shots: int | None, seed: int | None = None) -> Counts:
            type(self).rows += len(params)
            return run(params, shots, seed)

        compiled.run = counted  # type: ignore[method-assign]
        return compiled


@pytest.fixture
def recorder() -> Recorder:
    Recorder.rows = 0
    return Recorder(limits=Limits(20, max_circuits_per_job=4, exact=True))


def test_equal_rows_run_once(recorder: Recorder) -> None:
    executor = BackendExecutor(recorder, 50, seed=0)
    values = executor.compile(CIRCUIT)(INPUTS[[0, 1, 0, 0, 2]], ANGLES)
    assert recorder.rows == 3
    assert torch.equal(values[0], values[2])
    assert (executor.ledger.spent.circuits, executor.ledger.spent.shots, executor.ledger.deduplicated) == (3, 150, 2)


def test_costs_count_groups_jobs_and_packing(recorder: Recorder) -> None:
    executor = BackendExecutor(recorder, 10, seed=0)
    executor.compile(CIRCUIT, WORDS)(INPUTS, ANGLES)  # XYZ and Y, ZIZ do not all commute qubit by qubit: two circuits a row
    assert executor.ledger.spent == Cost(circuits=12, shots=120, programs=12, jobs=4)
    compiled = recorder.compile(CIRCUIT)
    compiled.per_program = 5  # type: ignore[misc]
    assert cost_of(recorder, compiled, 23, 10) == Cost(circuits=23, shots=230, programs=5, jobs=2)
    assert cost_of(recorder, compiled, 0, 10) == Cost()


def test_cache_keeps_exact_and_shots_and_calibrations_apart(recorder: Recorder, tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "deep" / "results.sqlite")

    def run(backend: SimulatorBackend, shots: int | None, rows: torch.Tensor = INPUTS) -> tuple[int, torch.Tensor]:
        Recorder.rows, executor = 0, BackendExecutor(backend, shots, cache=cache)
        return (values := executor.compile(CIRCUIT)(rows, ANGLES)) is not None and Recorder.rows, values

    first, values = run(recorder, 100)
    again, same = run(recorder, 100)
    assert (first, again) == (6, 0)
    assert torch.equal(values, same)
    assert run(recorder, 200)[0] == 6
    exact = run(recorder, None)
    assert exact[0] == 6
    torch.testing.assert_close(exact[1], expectations(CIRCUIT, INPUTS, ANGLES), rtol=0, atol=1e-6)
    torch.testing.assert_close(run(recorder, None)[1], exact[1], rtol=0, atol=0)
    assert run(replace(recorder, calibration="tomorrow"), 100)[0] == 6
    assert run(replace(recorder, name="other"), 100)[0] == 6
    more, mixed = run(recorder, 100, torch.cat([INPUTS[3:], INPUTS + 1]))
    assert more == 6
    assert torch.equal(mixed[:3], values[3:])


def test_a_file_that_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("this is not a database, and long enough to be read as a header of one" * 20)
    with pytest.raises(BackendError, match="cannot be used"):
        ResultCache(tmp_path / "results")


def test_cache_survives_a_process(tmp_path: Path, recorder: Recorder) -> None:
    BackendExecutor(recorder, 100, cache=ResultCache(tmp_path / "r"), seed=1).compile(CIRCUIT)(INPUTS, ANGLES)
    with sqlite3.connect(tmp_path / "r") as database:
        assert database.execute("SELECT COUNT(*) FROM results").fetchone() == (6,)
    database.close()
    ledger = Ledger()
    BackendExecutor(recorder, 100, cache=ResultCache(tmp_path / "r"), ledger=ledger).compile(CIRCUIT)(INPUTS, ANGLES)
    assert (ledger.cached, ledger.spent) == (6, Cost())


@pytest.mark.parametrize("bound", [{"circuits": 5}, {"shots": 599}, {"jobs": 1}])
def test_budget_stops_before_anything_runs(recorder: Recorder, bound: dict[str, int]) -> None:
    executor = BackendExecutor(recorder, 100, ledger=Ledger(Budget(**bound)))
    run = executor.compile(CIRCUIT)
    with pytest.raises(BudgetError, match="left") as caught:
        run(INPUTS, ANGLES)
    assert (recorder.rows, executor.ledger.spent) == (0, Cost())
    assert str(next(iter(bound))) in str(caught.value)
    run(INPUTS[:2], ANGLES)
    assert recorder.rows == 2


@pytest.mark.parametrize(
    "bound",
    [{"seconds": math.nan}, {"seconds": math.inf}, {"jobs": -1}, {"jobs": "2"}, {"shots": True}, {"circuits": 1.5}, {"money": 5.0}],
)
def test_a_budget_that_bounds_nothing_is_refused(bound: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match=f"{next(iter(bound))} is a"):
        Budget(**bound)


def test_executors_share_a_ledger_and_it_reports() -> None:
    seen: list[Cost] = []
    ledger = Ledger(Budget(circuits=10), watch=seen.append)
    for _ in range(2):
        run = BackendExecutor(SimulatorBackend(), 10, ledger=ledger).compile(CIRCUIT)
        try:
            run(INPUTS, ANGLES)
        except BudgetError:
            break
    assert ledger.to_dict() == {
        "circuits": 6, "shots": 60, "programs": 6, "jobs": 1, "seconds": 0.0, "deduplicated": 0, "cached": 0,
    }  # fmt: skip
    assert seen == [Cost(circuits=6, shots=60, programs=6, jobs=1)]


def test_long_batches_go_in_chunks(monkeypatch: pytest.MonkeyPatch, recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(module, "LONG", 5)
    monkeypatch.setattr("qpeft.progress.EVERY_S", 0.0)
    executor = BackendExecutor(recorder, progress=True)
    torch.testing.assert_close(executor.compile(CIRCUIT)(INPUTS, ANGLES), expectations(CIRCUIT, INPUTS, ANGLES), rtol=0, atol=1e-6)
    assert executor.ledger.spent.circuits == 6
    assert "circuits on simulator: 4/6" in capsys.readouterr().err


def test_gradients_do_not_depend_on_chunks_or_duplicates() -> None:
    run, angles = BackendExecutor(SimulatorBackend()).compile(CIRCUIT), ANGLES.clone().requires_grad_()
    inputs = INPUTS[[0, 0, 1]].clone().requires_grad_()
    run(inputs, angles)[:, 0].sum().backward()
    twice = torch.autograd.grad(expectations(CIRCUIT, inputs, angles)[:, 0].sum(), (inputs, angles))
    torch.testing.assert_close(inputs.grad, twice[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(angles.grad, twice[1], rtol=0, atol=1e-5)


def test_gradient_for_one_argument_costs_that_alone(recorder: Recorder) -> None:
    run, inputs = BackendExecutor(recorder).compile(CIRCUIT), INPUTS.clone().requires_grad_()
    run(inputs, ANGLES).sum().backward()
    assert recorder.rows == 6 * (1 + 2 * 3)
    assert inputs.grad is not None


# Counts


def test_dense_and_sparse_counts_agree() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(16), size=3)
    dense = sample(probabilities, 500, seed=1)
    sparse = Counts.from_strings(4, dense.counts, 500)
    observables = [Observable.pauli("ZIZI"), Observable(((0.5, ()), (2.0, ((3, "Z"),))))]
    np.testing.assert_allclose(dense.probabilities(), sparse.probabilities())
    np.testing.assert_allclose(dense.expectations(observables), sparse.expectations(observables))
    np.testing.assert_allclose(dense.expectations(), sparse.expectations())
    assert dense.counts == [dict(sorted(row.items())) for row in sparse.counts]
    for qubits in ([0], [3, 1], [2, 0, 1, 3]):
        np.testing.assert_allclose(dense.marginal(qubits).probabilities(), sparse.marginal(qubits).probabilities())
    np.testing.assert_allclose(dense.take(np.array([2, 0, 2])).probabilities(), sparse.take(np.array([2, 0, 2])).probabilities())
    both = Counts.concatenate([dense, sparse], 4, 500)
    assert len(both) == 6
    assert len(Counts.concatenate([], 4, 500)) == 0


def test_qubit_0_is_leftmost() -> None:
    counts = Counts.from_strings(3, [{"100": 3, "110": 1}], 4)
    np.testing.assert_allclose(counts.expectations(), [[-1, 0.5, 1]])
    assert counts.probabilities()[0, 4] == 0.75
    assert counts.marginal([1, 0]).counts == [{"01": 3, "11": 1}]


def test_many_qubits_stay_sparse() -> None:
    counts = Counts.from_strings(100, [{"1" * 100: 7, "0" * 99 + "1": 3}], 10)
    assert counts.expectations([Observable.z(99), Observable.z(0)]).tolist() == [[-1.0, pytest.approx(-0.4)]]
    assert counts.marginal([0, 99]).counts == [{"11": 7, "01": 3}]
    with pytest.raises(ResourceError, match="marginal"):
        counts.probabilities()


def test_counts_refuse_what_they_cannot_be() -> None:
    for call in (
        lambda: Counts.dense(np.zeros((2, 3)), 1),
        lambda: Counts.from_strings(2, [{"012": 1}], 1),
        lambda: Counts.from_strings(2, [{"1x": 1}], 1),
        lambda: Counts.dense(np.eye(4), 1).marginal([0, 0]),
        lambda: Counts.dense(np.eye(4), 1).marginal([2]),
        lambda: Counts.dense(np.eye(4), 1).expectations([Observable.pauli("XI")]),
        lambda: Counts.dense(np.eye(4), 1).expectations([Observable.z(2)]),
    ):
        with pytest.raises(CircuitError):
            call()
    with pytest.raises(BackendError, match="probabilities"):
        _ = Counts.dense(np.eye(4), None).counts
