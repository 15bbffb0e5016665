"""Stored runs of a protocol's references: taken for exactly the same runs on exactly the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from qpeft.study.plan import StudyPlan, fingerprint, load_plan
from qpeft.study.records import StudyRecords
from qpeft.study.references import StoredRuns, row_hashes, stored_references, take_references
from qpeft.study.verdict import Subject, read_protocol, verdict_plan
from tests.study.records import finished_records

LORA = {"peft_type": "LORA", "target_modules": ["q_proj"]}


@pytest.fixture
def protocol(tmp_path: Path, tiny_model: Path, clinic: Path) -> StudyPlan:
    plan = {
        "name": "verdict",
        "model": {"model_name_or_path": str(tiny_model), "dtype": "float32"},
        "training": {"max_steps": 3, "per_device_train_batch_size": 2},
        "tuning": {"learning_rates": [1e-3, 1e-2]},
        "seeds": [0, 1],
        "tasks": [{"name": "clinic", "folder": str(clinic), "max_length": 512, "tuning_rows": 4, "test_rows": 4}],
        "arms": [{"label": f"LoRA r={r}", "kind": "lora", "adapter": {**LORA, "r": r, "lora_alpha": 2 * r}} for r in (8, 1)],
    }
    file = tmp_path / "protocol.yaml"
    file.write_text(yaml.safe_dump(plan))
    return load_plan(file)


@pytest.fixture
def stored(protocol: StudyPlan, tmp_path: Path) -> Path:
    folder = tmp_path / "stored"
    finished_records(protocol, folder, {arm.label: [1.0, 1.1] for arm in protocol.arms}, {})
    (folder / "rows.json").write_text(json.dumps(row_hashes(protocol, ["clinic"])))
    return folder


def test_the_references_runs_are_taken_and_no_others(protocol: StudyPlan, stored: Path, tmp_path: Path) -> None:
    plan = verdict_plan(Subject("mine", {"peft_type": "QTHA", "r": 2, "hidden_size": 8, "target_modules": ["q_proj"]}), protocol)
    records = StudyRecords(tmp_path / "mine", plan.name)
    taken = take_references(plan, records, stored)
    assert (taken.seeds, taken.other_rows) == (4, ())
    assert {record.label for record in records.runs.values()} == {"LoRA r=8", "LoRA r=1"}
    assert len(records.tuning) == taken.tuning > 0
    again = StudyRecords(tmp_path / "mine", plan.name)  # from their files
    assert again.runs.keys() == records.runs.keys()
    assert take_references(plan, again, stored) == StoredRuns(0, 0, ())


def test_other_training_or_other_rows_take_nothing(protocol: StudyPlan, stored: Path, tmp_path: Path) -> None:
    longer = protocol.model_copy(update={"training": {**protocol.training, "max_steps": 4}})
    assert take_references(longer, StudyRecords(tmp_path / "longer", "verdict"), stored) == StoredRuns(0, 0, ())
    (stored / "rows.json").write_text(json.dumps({"clinic": {**row_hashes(protocol, ["clinic"])["clinic"], "test": "0" * 64}}))
    assert take_references(protocol, StudyRecords(tmp_path / "rows", "verdict"), stored) == StoredRuns(0, 0, ("clinic",))
    assert take_references(protocol, StudyRecords(tmp_path / "none", "verdict"), tmp_path) == StoredRuns(0, 0, ())


def test_what_comes_with_qpeft_fits_its_protocol() -> None:
    """Every stored run is one that the standard protocol makes; none is left over from an older protocol."""
    plan, place = read_protocol(), stored_references()
    stored = StudyRecords(place, "verdict")
    tasks = [task for task in plan.tasks if task.name in json.loads((place / "rows.json").read_text())]
    assert tasks
    rates = {(task.name, arm.label): stored.rate(plan, task, arm) for task in tasks for arm in plan.arms}
    made = {
        fingerprint(plan.seed_run(task, arm, rates[task.name, arm.label], seed))
        for task in tasks
        for arm in plan.arms
        for seed in plan.seeds
    }
    assert stored.runs.keys() == made
    assert None not in rates.values()
