"""The sentences of a report: what its tables allow to say, and what a reader must know before trusting them."""

from __future__ import annotations

from collections.abc import Sequence

from qpeft.report import words
from qpeft.report.sections import ComparableRuns, differing
from qpeft.report.statistics import MIN_SEEDS, PairedDifference
from qpeft.report.tables import ArmSummary, best, summaries

NO_ADVANTAGE = (
    "Circuits of this size are simulated on a classical computer, so no quantum advantage is claimed: "
    "a method that does well here does well classically."
)
SEEDS_ONLY = "The intervals cover the choice of seed alone, not the choice of data, model or settings."


def overlap_note(arms: Sequence[ArmSummary], metric: str = "loss") -> str:
    """Whether the table separates the best arm from the others, as one or two sentences; "" when there is nothing to compare.

    Args:
        arms: summaries of the arms.
        metric: name of the metric.
    """
    top = best(arms, metric)
    if top is None:
        return ""
    name, mine = words.metric_name(metric).lower(), top.after[metric]
    others = [arm for arm in arms if arm is not top and metric in arm.after]
    if mine.half_width is None or all(arm.after[metric].half_width is None for arm in others):
        return f"The best mean {name} is that of {top.label}. With one seed there is no interval, so the order is no ranking."
    close = [arm.label for arm in others if mine.overlaps(arm.after[metric]) is not False]
    if not close:
        return f"{top.label} has the best mean {name}; no other arm's interval overlaps with its own."
    return (
        f"{top.label} has the best mean {name}, but its interval does not separate it from {words.listing(close)}: "
        "between these the table shows no winner."
    )


def pair_note(rows: Sequence[PairedDifference]) -> str:
    """Conclusion from the paired tests, as text. Fewer than MIN_SEEDS pairs give no conclusion."""
    reference = rows[0].reference
    enough = [row for row in rows if row.difference.n >= MIN_SEEDS]
    few = [row.label for row in rows if row.difference.n < MIN_SEEDS]
    if not enough:
        return f"Fewer than {MIN_SEEDS} paired seeds prove nothing: these differences say what to measure next, they are no result."
    clear = [row for row in enough if row.p_holm is not None and row.p_holm < 0.05]
    lower, higher = (words.listing(row.label for row in clear if (row.difference.mean < 0) is side) for side in (True, False))
    parts = " and ".join(filter(None, (f"lower for {lower}" if lower else "", f"higher for {higher}" if higher else "")))
    result = f"the loss is {parts} than for {reference}" if parts else f"no arm differs from {reference}"
    text = f"After correction, at the 5% level, {result}."
    return f"{text} Fewer than {MIN_SEEDS} paired seeds prove nothing, so nothing is said of {words.listing(few)}." if few else text


def cautions(section: ComparableRuns) -> list[str]:
    """Everything about the records that a reader must know before trusting a comparison."""
    notes: list[str] = []
    arms, summary = section.arms, {arm.label: arm for arm in summaries(section)}
    if failed := [run for arm in arms for run in arm.failed]:
        notes.append(f"{words.plural(len(failed), 'run')} failed and entered no mean; listed below with the error.")
    if section.superseded:
        older, broken = words.plural(len(section.superseded), "older run"), sum(run.status != "ok" for run in section.superseded)
        detail = f" ({broken} of them failed)" if broken else ""
        notes.append(f"Superseded by a newer run of the same arm and seed: {older}{detail}, listed below.")

    most = max((arm.seeds for arm in summary.values()), key=len)
    if short := [arm for arm in summary.values() if len(arm.seeds) < len(most)]:
        text = words.listing(f"{arm.label} ({len(arm.seeds)} of {len(most)})" for arm in short)
        notes.append(f"Arms with fewer finished seeds than the others: {text}. Compare these means with care.")
    elif unlike := [arm.label for arm in summary.values() if set(arm.seeds) != set(most)]:
        notes.append(f"Arms with other seeds than {next(iter(summary))}: {words.listing(unlike)}.")
    if len(most) == 1:
        notes.append("One seed per arm: there is no interval, and a difference may be chance.")
    elif 1 < len(most) < MIN_SEEDS:
        notes.append(f"{len(most)} seeds per arm: intervals from fewer than {MIN_SEEDS} seeds are wide and rough.")

    for arm in arms:
        runs = arm.finished
        if len({(run.method, run.trainable_parameters, run.steps, run.simulated) for run in runs}) > 1:
            notes.append(f"The runs of {arm.label} differ in method, parameters, steps or simulation; they were averaged.")
        if keys := differing(run.config for run in runs):
            notes.append(f"The runs of {arm.label} differ in settings: {words.listing(keys)}.")
    finished = [run for arm in arms for run in arm.finished]
    if len({run.steps for run in finished}) > 1:
        notes.append("Arms were trained for different numbers of steps.")
    if len({round(run.metrics_before["loss"], 5) for run in finished if "loss" in run.metrics_before}) > 1:
        notes.append("The loss before training is not the same in all runs: were they evaluated on the same rows?")
    if len({words.merged([run.machine]) for run in finished}) > 1:
        notes.append("Runs were made on different machines: do not compare their time and memory.")
    return notes


def circuit_note(arms: Sequence[ArmSummary]) -> str:
    """Which numbers come from simulated circuits, which from a chip, which from no circuit; "" when no arm runs a circuit."""
    if not any(arm.runs_circuits for arm in arms):
        return ""
    simulated = [arm for arm in arms if arm.runs_circuits and arm.simulated]
    exact, sampled = ([arm.label for arm in simulated if (arm.shots > 0) is finite] for finite in (False, True))
    chip = [arm.label for arm in arms if arm.runs_circuits and not arm.simulated]
    classical = [arm.label for arm in arms if not arm.runs_circuits and arm.seeds]
    parts = [
        f"simulated exactly: {words.listing(exact)}" if exact else "",
        f"simulated with a finite number of shots: {words.listing(sampled)}" if sampled else "",
        f"executed on quantum hardware, at least in part: {words.listing(chip)}" if chip else "",
        f"no circuit: {words.listing(classical)}" if classical else "",
    ]
    return f"Circuits {'; '.join(filter(None, parts))}. Wall time and tokens/s of simulated arms measure the simulator, not a chip."
