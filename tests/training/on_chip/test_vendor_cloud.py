"""A vendor's cloud as the backend of a training: the real pyqpanda3 client, a server that really runs the programs it is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.backends.origin_cloud import FakeOriginCloud
from tests.kills import kill_when_there

from qpeft.errors import BudgetError, JobError
from qpeft.records import RunRecord
from qpeft.training.loop.run import train
from qpeft.training.recipe.config import load_recipe

pytestmark = [pytest.mark.slow]
pytest.importorskip("pyqpanda3")

POINTS = 9
SPSA_STEP = 3 * POINTS  # values, and two for the gradient
SHIFT_STEP = POINTS * (1 + 4 * 2 + 4 * 4)


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Any:
    with FakeOriginCloud("the-key", seed=5) as found:
        found.states = []
        monkeypatch.setenv("PYQPANDA_API_KEY", "the-key")
        monkeypatch.setenv("PYQPANDA_URL", found.url)
        yield found


def settings(steps: int, *more: str, **backend: Any) -> list[str]:
    section = {"name": "pyqpanda:72", "shots": 50, "gradient": "surrogate-spsa", **backend}
    common = ["adapter.n_layers=1", "adapter.share_circuit=model", "training.eval_strategy=no", "data.eval_size=null"]
    return [*common, f"training.max_steps={steps}", f"backend={json.dumps(section)}", *more]


def run(recipe: Path, folder: Path, steps: int, *more: str, **backend: Any) -> RunRecord:
    return train(load_recipe(recipe, settings(steps, *more, **backend)), folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_ten_steps(recipe: Path, tmp_path: Path, cloud: FakeOriginCloud) -> None:
    record = run(recipe, tmp_path / "run", 10)
    assert record.steps == 10
    assert not record.simulated
    assert cloud.circuits == record.backend["circuits"] == 10 * SPSA_STEP
    assert len(cloud.jobs) == record.backend["jobs"] == 20
    assert record.backend["chip_s"] == pytest.approx(10 * SPSA_STEP * 50 * 100e-6)
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "run").values())


def test_a_failed_job_and_a_budget_lose_no_step(recipe: Path, tmp_path: Path, cloud: FakeOriginCloud) -> None:
    folder = tmp_path / "run"
    with pytest.raises(BudgetError, match=f"stopped after step 2, spent {2 * SPSA_STEP + POINTS} circuits"):
        run(recipe, folder, 4, budget={"shots": 50 * (3 * SPSA_STEP - 1)})
    cloud.fail = True
    with pytest.raises(JobError, match="failed"):  # the gradient of step 3; its values are in the journal
        run(recipe, folder, 4)
    cloud.fail = False
    record = run(recipe, folder, 4)
    assert record.steps == 4
    assert cloud.circuits == 4 * SPSA_STEP + 2 * POINTS  # the failed job alone was sent again


def test_kill_9_between_two_jobs(recipe: Path, tmp_path: Path, cloud: FakeOriginCloud) -> None:
    """A gradient of two jobs, killed when the second is about to be sent: no job is sent twice.

    The circuit's angles are the same in all three steps (its output is multiplied by zeros until the second), so that only the
    step tells the jobs apart.
    """
    folder, more = tmp_path / "killed", ["training.save_steps=1", "training.max_steps=3"]
    chip = {"gradient": "surrogate-shift"}
    arguments = [a for s in settings(3, *more, **chip) for a in ("--set", s)]
    command = ["qpeft", "train", str(recipe), "--output", str(folder), *arguments]
    code = (
        "import sys, time\nfrom qpeft.backends.spending.journal import Journal\nreal, ran = Journal.intent, [0]\n"
        "def intent(self, *a, **k):\n    ran[0] += 1\n"
        f"    if ran[0] == 6:\n        open({str(tmp_path / 'there')!r}, 'w').close(); time.sleep(300)\n"
        f"    return real(self, *a, **k)\nJournal.intent = intent\nsys.argv = {command!r}\nfrom qpeft.cli import main; main()"
    )
    kill_when_there(code, tmp_path / "there")
    assert len(cloud.jobs) == 5  # step 1: values and two; step 2: values and the first of two
    record = run(recipe, folder, 3, *more, **chip)
    assert record.steps == 3
    assert len(cloud.jobs) == record.backend["jobs"] == 9
    assert cloud.circuits == record.backend["circuits"] == 3 * SHIFT_STEP
