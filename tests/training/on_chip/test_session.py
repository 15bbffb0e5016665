"""Training through the lattice on backends: the loss curve, what is counted, budgets, failures, warm starts and drift."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.command_line import qpeft
from tests.kills import kill_when_there
from tests.training.on_chip.runs import assert_equal_weights, losses, run, settings, weights

from qpeft.backends.emulator import backend
from qpeft.backends.emulator.chip import load_chip
from qpeft.backends.emulator.synthetic import drifted
from qpeft.backends.spending.budget import Cost
from qpeft.errors import BudgetError, ConfigError, JobError, RunError
from qpeft.training.on_chip.cost_estimate import plan
from qpeft.training.recipe.config import load_recipe

POINTS, SHIFTS = 9, 4 * 2 + 4 * 4  # n = 2, L = 1: four rotations of two terms, four controlled ones of four


def test_exact_shots_train_like_autograd(recipe: Path, tmp_path: Path) -> None:
    exact = run(recipe, tmp_path / "exact", 8)
    assert exact.backend == {}
    for gradient in ("surrogate-shift", "direct-shift"):
        steps = 8 if gradient == "surrogate-shift" else 2
        record = run(recipe, tmp_path / gradient, steps, name="simulator", shots=None, gradient=gradient)
        assert [p.loss for p in record.train_curve] == pytest.approx([p.loss for p in exact.train_curve[:steps]], abs=1e-4)
        assert record.metrics["loss"] == pytest.approx(record.backend["exact_loss"], abs=1e-5)
        assert record.simulated
    assert_equal_weights(tmp_path / "exact", tmp_path / "surrogate-shift", atol=1e-4)


def test_noise_aware_training_follows_the_noisy_chip(recipe: Path, tmp_path: Path) -> None:
    """Autograd through the emulator and parameter shift of its exact probabilities: one curve, and not the noiseless one."""
    curves = [
        losses(run(recipe, tmp_path / gradient, 6, name="emulator:wukong-72", shots=None, gradient=gradient))
        for gradient in ("emulator-autograd", "surrogate-shift")
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    exact = losses(run(recipe, tmp_path / "exact", 6))
    assert max(abs(a - b) for a, b in zip(curves[0], exact, strict=True)) > 2e-4


@pytest.mark.parametrize(("gradient", "per_point", "pack"), [("shift", SHIFTS, False), ("spsa", 2, False), ("spsa", 2, True)])
def test_counters_are_those_of_the_plan_whatever_the_tokens(
    recipe: Path, tmp_path: Path, gradient: str, per_point: int, pack: bool
) -> None:
    gradient = f"surrogate-{gradient}"
    backend = {"name": "emulator:wukong-72", "shots": 20, "gradient": gradient, "pack": pack}
    config = load_recipe(recipe, settings(3, **backend))
    assert config.backend is not None
    expected = plan(config, config.backend)["training"][gradient]["training"]
    for batch in (1,) if pack else (1, 4):
        record = run(recipe, tmp_path / f"run{batch}", 3, f"training.per_device_train_batch_size={batch}", **backend)
        found = {name: record.backend[name] for name in ("circuits", "shots", "programs", "jobs")}
        assert found == {name: expected[name] for name in found}
        assert record.backend["chip_s"] == pytest.approx(expected["seconds"], abs=1e-3)
        assert found["circuits"] == POINTS * (3 * (1 + per_point) + 1)  # and one evaluation
        assert (record.circuit_executions, record.shots) == (found["circuits"], found["shots"])
        if pack:
            assert found["programs"] < found["circuits"] / 5


def test_counters_of_a_sparse_surrogate_are_those_of_the_plan(recipe: Path, tmp_path: Path) -> None:
    """Six qubits, whose grid would have 729 points."""
    backend = {"name": "emulator:wukong-180", "shots": 100, "gradient": "surrogate-spsa", "surrogate_error": 0.1}
    config = load_recipe(recipe, settings(2, "adapter.r=6", **backend))
    assert config.backend is not None
    expected = plan(config, config.backend)
    record = run(recipe, tmp_path / "run", 2, "adapter.r=6", **backend)
    points = expected["circuits"][0]["surrogate_points"]
    assert points == 64
    assert record.backend["circuits"] == points * (2 * 3 + 1) == expected["training"]["surrogate-spsa"]["training"]["circuits"]
    assert record.backend["jobs"] == expected["training"]["surrogate-spsa"]["training"]["jobs"]


def test_noise_that_leaves_no_signal_is_told(recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A chip whose two-qubit gates lose nearly everything, and the same chip as it is."""
    chip = load_chip("wukong-72")
    couplers = tuple(dataclasses.replace(coupler, error_cz=0.74) for coupler in chip.couplers)
    (tmp_path / "bad.json").write_text(dataclasses.replace(chip, couplers=couplers).to_json())
    found = {}
    for name in ("wukong-72", str(tmp_path / "bad.json")):
        caplog.clear()
        record = run(recipe, tmp_path / Path(name).stem, 1, name=f"emulator:{name}", shots=1000, gradient="surrogate-spsa")
        found[Path(name).stem] = record.backend, "noise has removed" in caplog.text
    assert found["wukong-72"][1] is False
    assert found["bad"][1] is True
    (good,), (bad,), (exact,) = (
        found["wukong-72"][0]["signal_rms"],
        found["bad"][0]["signal_rms"],
        found["bad"][0]["noiseless_signal_rms"],
    )
    assert bad < 0.2 * exact < good


