"""The two files of a study, append-only JSON Lines: tuning records, and the run records of its seeds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from qpeft.files import append_line
from qpeft.records import RunRecord, append_record, read_records
from qpeft.study.plan import ArmSection, StudyPlan, TaskSection, fingerprint
from qpeft.study.tuning import best_rate
from qpeft.training.recipe.config import RunConfig


@dataclass(frozen=True)
class TuningRecord:
    """One learning rate of an arm on a task, trained for `step` steps: the loss on validation rows, or the error that ended it.

    `wall_s` is the seconds that training took, 0 in older records.
    """

    task: str
    arm: str
    learning_rate: float
    step: int
    loss: float | None
    fingerprint: str
    error: str = ""
    wall_s: float = 0.0


class StudyRecords:
    """Records of a study: `tuning` by fingerprint and step, `runs` by fingerprint.

    Args:
        folder: where NAME.jsonl and NAME-tuning.jsonl are, or will be.
        name: the study's.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.tuning_file, self.runs_file = folder / f"{name}-tuning.jsonl", folder / f"{name}.jsonl"
        self.tuning: dict[tuple[str, int], TuningRecord] = {}
        if self.tuning_file.exists():
            for line in self.tuning_file.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):  # the last one may be torn
                    self._know(TuningRecord(**json.loads(line)))
        self.runs: dict[str, RunRecord] = {}
        if self.runs_file.exists():
            self.runs = {fingerprint_of(record): record for record in read_records(self.runs_file)}

    def _know(self, record: TuningRecord) -> None:
        self.tuning[record.fingerprint, record.step] = record

    def add_tuning(self, record: TuningRecord) -> None:
        """Append a tuning record."""
        append_line(self.tuning_file, json.dumps(asdict(record), sort_keys=True))
        self._know(record)

    def add_run(self, record: RunRecord) -> None:
        """Append a run record."""
        append_record(self.runs_file, record)
        self.runs[fingerprint_of(record)] = record

    def rate(self, plan: StudyPlan, task: TaskSection, arm: ArmSection) -> float | None:
        """The learning rate that wins by the tuning records so far. A missing run counts as failed.

        Args:
            plan: the study's plan.
            task: the task.
            arm: the arm.

        Returns:
            The learning rate, or None if every one failed.
        """

        def loss_after(rate: float, step: int) -> float | None:
            record = self.tuning.get((fingerprint(plan.tuning_run(task, arm, rate)), step))
            return None if record is None else record.loss

        return best_rate(plan.tuning, plan.max_steps, loss_after, arm.start)

    def tuning_of(self, task: str, arm: str) -> list[TuningRecord]:
        """The tuning records of an arm on a task, in order."""
        return [record for record in self.tuning.values() if (record.task, record.arm) == (task, arm)]


def fingerprint_of(record: RunRecord) -> str:
    """The fingerprint of the run behind a record."""
    return fingerprint(RunConfig.from_resolved(dict(record.config)))
