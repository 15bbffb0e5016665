"""The leaderboard comes from records alone, and a contribution that hides something is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from statistics import fmean, stdev

import pytest
import yaml
from scipy import stats

from qpeft.errors import ConfigError
from qpeft.study.leaderboard import leaderboard, problems, read_entry, write_plan
from qpeft.study.plan import Rung, StudyPlan, fingerprint, load_plan
from qpeft.study.records import StudyRecords, TuningRecord
from tests.command_line import qpeft
from tests.study.records import finished_records

ROOT = Path(__file__).parents[2]
LOSSES = {"LoRA r=8": [1.0, 1.1, 0.9, 1.05, 0.95], "mine": [0.8, 0.95, 0.75, 0.8, 0.7]}


@pytest.fixture
def plan(tmp_path: Path, tiny_model: Path) -> StudyPlan:
    lora = {"peft_type": "LORA", "target_modules": ["q_proj"]}
    text = {
        "name": "small",
        "model": {"model_name_or_path": str(tiny_model), "dtype": "float32"},
        "training": {"max_steps": 3, "per_device_train_batch_size": 2},
        "tuning": {"learning_rates": [1e-2, 1e-3, 1e-1]},
        "seeds": [0, 1, 2, 3, 4],
        "tasks": [{"name": "clinic", "folder": str(tmp_path)}],
        "arms": [
            {"label": "LoRA r=8", "kind": "lora", "adapter": {**lora, "r": 8}},
            {"label": "mine", "kind": "quantum", "adapter": {**lora, "r": 1}},
        ],
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(text))
    return load_plan(tmp_path / "plan.yaml")


def contribution(plan: StudyPlan, folder: Path, losses: dict[str, list[float]] = LOSSES) -> StudyRecords:
    records = finished_records(plan, folder, losses, {"LoRA r=8": 1000, "mine": 90})
    write_plan(plan, folder)
    return records


def rewritten(folder: Path, change: object) -> None:
    """The run records with `change` applied to each; None drops it."""
    file = folder / "small.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    kept = [change(line) for line in lines]  # type: ignore[operator]
    file.write_text("".join(json.dumps(line) + "\n" for line in kept if line is not None))


def test_a_plan_written_next_to_its_records_is_the_same_plan(plan: StudyPlan, tmp_path: Path) -> None:
    contribution(plan, tmp_path / "in")
    entry = read_entry(tmp_path / "in")
    for task, arm in ((t, a) for t in plan.tasks for a in plan.arms):
        assert fingerprint(entry.plan.seed_run(task, arm, 1e-2, 3)) == fingerprint(plan.seed_run(task, arm, 1e-2, 3))
    assert problems(entry) == []


def test_rows_are_those_of_an_independent_aggregation(plan: StudyPlan, tmp_path: Path) -> None:
    contribution(plan, tmp_path / "in")
    page = leaderboard([read_entry(tmp_path / "in")])
    row = next(line for line in page.splitlines() if line.startswith("| **mine**"))
    mine, base = LOSSES["mine"], LOSSES["LoRA r=8"]
    differences = [a - b for a, b in zip(mine, base, strict=True)]
    t = float(stats.t.ppf(0.975, 4))
    half, own = (t * stdev(values) / 5**0.5 for values in (differences, mine))
    mean = fmean(differences)
    assert f"| {fmean(mine):.3f} ± {own:.3f} |" in row
    assert f"| {mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f}) |" in row
    assert "| 90 | 5 |" in row
    assert page.index("mine") < page.index("| LoRA r=8 |")  # best first; dominated, so not bold


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("a seed left out", "mine: seed 4 has no record"),
        ("a run that is not in the plan", "1 run records that the plan does not have"),
        ("other test rows", "tested on 2 different sets of rows"),
        ("another base model", "losses before training differ"),
        ("an edge", "mine: its learning rate 0.01 is at the edge"),
    ],
)
def test_what_is_refused(plan: StudyPlan, tmp_path: Path, what: str, told: str) -> None:
    folder = tmp_path / "in"
    records = contribution(plan, folder)
    last = {"label": "mine", "seed": 4}

    def is_last(line: dict[str, object]) -> bool:
        return all(line[key] == value for key, value in last.items())

    if what == "a seed left out":
        rewritten(folder, lambda line: None if is_last(line) else line)
    elif what == "a run that is not in the plan":
        task, arm = plan.tasks[0], plan.arms[1]
        run = next(run for run in records.runs.values() if run.label == "mine")
        records.add_run(dataclasses.replace(run, seed=9, config=plan.seed_run(task, arm, 1e-2, 9).resolved()))
    elif what == "other test rows":
        rewritten(folder, lambda line: {**line, "hashes": {"eval": "b" if is_last(line) else "a"}})
    elif what == "another base model":
        rewritten(folder, lambda line: {**line, "metrics_before": {"loss": 3.0}} if is_last(line) else line)
    else:
        file = folder / "small-tuning.jsonl"
        lines = [TuningRecord(**json.loads(line)) for line in file.read_text().splitlines()]
        lines = [t for t in lines if not (t.arm == "mine" and t.learning_rate == 1e-3)]
        file.write_text("".join(json.dumps(dataclasses.asdict(t)) + "\n" for t in lines))
    assert any(told in line for line in problems(read_entry(folder)))
    failed = qpeft("study", "check", folder)
    assert failed.returncode == 1
    assert told in failed.stdout


def test_few_steps_of_tuning_are_refused(plan: StudyPlan, tmp_path: Path) -> None:
    rungs = plan.tuning.model_copy(update={"rungs": (Rung(step=2, keep=1),)})
    early = plan.model_copy(update={"tuning": rungs})
    records = contribution(early, tmp_path / "in")
    for known in list(records.tuning.values()):
        records.add_tuning(dataclasses.replace(known, step=2))
    assert "clinic, mine: its learning rate was chosen after 2 of 3 steps" in problems(read_entry(tmp_path / "in"))


def test_the_command_writes_and_checks_the_page(plan: StudyPlan, tmp_path: Path) -> None:
    contribution(plan, tmp_path / "all" / "mine")
    out = tmp_path / "page.md"
    arguments = ("study", "leaderboard", tmp_path / "all" / "mine", "--contributed", tmp_path / "none", "--out", out)
    assert qpeft(*arguments).returncode == 0
    assert "| **mine** |" in out.read_text()
    assert qpeft(*arguments, "--check").returncode == 0
    out.write_text(out.read_text().replace("0.800", "0.700"))
    stale = qpeft(*arguments, "--check")
    assert stale.returncode != 0
    assert "not what the records give" in stale.stderr
    accepted = qpeft("study", "check", tmp_path / "all" / "mine")
    assert (accepted.returncode, "0 problems" in accepted.stdout) == (0, True)


def test_a_folder_without_a_plan_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no plan"):
        read_entry(tmp_path)


def test_the_page_in_the_repository_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    fresh = qpeft("study", "leaderboard", "--check")
    assert fresh.returncode == 0, fresh.stderr
