"""What a study knows: a line for each learning rate and rung, and a record for each finished run. Both files are append-only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.study.plan import Arm, Plan, Task, Tuning, fingerprint
from qpeft.records import RunRecord, append_record, read_records


@dataclass(frozen=True)
class Trial:
    """One learning rate of an arm on a task, trained to `step`: held-out loss on validation rows, or the error that ended it."""

    task: str
    arm: str
    learning_rate: float
    step: int
    loss: float | None
    fingerprint: str
    error: str = ""


class Ledger:
    """The two files of a study, and what they hold."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.trials_file, self.records_file = folder / f"{name}-tuning.jsonl", folder / f"{name}.jsonl"
        self.trials: dict[tuple[str, int], Trial] = {}
        if self.trials_file.exists():
            for line in self.trials_file.read_text(encoding="utf-8").splitlines():
                self._keep(Trial(**json.loads(line)))
        self.records: dict[str, RunRecord] = {}
        if self.records_file.exists():
            self.records = {fingerprint_of(record): record for record in read_records(self.records_file)}

    def _keep(self, trial: Trial) -> None:
        self.trials[trial.fingerprint, trial.step] = trial

    def add_trial(self, trial: Trial) -> None:
        """Write a line, then know it."""
        with self.trials_file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(trial), sort_keys=True) + "\n")
        self._keep(trial)

    def rate(self, plan: Plan, task: Task, arm: Arm) -> float | None:
        """The learning rate that has won by the trials so far; those not made yet count as failed."""

        def loss_after(rate: float, step: int) -> float | None:
            mark = fingerprint(plan.trial(task, arm, rate))
            trial = self.trials.get((mark, step))
            return None if trial is None else trial.loss

        return climbed(plan.tuning, loss_after)

    def add_record(self, record: RunRecord) -> None:
        """Write a record, then know it."""
        append_record(self.records_file, record)
        self.records[fingerprint_of(record)] = record


def fingerprint_of(record: RunRecord) -> str:
    """The fingerprint of the run behind a record."""
    from qpeft.training.recipe.config import RunConfig

    return fingerprint(RunConfig.from_resolved(dict(record.config)))


def climbed(tuning: Tuning, loss_after: Callable[[float, int], float | None]) -> float | None:
    """The learning rate that wins the ladder, from the losses of rates after the rungs' steps; None where every one failed."""
    alive = list(tuning.learning_rates)
    for rung in tuning.rungs:
        losses = {rate: loss_after(rate, rung.step) for rate in alive}
        if all(loss is None for loss in losses.values()):
            return None
        alive = chosen(losses, rung.keep)
    return alive[0]


def chosen(losses: Mapping[float, float | None], keep: int) -> list[float]:
    """The `keep` learning rates of lowest loss, ties to the smaller; those that failed (None) only when nothing else is left."""
    order = sorted(losses, key=lambda rate: (losses[rate] is None, losses[rate] or 0.0, rate))
    return order[:keep]
