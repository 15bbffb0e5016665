"""Runs of the standard protocol's references that come with qpeft, so that a verdict need not repeat them.

They are the records of `qpeft study run protocol.yaml`, in `qpeft/study/references`: `verdict.jsonl`, `verdict-tuning.jsonl`, and
`rows.json` with the SHA-256 of each task's rows. A run is taken only for a plan that would make exactly this run
(`plan.fingerprint`) on exactly these rows.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from qpeft.study.plan import StudyPlan, fingerprint
from qpeft.study.records import StudyRecords
from qpeft.study.tasks import prepare


@dataclass(frozen=True)
class StoredRuns:
    """What `take_references` added: numbers of tuning runs and of seed runs, and the tasks whose rows are other rows."""

    tuning: int
    seeds: int
    other_rows: tuple[str, ...]


def stored_references() -> Path:
    """The folder of the records that come with qpeft."""
    return Path(str(importlib.resources.files("qpeft.study") / "references"))


def row_hashes(plan: StudyPlan, names: Collection[str]) -> dict[str, dict[str, str]]:
    """The SHA-256 of each part of a task's rows, which are prepared where they are missing.

    Args:
        plan: the plan of the tasks.
        names: tasks that are wanted; those that the plan does not have are left out.
    """
    found = {}
    for task in (task for task in plan.tasks if task.name in names):
        prepare(task, plan.parts)
        files = sorted(Path(task.folder).glob("*.jsonl"))
        found[task.name] = {file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return found


def take_references(plan: StudyPlan, records: StudyRecords, folder: Path | None = None) -> StoredRuns:
    """Copy the stored runs that a plan needs into its records.

    Args:
        plan: the verdict's study.
        records: its records, which then hold the stored runs.
        folder: where stored records are; those of qpeft by default.

    Returns:
        What was copied. A task whose rows are not those of the stored runs takes none.
    """
    place = folder or stored_references()
    if not (place / "rows.json").is_file():
        return StoredRuns(0, 0, ())
    known = json.loads((place / "rows.json").read_text(encoding="utf-8"))
    stored = StudyRecords(place, "verdict")
    mine = row_hashes(plan, known)
    other = tuple(name for name, hashes in mine.items() if known[name] != hashes)
    tuning = seeds = 0
    labels = {arm.label: arm for arm in plan.arms}
    for task in (task for task in plan.tasks if task.name in mine and task.name not in other):
        for (mark, step), record in stored.tuning.items():
            arm = labels.get(record.arm)
            if record.task != task.name or arm is None or (mark, step) in records.tuning:
                continue
            if mark == fingerprint(plan.tuning_run(task, arm, record.learning_rate)):
                records.add_tuning(record)
                tuning += 1
        for arm in plan.arms:
            rate = records.rate(plan, task, arm)
            for seed in plan.seeds:
                mark = fingerprint(plan.seed_run(task, arm, rate, seed))
                if mark in stored.runs and mark not in records.runs:
                    records.add_run(stored.runs[mark])
                    seeds += 1
    return StoredRuns(tuning, seeds, other)
