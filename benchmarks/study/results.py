"""What a study found: its records by task and arm, compared pair by pair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.study.ledger import Ledger
from benchmarks.study.plan import Arm, Plan, Task, fingerprint
from qpeft.records import RunRecord
from qpeft.report.statistics import Estimate, PairedDifference, corrected, estimate, paired_difference, pareto


@dataclass(frozen=True)
class Line:
    """The finished runs of an arm on a task, by seed."""

    arm: Arm
    runs: dict[int, RunRecord]
    failed: int

    @property
    def made(self) -> int:
        """Runs that came to an end, failed ones too."""
        return len(self.runs) + self.failed

    @property
    def parameters(self) -> int:
        return next(iter(self.runs.values())).trainable_parameters

    @property
    def loss(self) -> Estimate:
        return estimate(self.values("loss"))

    def values(self, measure: str) -> list[float]:
        return [run.metrics[measure] for run in self.runs.values() if measure in run.metrics]


def lines(plan: Plan, ledger: Ledger, task: Task) -> list[Line]:
    """Every arm of the plan that has a run on the task at its tuned learning rate, best mean loss first."""
    found = []
    for arm in plan.arms:
        rate = ledger.rate(plan, task, arm)
        mine = {seed: ledger.records.get(fingerprint(plan.final(task, arm, rate, seed))) for seed in plan.seeds}
        made = {seed: run for seed, run in mine.items() if run is not None}
        if made:
            done = {seed: run for seed, run in made.items() if run.status == "ok"}
            found.append(Line(arm, done, len(made) - len(done)))
    return sorted(found, key=lambda line: line.loss.mean if line.runs else float("inf"))


def furthest(found: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """The lines with as many runs as any, and those still behind: means over unlike seeds do not compare."""
    most = max((line.made for line in found), default=0)
    return [line for line in found if line.made == most], [line for line in found if line.made < most]


def front(found: Sequence[Line]) -> list[Line]:
    """The lines that no other equals or beats in both parameters and mean loss, ascending in parameters."""
    shown = [line for line in found if line.runs]
    return [shown[i] for i in pareto([line.parameters for line in shown], [line.loss.mean for line in shown], -1)]


def compared(pairs: Iterable[tuple[Line, Line]]) -> list[PairedDifference]:
    """Loss of the first line of each pair minus that of the second, paired by the seeds that both have (two at least), p values
    corrected over all of them (Holm).
    """
    rows = []
    for line, base in pairs:
        seeds = sorted(line.runs.keys() & base.runs.keys())
        if len(seeds) > 1:
            values, others = ([side.runs[seed].metrics["loss"] for seed in seeds] for side in (line, base))
            rows.append(paired_difference(line.arm.label, values, base.arm.label, others))
    return corrected(rows)
