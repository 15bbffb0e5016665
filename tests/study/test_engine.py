"""Engines run the runs of a comparison: one process after another, or on a real Ray cluster of this machine, with equal records."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from qpeft.errors import RunError
from qpeft.records import RunRecord, read_records
from qpeft.study.compare import compare
from qpeft.study.engine import LocalEngine, Prefork, RayEngine, RunSpec, make_engine
from qpeft.training.loop.run_dir import FAILURE
from qpeft.training.recipe.config import load_recipe

FEW = ["training.max_steps=2", "training.eval_steps=2", "compare.seeds=[0]"]


class Killed:
    """An engine whose first process dies and whose second leaves a failure note, without a run."""

    def run(self, jobs: Sequence[RunSpec]) -> Iterator[tuple[RunSpec, int]]:
        first, second = jobs
        assert (first.same_rows, second.same_rows) == (False, True)  # warnings about rows are told once
        yield first, -9
        (second.folder / FAILURE).write_text(json.dumps({"error": "DivergedError: the loss of step 3 is nan"}))
        yield second, 2


def test_what_an_engine_reports_becomes_a_record(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="every run failed"):
        compare(load_recipe(recipe, FEW), tmp_path / "out", engine=Killed())
    first, second = read_records(tmp_path / "out" / "records.jsonl")
    assert first.error == "the process was killed by signal SIGKILL"
    assert second.error == "DivergedError: the loss of step 3 is nan"


def test_engines_by_name() -> None:
    assert isinstance(make_engine("local"), LocalEngine)
    assert isinstance(make_engine("ray", gpus=1.0), RayEngine)
    with pytest.raises(RunError, match="local, ray"):
        make_engine("slurm")


def _measured(record: RunRecord) -> tuple[object, ...]:
    return record.label, record.seed, record.metrics, record.eval_curve, record.train_tokens, record.config


OUTER = """
import sys
from qpeft.study.engine import LocalEngine
class Job:
    def command(self):
        return [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
list(LocalEngine().run([Job(), Job()]))
"""


def test_a_run_does_not_outlive_its_comparison() -> None:
    """SIGTERM to the comparison's process ends the training process as well: the pipe that both hold is closed."""
    with subprocess.Popen([sys.executable, "-c", OUTER], stdout=subprocess.PIPE, text=True) as outer:
        assert outer.stdout is not None
        assert outer.stdout.readline() == "up\n"
        outer.terminate()
        assert outer.communicate(timeout=20) == ("", None)
    assert outer.returncode == 128 + signal.SIGTERM


@pytest.mark.slow  # CI compares forked runs in test_run.py
@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_forked_runs_have_the_records_of_fresh_processes(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_recipe(recipe, FEW)
    forked = compare(config, tmp_path / "forked", engine=LocalEngine())
    monkeypatch.setattr(Prefork, "run", lambda self, job: None)
    fresh = compare(config, tmp_path / "fresh", engine=LocalEngine())
    found = [list(map(_measured, read_records(file))) for file in (forked, fresh)]
    assert found[0] == found[1]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_a_process_forks_for_each_run_and_tells_its_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    missing = RunSpec(tmp_path / "none.yaml", tmp_path / "run", tmp_path / "baseline.json")
    with contextlib.closing(Prefork()) as prefork:
        assert [prefork.run(missing), prefork.run(missing)] == [2, 2]
        assert prefork.usable
        assert prefork.process is not None
        prefork.process.kill()
        prefork.process.wait()
        assert prefork.run(missing) is None  # not started: a fresh process does it
    assert capfd.readouterr().err.count("none.yaml") == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_gives_the_records_of_local_processes(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = load_recipe(recipe, FEW)
    local = compare(config, tmp_path / "local")
    spread = compare(config, tmp_path / "ray", engine=RayEngine(cpus=1))
    found = [sorted(map(_measured, read_records(file)), key=str) for file in (local, spread)]
    assert found[0] == found[1]
    assert len(found[0]) == 2
    text = spread.read_bytes()
    compare(config, tmp_path / "ray", engine=RayEngine(cpus=1))
    assert spread.read_bytes() == text  # nothing is trained or recorded twice