def test_direct_execution_costs_at_most_what_the_plan_says(recipe: Path, tmp_path: Path) -> None:
    """Padding and words that are alike make equal rows, which run once; two steps of random batches are near the mean."""
    backend = {"name": "simulator", "shots": 10, "gradient": "direct-spsa"}
    record = run(recipe, tmp_path / "run", 2, "data.eval_size=null", **backend)
    config = load_recipe(recipe, settings(2, "data.eval_size=null", **backend))
    assert config.backend is not None
    planned = plan(config, config.backend)["training"]["direct-spsa"]["training"]["circuits"]
    asked = record.backend["circuits"] + record.backend["deduplicated"]
    assert asked == pytest.approx(planned, rel=0.1)


def test_budget_stops_between_steps_and_a_larger_one_goes_on(recipe: Path, tmp_path: Path) -> None:
    chip = {"name": "emulator:wukong-72", "shots": 100, "gradient": "surrogate-shift"}
    whole = run(recipe, tmp_path / "whole", 5, **chip)
    step, folder = POINTS * (1 + SHIFTS), tmp_path / "stopped"
    with pytest.raises(BudgetError, match=rf"stopped after step 3, spent {3 * step:,} circuits.*larger backend.budget"):
        run(recipe, folder, 5, **chip, budget={"circuits": 4 * step - 1})
    assert (folder / "checkpoints" / "checkpoint-3" / "whole.json").exists()
    record = run(recipe, folder, 5, **chip, budget={"circuits": 1000 * step})
    assert_equal_weights(tmp_path / "whole", folder)
    assert record.metrics == whole.metrics
    assert record.backend["circuits"] == whole.backend["circuits"]  # over both sessions
    with pytest.raises(RunError, match="another recipe"):
        run(recipe, folder, 5, **{**chip, "shots": 200})


def test_a_budget_in_money(recipe: Path, tmp_path: Path) -> None:
    step, folder = POINTS * (1 + SHIFTS), tmp_path / "stopped"
    price = {"circuit": 0.5, "shot": 0.01, "currency": "EUR"}  # 1.5 EUR for a circuit of 100 shots
    chip = {"name": "emulator:wukong-72", "shots": 100, "gradient": "surrogate-shift"}
    with pytest.raises(BudgetError, match=r"the budget of [\d.]+ EUR does not cover this.*got '[\d.]+ EUR'"):
        run(recipe, folder, 3, **chip, budget={"money": 1.5 * step * 1.5, "price": price})
    record = run(recipe, folder, 3, **chip, budget={"money": 1.5 * 1000 * step, "price": price})
    assert record.backend["money"] == pytest.approx(1.5 * record.backend["circuits"])


def test_budget_that_an_evaluation_would_break(recipe: Path, tmp_path: Path) -> None:
    step = POINTS * (1 + SHIFTS)
    chip = {"name": "simulator", "shots": 10, "budget": {"shots": 10 * 2 * step}}
    with pytest.raises(BudgetError, match="stopped after step 2"):
        run(recipe, tmp_path / "run", 2, **chip)
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-2" / "whole.json").exists()


