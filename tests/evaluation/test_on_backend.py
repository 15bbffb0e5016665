"""A trained adapter evaluated with its circuits elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.backends.origin_cloud import FakeOriginCloud
from tests.command_line import qpeft

from qpeft.backends.registry import get_backend
from qpeft.backends.spending.budget import Budget
from qpeft.backends.spending.cache import ResultCache
from qpeft.errors import BudgetError, RunError
from qpeft.evaluation.on_backend import evaluate_on_backend
from qpeft.training.data.examples import load_data
from qpeft.training.data.tokenization import tokenize_all
from qpeft.training.loop.loaded_run import load_run
from qpeft.training.loop.run import train
from qpeft.training.recipe.config import load_recipe


@pytest.fixture(scope="module")
def trained() -> dict[str, Path]:
    return {}


@pytest.fixture
def run(recipe: Path, tmp_path: Path, trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny model, trained once and copied."""
    if not trained:
        trained["run"] = tmp_path_factory.mktemp("trained")
        train(load_recipe(recipe, ["training.max_steps=4", "training.eval_strategy=no"]), trained["run"] / "run")
        (trained["run"] / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text())
    shutil.copytree(trained["run"] / "run", tmp_path / "run")
    return tmp_path / "run"


def loaded(run: Path, rows: int = 2) -> tuple[Any, Any, Any]:
    config, model, tokenizer = load_run(run)
    return model, tokenize_all(load_data(config.data)[1][:rows], tokenizer, 64).rows, tokenizer


def test_exact_backend_gives_the_exact_metrics_and_the_estimate_is_right(run: Path) -> None:
    model, rows, tokenizer = loaded(run)
    found = evaluate_on_backend(model, rows, tokenizer, get_backend("simulator"), None)
    for name, value in found["exact"].items():
        assert found["backend"][name] == pytest.approx(value, rel=1e-5)
    positions = sum(len(row["input_ids"]) for row in rows)
    assert 0 < found["estimate"]["circuits"] <= 4 * 2 * max(len(row["input_ids"]) for row in rows)  # 2 layers x (q, v)
    assert found["spent"]["circuits"] == pytest.approx(found["estimate"]["circuits"], rel=0.02)
    assert positions > 0
    assert found["simulated"]


def test_shots_move_the_loss_and_seeds_bring_it_back(run: Path) -> None:
    model, rows, tokenizer = loaded(run)
    first, again, other = (
        evaluate_on_backend(model, rows, tokenizer, get_backend("simulator"), 20, seed=seed)["backend"]["loss"]
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_budget_stops_before_the_backend_runs_and_the_model_is_exact_again(run: Path) -> None:
    model, rows, tokenizer = loaded(run)
    with pytest.raises(BudgetError, match="50 circuits"):
        evaluate_on_backend(model, rows, tokenizer, get_backend("simulator"), 10, budget=Budget(circuits=50))
    exact = evaluate_on_backend(model, rows, tokenizer, get_backend("simulator"), None)
    assert exact["exact"]["loss"] == pytest.approx(exact["backend"]["loss"], rel=1e-5)


def test_cache_makes_a_second_evaluation_free(run: Path, tmp_path: Path) -> None:
    model, rows, tokenizer = loaded(run)
    cache = ResultCache(tmp_path / "cache")
    first, again = (evaluate_on_backend(model, rows, tokenizer, get_backend("simulator"), 20, cache=cache) for _ in range(2))
    assert first["backend"] == again["backend"]
    assert (again["spent"]["circuits"], again["spent"]["cached"]) == (0, first["spent"]["circuits"])


def test_command(run: Path) -> None:
    told = qpeft("eval", run, "--backend", "emulator:wukong-72", "--shots", 100, "--limit", 1, "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["rows"] == 1
    assert found["backend"]["spent"]["shots"] == 100 * found["backend"]["spent"]["circuits"] > 0
    assert found["backend"]["metrics"]["loss"] != found["adapter"]["loss"]
    assert found["backend"]["simulated"] is True
    table = qpeft("eval", run, "--backend", "simulator", "--limit", 1).stdout
    assert "on simulator" in table
    assert "simulated on a classical computer" in table


def test_command_on_a_cloud_is_paid_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: a trained adapter, the real pyqpanda3 client, a server that runs the programs. The second time is a replay."""
    pytest.importorskip("pyqpanda3")
    with FakeOriginCloud("the-key") as cloud:
        cloud.states = []
        monkeypatch.setenv("PYQPANDA_API_KEY", "the-key")
        monkeypatch.setenv("PYQPANDA_URL", cloud.url)
        command = ("eval", run, "--backend", "pyqpanda:72", "--shots", 50, "--limit", 1, "--json")
        told = [qpeft(*command) for _ in range(2)]
        assert [t.returncode for t in told] == [0, 0], told[0].stderr
        first, again = (json.loads(t.stdout)["backend"] for t in told)
        assert first["metrics"] == again["metrics"]
        assert first["simulated"] is False
        assert cloud.circuits == first["spent"]["circuits"] > 0
        assert len(cloud.jobs) == first["spent"]["jobs"] == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shots", 10), "--backend"),
        (("--backend", "nowhere"), "unknown backend"),
        (("--backend", "simulator", "--shots", 10, "--max-circuits", 3, "--limit", 1), "left"),
        (("--backend", "simulator", "--shots", 10, "--budget-shots", 30, "--limit", 1), "left"),
    ],
)
def test_command_refuses(run: Path, options: tuple[object, ...], words: str) -> None:
    told = qpeft("eval", run, *options)
    assert told.returncode == 2
    assert words in told.stderr
    assert "Traceback" not in told.stderr


def test_adapter_without_circuits(run: Path) -> None:
    model, rows, tokenizer = loaded(run)
    with pytest.raises(RunError, match="no circuit"):
        evaluate_on_backend(model.unload(), rows, tokenizer, get_backend("simulator"), None)
