"""Tables of results: a summary per arm, paired differences between arms, and the console table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from qpeft.records import RunRecord
from qpeft.report import words
from qpeft.report.sections import ComparableRuns, LabelRuns, sections
from qpeft.report.statistics import Estimate, PairedDifference, corrected, direction, estimate, paired_difference

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One arm of one section in numbers; `dataclasses.asdict` of it is plain JSON.

    `seeds` finished, `failed_seeds` did not. `before` and `after` map each held-out metric to its value with the untouched
    model (mean) and after training (mean and 95% t interval over seeds). `share_of_reference` is trainable parameters over
    those of the reference LoRA. `steps`, `train_tokens`, `wall_s`, `tokens_per_s`, `circuit_executions` and `shots` are means
    over the finished runs, `peak_memory_bytes` is their maximum. An arm that only failed has empty metrics and zero costs.
    """

    group: str
    model: str
    hashes: Mapping[str, str]
    label: str
    method: str
    seeds: tuple[int, ...]
    failed_seeds: tuple[int, ...]
    trainable_parameters: int
    reference_lora_parameters: int | None
    share_of_reference: float | None
    before: Mapping[str, float]
    after: Mapping[str, Estimate]
    steps: float
    train_tokens: float
    wall_s: float
    tokens_per_s: float
    peak_memory_bytes: int
    circuit_executions: float
    shots: float
    simulated: bool

    @property
    def runs_circuits(self) -> bool:
        """Whether the arm executed quantum circuits, simulated or not; a record of a run without circuits is not `simulated`."""
        return self.simulated or self.circuit_executions > 0 or self.shots > 0


def summarise(records: Iterable[RunRecord]) -> list[ArmSummary]:
    """One summary for each arm of each section, in order of first appearance; raises RunError when there is no record."""
    return [summary for section in sections(records) for summary in summaries(section)]


def summaries(section: ComparableRuns) -> list[ArmSummary]:
    """One summary for each arm of a section."""
    return [_summary(section, arm) for arm in section.arms]


def _summary(section: ComparableRuns, arm: LabelRuns) -> ArmSummary:
    runs = arm.finished
    shown = (runs or arm.runs)[0]
    before = {name: [run.metrics_before[name] for run in runs if name in run.metrics_before] for name in section.metrics}
    after = {name: list(arm.values(name).values()) for name in section.metrics}
    reference = shown.reference_lora_parameters
    return ArmSummary(
        group=section.group,
        model=section.model,
        hashes=dict(section.hashes),
        label=arm.label,
        method=shown.method,
        seeds=tuple(run.seed for run in runs),
        failed_seeds=tuple(run.seed for run in arm.failed),
        trainable_parameters=shown.trainable_parameters,
        reference_lora_parameters=reference,
        share_of_reference=shown.trainable_parameters / reference if reference else None,
        before={name: fmean(values) for name, values in before.items() if values},
        after={name: estimate(values) for name, values in after.items() if values},
        steps=_mean([run.steps for run in runs]),
        train_tokens=_mean([run.train_tokens for run in runs]),
        wall_s=_mean([run.wall_s for run in runs]),
        tokens_per_s=_mean([run.tokens_per_s for run in runs]),
        peak_memory_bytes=max((run.peak_memory_bytes for run in runs), default=0),
        circuit_executions=_mean([run.circuit_executions for run in runs]),
        shots=_mean([run.shots for run in runs]),
        simulated=bool(runs) and all(run.simulated for run in runs),
    )


def paired(section: ComparableRuns, metric: str = "loss") -> list[PairedDifference]:
    """Differences from the reference arm: the first finished LoRA arm, else the first finished arm.

    One row for each other arm that shares at least two seeds with it; p values are corrected over these rows.

    Args:
        section: the runs to compare.
        metric: name of the metric.
    """
    candidates = [arm for arm in section.arms if arm.values(metric)]
    reference = next((arm for arm in candidates if arm.finished[0].method.lower() == "lora"), candidates[0] if candidates else None)
    if reference is None:
        return []
    base, rows = reference.values(metric), []
    for arm in candidates:
        values = arm.values(metric)
        shared = [seed for seed in values if seed in base]
        if arm is not reference and len(shared) >= 2:
            rows.append(
                paired_difference(arm.label, [values[seed] for seed in shared], reference.label, [base[seed] for seed in shared])
            )
    return corrected(rows)


