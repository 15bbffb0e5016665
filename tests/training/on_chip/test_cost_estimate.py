"""`qpeft plan` against what a run then counts, on a chip of twelve qubits with dead couplers: circuits, shots, programs, jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.backends.emulator.random_chips import make_chip
from tests.training.on_chip.runs import assert_equal_weights, run, settings

from qpeft.backends.emulator.chip import Coupler, Qubit
from qpeft.errors import BackendError, BudgetError, ConfigError
from qpeft.export.run import Options, export
from qpeft.records import RunRecord
from qpeft.training.loop.run import train
from qpeft.training.on_chip.cost_estimate import plan
from qpeft.training.recipe.config import load_recipe

COUNTED = ("circuits", "shots", "programs", "jobs")


@pytest.fixture
def chip(tmp_path: Path) -> str:
    """Two rows of six, three of sixteen couplers dead; beside the recipe, which names it by its file name alone."""
    random = np.random.default_rng(3)
    pairs = [(q, q + 1) for q in range(11) if q != 5] + [(q, q + 6) for q in range(6)]
    dead = ((2, 3), (1, 7), (8, 9))
    times = random.uniform(10, 40, 12)
    qubits = [Qubit(t1_us=float(t), t2_us=float(t) / 2, error_1q=0.005, p1_given_0=0.03, p0_given_1=0.05) for t in times]
    couplers = [Coupler(qubits=pair, error_cz=float(random.uniform(0.02, 0.06)), enabled=pair not in dead) for pair in pairs]
    (tmp_path / "twelve.json").write_text(make_chip(qubits, couplers, name="twelve").to_json())
    return "emulator:twelve.json"


def planned(recipe: Path, folder: Path, steps: int, *more: str, **backend: Any) -> tuple[dict[str, Any], RunRecord]:
    """The plan for the way that the run then went, and its record."""
    config = load_recipe(recipe, settings(steps, *more, **backend))
    assert config.backend is not None
    found, record = plan(config, config.backend), train(config, folder)
    assert found["steps"] == record.steps
    return found["training"][record.backend["gradient"]]["training"], record


def assert_counted(expected: dict[str, Any], record: RunRecord) -> None:
    assert {name: record.backend[name] for name in COUNTED} == {name: expected[name] for name in COUNTED}
    assert record.backend["chip_s"] == pytest.approx(expected["seconds"], abs=1e-3)


@pytest.mark.parametrize(
    ("more", "backend"),
    [
        (["adapter.r=3", "adapter.share_circuit=none"], {}),
        (["adapter.n_layers=2", "adapter.share_circuit=layer"], {"shots": 1}),
        (["adapter.r=3", "adapter.qnn=product"], {"gradient": "surrogate-shift"}),
        (["adapter.qnn=frozen"], {"gradient": "surrogate-shift"}),
        (["adapter.r=1", "adapter.n_layers=3"], {"shots": 10_000}),
        (["adapter.r=3", "adapter.share_circuit=layer"], {"pack": True, "gradient": "surrogate-shift"}),
    ],
)
def test_circuits_of_every_kind(recipe: Path, tmp_path: Path, chip: str, more: list[str], backend: dict[str, Any]) -> None:
    expected, record = planned(
        recipe, tmp_path / "run", 2, *more, **{"name": chip, "shots": 7, "gradient": "surrogate-spsa", **backend}
    )
    assert_counted(expected, record)


EPOCHS = ["training.max_steps=null", "training.num_train_epochs=2", "training.per_device_train_batch_size=5"]


@pytest.mark.parametrize(
    "more",
    [
        ["training.eval_strategy=epoch", *EPOCHS, "training.gradient_accumulation_steps=3"],
        ["training.eval_strategy=epoch", "training.load_best_model_at_end=true", "training.save_strategy=epoch"],
        ["training.eval_strategy=steps", "training.eval_steps=2", "training.eval_on_start=true"],
        ["training.eval_strategy=steps", "training.eval_steps=2", "training.eval_delay=3"],
        ["training.eval_strategy=steps", "training.eval_steps=2", "training.save_steps=2", "training.load_best_model_at_end=true"],
        ["training.eval_strategy=steps", "training.eval_steps=0.3"],
    ],
)
def test_evaluations_of_every_schedule(recipe: Path, tmp_path: Path, more: list[str]) -> None:
    backend = {"name": "emulator:wukong-72", "shots": 3, "gradient": "surrogate-spsa"}
    assert_counted(*planned(recipe, tmp_path / "run", 5, *more, **backend))


@pytest.mark.parametrize("qnn", ["circuit", "frozen"])
def test_direct_execution_with_its_evaluation(recipe: Path, tmp_path: Path, qnn: str) -> None:
    """Two steps of random batches are near the mean; equal rows run once."""
    backend = {"name": "simulator", "shots": 5, "gradient": "direct-shift"}
    expected, record = planned(recipe, tmp_path / "run", 2, f"adapter.qnn={qnn}", **backend)
    assert record.backend["circuits"] + record.backend["deduplicated"] == pytest.approx(expected["circuits"], rel=0.05)
    assert record.backend["jobs"] == expected["jobs"]


@pytest.mark.parametrize("pack", [False, True])
def test_inference_is_what_an_export_measures(recipe: Path, tmp_path: Path, pack: bool) -> None:
    backend = {"name": "emulator:wukong-72", "shots": 50, "pack": pack, "gradient": "surrogate-spsa"}
    config = load_recipe(recipe, settings(1, "adapter.share_circuit=layer", **backend))
    assert config.backend is not None
    expected = plan(config, config.backend)["inference"]["surrogate_once"]
    train(config, tmp_path / "run")
    options = Options(to="surrogate", backend="emulator:wukong-72", shots=50)
    spent = export(tmp_path / "run", tmp_path / "out", options)["surrogate"]["spent"]
    assert {name: spent[name] for name in expected} == pytest.approx(expected)


def test_a_circuit_that_is_not_trained_is_measured_every_step(recipe: Path, tmp_path: Path) -> None:
    """So that a run that was paused, or killed, ends as one that was not."""
    backend = {"name": "emulator:wukong-72", "shots": 20}
    whole = run(recipe, tmp_path / "whole", 4, "adapter.qnn=frozen", **backend)
    config = load_recipe(recipe, settings(4, "adapter.qnn=frozen", **backend))
    train(config, tmp_path / "paused", until=2)
    assert train(config, tmp_path / "paused").metrics == whole.metrics
    assert_equal_weights(tmp_path / "whole", tmp_path / "paused")


def test_a_larger_budget_does_not_change_what_auto_chose(recipe: Path, tmp_path: Path) -> None:
    """9 points a lattice: 225 circuits a step by shifts, 27 by SPSA. Neither fits at first; later SPSA alone would."""
    backend = {"name": "simulator", "shots": 10, "gradient": "auto"}
    with pytest.raises(BudgetError, match="stopped after step 2"):
        run(recipe, tmp_path / "run", 20, **backend, budget={"circuits": 500})
    with pytest.raises(BudgetError, match="stopped after step 4"):
        run(recipe, tmp_path / "run", 20, **backend, budget={"circuits": 1000})


def test_shots_and_chips_that_are_not_there(recipe: Path, tmp_path: Path, chip: str) -> None:
    config = load_recipe(recipe, settings(1, name=chip, shots=10_001))
    assert config.backend is not None
    assert config.backend.name == f"emulator:{tmp_path / 'twelve.json'}"
    with pytest.raises(BackendError, match=r"too many shots; got 10001; allowed: at most 10000"):
        plan(config, config.backend)
    with pytest.raises(ConfigError, match=r"backend.name: no such file: 'thirteen.json'"):
        load_recipe(recipe, settings(1, name="emulator:thirteen.json"))
