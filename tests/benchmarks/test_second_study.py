"""The second study: what is registered is what the plans say, and the registered test decides as it says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from benchmarks.search_rows import ROWS, WORDS, write
from benchmarks.second_study import GAIN, PLANS, RECORDS, SHARE, lines, rows_of

from qpeft.applications.data_sets import find
from qpeft.study.plan import StudyPlan, load_plan
from tests.study.records import finished_records

PAGE = RECORDS / "registration.md"
REGISTERED = ("second-qualify", "second", "second-controls", "second-large")


@pytest.mark.parametrize("name", REGISTERED)
def test_the_registered_plans_are_unchanged(name: str) -> None:
    file = Path(f"recipes/studies/{name}.yaml")
    assert hashlib.sha256(file.read_bytes()).hexdigest() in PAGE.read_text(encoding="utf-8"), "the plan is not the registered one"


@pytest.mark.parametrize("name", REGISTERED)
def test_test_rows_are_frozen_and_fresh(name: str) -> None:
    plan = load_plan(Path(f"recipes/studies/{name}.yaml"))
    assert plan.registration == str(PAGE)
    first = {
        task["prepare"] for other in ("breadth", "depth", "search", "applications") for task in _tasks(other) if "prepare" in task
    }
    for task in plan.tasks:
        assert set(task.sha256) == {"train", "validation", "test"}
        assert task.sha256["test"] == find(str(task.prepare)).tests
        assert task.prepare not in first
    assert (plan.held_out == "validation") == (name == "second-qualify")


def _tasks(name: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = yaml.safe_load(Path(f"recipes/studies/{name}.yaml").read_text())["tasks"]
    return found


def test_the_page_names_the_goal_and_every_arm() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"{SHARE:.0%}" in text
    assert f"{GAIN:.1%}" in text
    for arm in load_plan(PLANS[0]).arms:
        assert arm.label.split(",")[0] in text


@pytest.fixture
def plan(tmp_path: Path, tiny_model: Path, clinic: Path) -> StudyPlan:
    adapter = {"peft_type": "LORA", "target_modules": ["q_proj"]}
    arms = [("LoRA r=8", "lora", 8), ("LoRA r=1", "lora", 1), ("mine", "ours", 2), ("twin", "control", 3)]
    values = {
        "model": {"model_name_or_path": str(tiny_model)},
        "training": {"max_steps": 4},
        "tuning": {"learning_rates": [1e-3]},
        "seeds": [0, 1, 2, 3, 4],
        "tasks": [{"name": name, "folder": str(clinic)} for name in ("clinic", "ward")],
        "arms": [{"label": label, "kind": kind, "adapter": {**adapter, "r": r}} for label, kind, r in arms],
    }
    file = tmp_path / "registered.yaml"
    file.write_text(yaml.safe_dump(values))
    return load_plan(file)


SIZES = {"LoRA r=8": 1000, "LoRA r=1": 200, "mine": 230, "twin": 230}


def losses(mine: float, small: float = 0.95) -> dict[str, list[float]]:
    noise, jitter = (0.0, 0.01, -0.01, 0.02, -0.02), (1.0, 1.02, 0.98, 1.01, 0.99)
    levels = {"LoRA r=8": 1.0, "LoRA r=1": small, "mine": mine, "twin": 1.0}
    return {label: [level * j + e for j, e in zip(jitter, noise, strict=True)] for label, level in levels.items()}


@pytest.mark.parametrize(
    ("mine", "small", "told"),
    [(0.85, 0.95, "mine"), (0.93, 0.95, "by no finalist"), (0.85, 0.80, "by no finalist")],
)
def test_the_goal_is_met_only_as_registered(plan: StudyPlan, tmp_path: Path, mine: float, small: float, told: str) -> None:
    """Lower by 15%; lower by 7% only; lower by 15% but behind LoRA of equal size."""
    records = finished_records(plan, tmp_path / "records", losses(mine, small), SIZES)
    text = lines([(plan, records)])
    assert text[-2] == f"Goal met on every task: {told}."
    assert len(rows_of([(plan, records)])) == 2  # one finalist, two tasks: controls are none


def test_an_adapter_that_is_too_large_does_not_count(plan: StudyPlan, tmp_path: Path) -> None:
    records = finished_records(plan, tmp_path / "records", losses(0.8), {**SIZES, "mine": 250})
    assert lines([(plan, records)])[-2] == "Goal met on every task: by no finalist."


def test_nothing_is_tested_while_a_run_is_missing(plan: StudyPlan, tmp_path: Path) -> None:
    values = losses(0.8)
    values["mine"] = values["mine"][:4]
    records = finished_records(plan, tmp_path / "records", values, SIZES)
    assert lines([(plan, records)]) == ["2 registered runs are missing; nothing is tested before they are recorded.", ""]


def test_rows_of_the_search_come_from_training_and_validation_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for part in ROWS:
        texts = [f"{part} disease number {i}" for i in range(ROWS[part] + 5)]
        rows = [{"values": {"text": text}, "label": f"{start} title"} for start in WORDS for text in texts]
        rows.append({"values": {"text": "one two three"}, "label": "Codes for special purposes"})
        rows.append({"values": {"text": "single"}, "label": "Neoplasms"})
        (source / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(source, tmp_path / "out")
    for part, most in ROWS.items():
        made = [json.loads(line) for line in (tmp_path / "out" / f"{part}.jsonl").read_text().splitlines()]
        assert len(made) == most * len(WORDS)
        assert {row["completion"].strip() for row in made} == set(WORDS.values())
        assert all(row["prompt"].startswith(part) for row in made)
    assert not (tmp_path / "out" / "test.jsonl").exists()