def best(arms: Sequence[ArmSummary], metric: str) -> ArmSummary | None:
    """The arm with the best mean; None when the metric has no known direction or fewer than two arms measured it."""
    sign, measured = direction(metric), [arm for arm in arms if metric in arm.after]
    if not sign or len(measured) < 2:
        return None
    return max(measured, key=lambda arm: sign * arm.after[metric].mean)


def unbeaten(arms: Sequence[ArmSummary], metric: str) -> set[str]:
    """Labels of the arm with the best mean and of every arm whose interval overlaps with its own; empty without intervals.

    Args:
        arms: summaries of the arms.
        metric: name of the metric.
    """
    top = best(arms, metric)
    if top is None or top.after[metric].half_width is None:
        return set()
    return {arm.label for arm in arms if metric in arm.after and arm.after[metric].overlaps(top.after[metric]) is not False}


def reference_lora(section: ComparableRuns) -> str:
    """Reference of the share column: "LoRA r=8", or its parameter count when no arm is LoRA r=8; "" when no record names one.

    Where arms have different references it is "the reference LoRA".
    """
    references = dict.fromkeys(run.reference_lora_parameters for run in section.runs if run.reference_lora_parameters)
    names = []
    for size in references:
        label = next((run.label for run in section.runs if run.method.lower() == "lora" and run.trainable_parameters == size), None)
        names.append(label or f"the reference LoRA ({words.count(size)} parameters)")
    return names[0] if len(names) == 1 else "the reference LoRA" if names else ""


def console_table(summaries: Sequence[ArmSummary], *, narrow: bool = False) -> Table:
    """The summaries as a rich table; labels are shown as they are, never read as markup.

    Args:
        summaries: a row each.
        narrow: for a terminal below 120 columns: of the metrics the loss alone, after training; no share of LoRA, no memory.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    several = len({(arm.group, arm.model) for arm in summaries}) > 1
    metrics = sorted({name for arm in summaries for name in arm.after}, key=lambda name: (name != "loss", name))
    metrics = metrics[:1] if narrow else metrics
    repeated = any(len(arm.seeds) > 1 for arm in summaries)
    caption = "mean ± 95% t interval over seeds" if repeated else "one seed: no intervals"
    frame = box.SIMPLE_HEAD if narrow else box.HEAVY_HEAD
    table = Table(caption=caption, box=frame, pad_edge=not narrow, collapse_padding=narrow)
    for name in ["Group", "Model"] if several else []:
        table.add_column(name)
    table.add_column("Arm", no_wrap=narrow)
    share, peak = ([], []) if narrow else (["of LoRA"], ["Peak GiB"])
    for name in ["Seeds", "Trainable", *share, *map(words.heading, metrics), "Time", "Tokens/s", *peak]:
        table.add_column(name, justify="right")
    for arm in summaries:
        cells = [arm.group, arm.model] if several else []
        cells += [arm.label, seeds(arm), words.count(arm.trainable_parameters)]
        if not narrow:
            cells.append(words.NONE if arm.share_of_reference is None else words.percent(arm.share_of_reference))
        cells += [measured(arm, name, both=not narrow) for name in metrics]
        cells += costs(arm)[: 2 if narrow else 3]
        table.add_row(*map(Text, cells))
    return table


def measured(arm: ArmSummary, metric: str, *, both: bool = True) -> str:
    """ "3.1000 → 2.2131 ± 0.0123": a metric before and after training.

    Args:
        arm: summary of the arm.
        metric: name of the metric.
        both: False leaves out what it was before.
    """
    if metric not in arm.after:
        return words.NONE
    after = arm.after[metric]
    before = f"{words.number(arm.before[metric])} → " if both and metric in arm.before else ""
    return f"{before}{words.number(after.mean)} {words.interval(after)}".rstrip()


def costs(arm: ArmSummary) -> list[str]:
    """Wall time, tokens/s and peak memory (GiB) of an arm."""
    if not arm.seeds:
        return [words.NONE] * 3
    return [words.duration(arm.wall_s), words.count(arm.tokens_per_s), words.gib(arm.peak_memory_bytes)]


def seeds(arm: ArmSummary) -> str:
    """How many seeds finished, and how many failed."""
    return f"{len(arm.seeds)} + {len(arm.failed_seeds)} failed" if arm.failed_seeds else str(len(arm.seeds))


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
