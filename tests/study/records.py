"""Records of a study that is finished, with losses that a test chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from qpeft.records import RunRecord
from qpeft.study.plan import StudyPlan, fingerprint
from qpeft.study.records import StudyRecords, TuningRecord


def finished_records(
    plan: StudyPlan, folder: Path, losses: Mapping[str, Sequence[float]], parameters: Mapping[str, int]
) -> StudyRecords:
    """Records of every arm on every task: tuned to the plan's first learning rate, with the given loss for each seed in order."""
    records = StudyRecords(folder, plan.name)
    best = plan.tuning.learning_rates[0]
    for task in plan.tasks:
        for arm in plan.arms:
            for rate in plan.tuning.learning_rates:
                mark = fingerprint(plan.tuning_run(task, arm, rate))
                records.add_tuning(TuningRecord(task.name, arm.label, rate, plan.max_steps, abs(rate - best), mark))
            for seed, loss in zip(plan.seeds, losses[arm.label], strict=False):
                config = plan.seed_run(task, arm, best, seed)
                record = RunRecord(label=arm.label, method="X", group=config.name, seed=seed, model="m", config=config.resolved())
                record = dataclasses.replace(record, metrics={"loss": loss}, metrics_before={"loss": 2.0})
                records.add_run(dataclasses.replace(record, trainable_parameters=parameters.get(arm.label, 100), wall_s=1.0))
    return records
