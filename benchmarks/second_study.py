"""The registered test of the second study, from its records: `python -m benchmarks.second_study`.

docs/benchmarks/second-study/registration.md says what is tested and when. Nothing is decided before every seed of every arm is
recorded; until then the table says how many are missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qpeft.report.statistics import PairedDifference
from qpeft.study.page import table
from qpeft.study.plan import StudyPlan, load_plan
from qpeft.study.records import StudyRecords
from qpeft.study.results import ArmResult, arm_results, paired_differences

PLANS = tuple(Path(f"recipes/studies/{name}.yaml") for name in ("second", "second-controls", "second-large"))
RECORDS = Path("docs/benchmarks/second-study")
REFERENCE = "LoRA r=8"
SHARE, GAIN, LEVEL = 0.24, 0.084, 0.05


@dataclass(frozen=True)
class Row:
    """A finalist on a task of a plan: against LoRA r=8, and against the best LoRA of equal size."""

    plan: str
    task: str
    finalist: ArmResult
    reference: ArmResult
    equal: ArmResult
    tests: tuple[PairedDifference, PairedDifference]

    @property
    def met(self) -> bool:
        """Small enough, at least GAIN lower than LoRA r=8 with a corrected p below LEVEL, and no LoRA of equal size ahead."""
        small = self.finalist.parameters <= SHARE * self.reference.parameters
        lower = self.finalist.loss.mean <= (1 - GAIN) * self.reference.loss.mean
        p = self.tests[0].p_holm
        return small and lower and p is not None and p < LEVEL and self.finalist.loss.mean <= self.equal.loss.mean


def missing(plan: StudyPlan, records: StudyRecords) -> int:
    """Runs of the plan that are not recorded."""
    done = sum(result.finished for task in plan.tasks for result in arm_results(plan, records, task))
    return len(plan.tasks) * len(plan.arms) * len(plan.seeds) - done


def rows_of(plans: Sequence[tuple[StudyPlan, StudyRecords]]) -> list[Row]:
    """Every finalist on every task, with p values corrected over all of them (Holm): the registered family.

    A finalist is an arm of kind classical or ours; a LoRA of equal size one of kind lora other than the reference.
    """
    cases = []
    for plan, records in plans:
        for task in plan.tasks:
            by_label = {result.arm.label: result for result in arm_results(plan, records, task) if result.runs}
            equals = [r for r in by_label.values() if r.arm.kind == "lora" and r.arm.label != REFERENCE]
            for result in by_label.values():
                if result.arm.kind in ("classical", "ours") and REFERENCE in by_label and equals:
                    best = min(equals, key=lambda r: r.loss.mean)
                    cases.append((plan.name, task.name, result, by_label[REFERENCE], best))
    pairs = [(finalist, other) for _, _, finalist, reference, best in cases for other in (reference, best)]
    tests = iter(paired_differences(pairs))
    return [Row(*case, (next(tests), next(tests))) for case in cases]


def lines(plans: Sequence[tuple[StudyPlan, StudyRecords]]) -> list[str]:
    """The table, and what it says of the goal."""
    left = sum(missing(plan, records) for plan, records in plans)
    if left:
        return [f"{left} registered runs are missing; nothing is tested before they are recorded.", ""]
    found = rows_of(plans)
    told = []
    for row in found:
        cells = [row.plan, row.task, row.finalist.arm.label, f"{100 * row.finalist.parameters / row.reference.parameters:.0f}%"]
        for other, test in zip((row.reference, row.equal), row.tests, strict=True):
            p = "-" if test.p_holm is None else f"{test.p_holm:.2g}"
            cells.append(f"{100 * (row.finalist.loss.mean / other.loss.mean - 1):+.1f}% (p {p})")
        told.append([*cells, row.equal.arm.label, "yes" if row.met else "no"])
    head = ["plan", "task", "finalist", "parameters of LoRA r=8", "vs. LoRA r=8", "vs. LoRA of equal size", "which", "goal met"]
    labels = {row.finalist.arm.label for row in found}
    winners = [label for label in sorted(labels) if all(row.met for row in found if row.finalist.arm.label == label)]
    return [*table(head, told), f"Goal met on every task: {', '.join(winners) or 'by no finalist'}.", ""]


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--plan", type=Path, action="append", help="default the registered plans")
    arguments = parser.parse_args(given)
    plans = [load_plan(file) for file in arguments.plan or PLANS]
    print("\n".join(lines([(plan, StudyRecords(arguments.records, plan.name)) for plan in plans])))


if __name__ == "__main__":
    main()