@pytest.mark.parametrize("gradient", ["surrogate-shift", "surrogate-spsa"])
def test_a_chip_that_fails_loses_no_step_and_is_not_paid_twice(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gradient: str
) -> None:
    """Failure at each kind of place: a step's values and its gradient. Dropout is on: generators must resume as well."""
    chip = {"name": "emulator:wukong-72", "shots": 100, "gradient": gradient, "cache": True}
    whole = run(recipe, tmp_path / "whole", 4, **chip)
    folder, ran, real = tmp_path / "failing", [0], backend.EmulatedCircuit.run

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        ran[0] += 1
        if ran[0] in (4, 6):  # the gradient of step 2, and when it goes on the values of step 3
            raise JobError("the chip warmed up", job="7")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(backend.EmulatedCircuit, "run", failing)
    for step in (1, 2):
        with pytest.raises(JobError, match="warmed up"):
            run(recipe, folder, 4, **chip)
        assert (folder / "checkpoints" / f"checkpoint-{step}" / "whole.json").exists()
    record = run(recipe, folder, 4, **chip)
    assert_equal_weights(tmp_path / "whole", folder)
    assert record.metrics == whole.metrics
    assert record.train_tokens == whole.train_tokens  # none of the step that failed
    # a run that raised was charged before it failed, and once more when it was asked again; nothing else twice
    per_step = POINTS * (1 + (SHIFTS if gradient == "surrogate-shift" else 2))
    assert whole.backend["circuits"] == 4 * per_step + POINTS
    assert record.backend["circuits"] == whole.backend["circuits"] + (per_step - POINTS) + POINTS


def test_seeds_repeat_shots_and_spsa(recipe: Path, tmp_path: Path) -> None:
    chip = {"name": "simulator", "shots": 50, "gradient": "surrogate-spsa"}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(recipe, tmp_path / name, 3, "adapter.share_circuit=none", **chip, seed=seed)
    assert_equal_weights(tmp_path / "a", tmp_path / "b")
    assert any(not torch.equal(t, weights(tmp_path / "c")[name]) for name, t in weights(tmp_path / "a").items())


def test_warm_start_goes_on_from_exact_training(recipe: Path, tmp_path: Path) -> None:
    exact = run(recipe, tmp_path / "exact", 6)
    start = f"init_from={tmp_path / 'exact' / 'adapter'}"
    chip = {"name": "simulator", "shots": None}
    warm = run(recipe, tmp_path / "warm", 1, start, "training.learning_rate=1e-12", **chip)
    assert warm.metrics["loss"] == pytest.approx(exact.metrics["loss"], abs=1e-5)
    assert set(warm.hashes) == {"model", "train", "eval", "init"}
    with pytest.raises(RunError, match="another adapter"):
        run(recipe, tmp_path / "other", 1, start, "adapter.r=3", **chip)
    with pytest.raises(ConfigError, match="init_from"):
        load_recipe(recipe, ["init_from=nowhere"])


