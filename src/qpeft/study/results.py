"""Results of a study: run records by task and arm, and paired comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qpeft.records import RunRecord
from qpeft.report.statistics import Estimate, PairedDifference, corrected, estimate, paired_difference, pareto
from qpeft.study.plan import ArmSection, StudyPlan, TaskSection, fingerprint
from qpeft.study.records import StudyRecords


@dataclass(frozen=True)
class ArmResult:
    """The runs of an arm on a task: those that succeeded, by seed, and how many failed."""

    arm: ArmSection
    runs: dict[int, RunRecord]
    failed: int

    @property
    def finished(self) -> int:
        """Runs that came to an end, failed ones too."""
        return len(self.runs) + self.failed

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return next(iter(self.runs.values())).trainable_parameters

    @property
    def loss(self) -> Estimate:
        """Held-out loss over seeds, nats/token."""
        return estimate(self.values("loss"))

    def values(self, metric: str) -> list[float]:
        """A metric of every run that has it, in order of seeds."""
        return [run.metrics[metric] for run in self.runs.values() if metric in run.metrics]


def arm_results(plan: StudyPlan, records: StudyRecords, task: TaskSection) -> list[ArmResult]:
    """Every arm of the plan that has a run on the task at its tuned learning rate, best mean loss first.

    Args:
        plan: the study's plan.
        records: what has been run.
        task: the task.
    """
    found = []
    for arm in plan.arms:
        rate = records.rate(plan, task, arm)
        by_seed = {seed: records.runs.get(fingerprint(plan.seed_run(task, arm, rate, seed))) for seed in plan.seeds}
        finished = {seed: run for seed, run in by_seed.items() if run is not None}
        if finished:
            succeeded = {seed: run for seed, run in finished.items() if run.status == "ok"}
            found.append(ArmResult(arm, succeeded, len(finished) - len(succeeded)))
    return sorted(found, key=lambda result: result.loss.mean if result.runs else float("inf"))


def by_progress(found: Sequence[ArmResult]) -> tuple[list[ArmResult], list[ArmResult]]:
    """The results with as many runs as any, and those still behind: means over unlike seeds do not compare."""
    most = max((result.finished for result in found), default=0)
    return [result for result in found if result.finished == most], [result for result in found if result.finished < most]


def pareto_front(found: Sequence[ArmResult]) -> list[ArmResult]:
    """The results that no other equals or beats in both parameters and mean loss, ascending in parameters."""
    shown = [result for result in found if result.runs]
    return [shown[i] for i in pareto([result.parameters for result in shown], [result.loss.mean for result in shown], -1)]


def paired_differences(pairs: Iterable[tuple[ArmResult, ArmResult]], metric: str = "loss") -> list[PairedDifference]:
    """The metric of the first result of each pair minus that of the second, over the seeds that both have (two at least).

    The p values are corrected over all pairs given (Holm).
    """
    rows = []
    for result, base in pairs:
        seeds = sorted(result.runs.keys() & base.runs.keys())
        if len(seeds) > 1:
            values, others = ([side.runs[seed].metrics[metric] for seed in seeds] for side in (result, base))
            rows.append(paired_difference(result.arm.label, values, base.arm.label, others))
    return corrected(rows)