def test_drift_recalibrates_between_steps(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chip's file changes under the run; every second step it is read again, and the record names both calibrations."""
    chip, file = load_chip("wukong-72"), tmp_path / "mine.json"
    later = dataclasses.replace(drifted(chip, seed=1, hours=48), name="mine")
    file.write_text(dataclasses.replace(chip, name="mine").to_json())
    opened, real = [0], backend.load_chip

    def changing(name: Any) -> Any:
        opened[0] += 1
        found = real(name)
        file.write_text(later.to_json())
        return found

    monkeypatch.setattr(backend, "load_chip", changing)
    record = run(recipe, tmp_path / "run", 4, name=f"emulator:{file}", shots=100, recalibrate=2)
    assert opened[0] == 2  # at the start and before step 3
    assert [c.split(":")[0] for c in record.backend["calibrations"]] == [
        dataclasses.replace(chip, name="mine").id,
        later.id,
    ]


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ({"name": "emulatr:wukong-72"}, "unknown backend|emulator"),
        ({"name": "simulator", "pack": True}, "only emulators pack"),
        ({"name": "emulator:wukong-72", "gradient": "emulator-autograd"}, "shots: null"),
        ({"name": "emulator:wukong-72", "gradient": "emulator-autograd", "shots": None, "budget": {"jobs": 3}}, "paid for"),
        ({"name": "emulator:wukong-72", "gradient": "emulator-autograd", "shots": None, "cache": True}, "kept"),
        ({"name": "simulator", "budget": {"shotz": 3}}, "shots"),
        ({"name": "simulator", "gradient": "adjoint"}, "surrogate-shift"),
    ],
)
def test_recipes_that_mean_nothing(recipe: Path, backend: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe(recipe, settings(1, **backend))


def test_an_adapter_without_circuit(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no circuit"):
        run(recipe, tmp_path / "run", 1, "adapter.qnn=mlp2", name="simulator")


@pytest.mark.parametrize(
    ("more", "backend", "choice", "words"),
    [
        ([], {}, "surrogate-shift", "9 points, at most"),
        (["adapter.n_layers=5"], {}, "surrogate-spsa", "121 points"),
        (["adapter.r=4", "adapter.n_layers=8"], {}, "direct", "too many points|more than"),
        (["adapter.r=8", "adapter.n_layers=8"], {}, "direct", "no surrogate"),
        ([], {"budget": {"circuits": 5000}}, "surrogate-shift", "unbiased"),
        ([], {"budget": {"circuits": 500}}, "surrogate-spsa", "budget covers SPSA"),
        (["adapter.n_layers=3"], {"shots": 100_000}, "surrogate-spsa", "chip time a step"),
    ],
)
def test_plan_chooses_and_says_why(recipe: Path, more: list[str], backend: dict[str, Any], choice: str, words: str) -> None:
    config = load_recipe(recipe, settings(12, *more, **{"name": "emulator:wukong-72", **backend}))
    assert config.backend is not None
    found = plan(config, config.backend)
    assert found["choice"].startswith(choice)
    assert re.search(words, found["why"])


def test_plan_command(recipe: Path, tmp_path: Path) -> None:
    told = qpeft("plan", recipe, "--backend", "emulator:wukong-180", "--set", "adapter.n_layers=1", "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["backend"] == "emulator:wukong-180"
    assert len(found["circuits"]) == 4  # not shared
    assert found["training"]["surrogate-shift"]["step"]["circuits"] == 4 * POINTS * (1 + SHIFTS)
    assert found["inference"]["surrogate_once"]["circuits"] == 4 * POINTS
    assert found["inference"]["direct_per_1000_tokens"]["circuits"] == 4000
    table = qpeft("plan", recipe, "--backend", "emulator:wukong-72", "--shots", 100)
    assert table.returncode == 0
    assert "choice: " in table.stdout
    cloud = qpeft("plan", recipe, "--backend", "pyqpanda:WK_C180", "--json")  # asks nobody and needs no key
    assert json.loads(cloud.stdout)["simulated"] is False
    none = qpeft("plan", recipe)
    assert none.returncode == 2
    assert "--backend" in none.stderr


def test_auto_takes_the_plans_choice(recipe: Path, tmp_path: Path) -> None:
    step = POINTS * (1 + SHIFTS)
    chip = {"name": "simulator", "shots": 10, "gradient": "auto"}
    assert run(recipe, tmp_path / "free", 2, **chip).backend["gradient"] == "surrogate-shift"
    bound = run(recipe, tmp_path / "bound", 2, **chip, budget={"circuits": step})
    assert bound.backend["gradient"] == "surrogate-spsa"
    assert bound.backend["circuits"] <= step


@pytest.mark.slow
def test_kill_9_between_two_jobs_of_a_step(recipe: Path, tmp_path: Path) -> None:
    """Killed after a step's values are in the cache and before its gradient ran: the same weights, and the values run once."""
    chip = {"name": "emulator:wukong-72", "shots": 100, "cache": True}
    more = ["training.save_steps=2"]
    whole = run(recipe, tmp_path / "whole", 4, *more, **chip)
    folder = tmp_path / "killed"
    arguments = [a for s in settings(4, *more, **chip) for a in ("--set", s)]
    command = ["qpeft", "train", str(recipe), "--output", str(folder), *arguments]
    code = (
        "import sys, time\nfrom qpeft.backends.emulator.backend import EmulatedCircuit\nreal, ran = EmulatedCircuit.run, [0]\n"
        "def run(self, *a, **k):\n    ran[0] += 1\n"
        f"    if ran[0] == 6:\n        open({str(tmp_path / 'there')!r}, 'w').close(); time.sleep(300)\n"
        f"    return real(self, *a, **k)\nEmulated.run = run\nsys.argv = {command!r}\nfrom qpeft.cli import main; main()"
    )
    kill_when_there(code, tmp_path / "there")
    record = run(recipe, folder, 4, *more, **chip)
    assert_equal_weights(tmp_path / "whole", folder)
    assert record.metrics == whole.metrics
    assert record.backend["cached"] == POINTS  # the values of step 3; its gradient was charged, killed and charged again
    spent = Cost(circuits=record.backend["circuits"])
    assert spent.circuits == whole.backend["circuits"] + POINTS * SHIFTS
