"""The leaderboard: every method's result, from records alone, and the check that a contributed folder of records must pass.

A contribution is a folder with `plan.yaml`, `NAME.jsonl` and `NAME-tuning.jsonl`, as `qpeft verdict` leaves them. Its numbers are
computed here from the records; none is taken from the contributor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from qpeft.errors import ConfigError
from qpeft.files import atomic_write
from qpeft.report.statistics import MIN_SEEDS, paired_difference
from qpeft.study import plots
from qpeft.study.plan import ArmSection, StudyPlan, TaskSection, fingerprint, load_plan
from qpeft.study.records import StudyRecords
from qpeft.study.results import ArmResult, arm_results, pareto_front

PLAN = "plan.yaml"
REFERENCE = "LoRA r=8"


@dataclass(frozen=True)
class Entry:
    """A study on the leaderboard: its plan, its records, and the path under which the page names it."""

    source: str
    plan: StudyPlan
    records: StudyRecords


def write_plan(plan: StudyPlan, folder: Path) -> Path:
    """Write a plan next to its records, so that the folder can be checked and read by itself."""
    text = yaml.safe_dump(plan.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)
    atomic_write(folder / PLAN, f"# The plan behind the records of this folder.\n{text}")
    return folder / PLAN


def read_entry(place: Path, records: Path | None = None) -> Entry:
    """Read a contribution.

    Args:
        place: the contribution's folder, or a plan file.
        records: folder of the records of a plan file; default the plan's folder.

    Raises:
        ConfigError: no plan there, a plan with errors, or no records.
    """
    file = place / PLAN if place.is_dir() else place
    if not file.is_file():
        raise ConfigError("no plan", file=str(file), expected=f"a folder with {PLAN} and records, or a plan")
    plan = load_plan(file)
    folder = place if place.is_dir() else records or place.parent
    if not (folder / f"{plan.name}.jsonl").is_file():
        raise ConfigError("no records", file=str(folder / f"{plan.name}.jsonl"), expected="run records of the plan")
    return Entry(place.as_posix(), plan, StudyRecords(folder, plan.name))


def problems(entry: Entry) -> list[str]:
    """What keeps a contribution off the leaderboard; empty for one that may stand on it.

    Checked for every task and arm: learning rates compared at the full number of steps, the winner inside what was tried, all seeds
    run at the winner's rate, equal test rows and equal losses before training for all arms of a task. Records of
    runs that the plan does not have are told too: a seed or a learning rate that was left out afterwards would be among them.
    """
    plan, records = entry.plan, entry.records
    found: list[str] = []
    expected: set[str] = set()
    if plan.held_out != "test":
        found.append("held_out: validation, which is a search and no result")
    if len(plan.seeds) < MIN_SEEDS:
        found.append(f"{len(plan.seeds)} seeds, fewer than {MIN_SEEDS}")
    if REFERENCE not in [arm.label for arm in plan.arms]:
        found.append(f"no arm {REFERENCE!r} to compare with")
    for task in plan.tasks:
        rows: set[object] = set()
        before: list[float] = []
        for arm in plan.arms:
            name = f"{task.name}, {arm.label}"
            found += [f"{name}: {what}" for what in _tuning_problems(plan, records, task, arm)]
            rate = records.rate(plan, task, arm)
            for seed in plan.seeds:
                mark = fingerprint(plan.seed_run(task, arm, rate, seed))
                expected.add(mark)
                run = records.runs.get(mark)
                if run is None:
                    found.append(f"{name}: seed {seed} has no record at the learning rate {rate}")
                elif run.status == "ok":
                    rows.add(run.hashes.get("eval"))
                    before.append(run.metrics_before["loss"])
        if len(rows) > 1:
            found.append(f"{task.name}: runs were tested on {len(rows)} different sets of rows")
        if before and max(before) - min(before) > 5e-3 * max(before):
            found.append(f"{task.name}: losses before training differ, {min(before):.4f} to {max(before):.4f}: not one base model")
    if extra := records.runs.keys() - expected:
        found.append(f"{len(extra)} run records that the plan does not have, such as {sorted(extra)[0]}")
    return found


def _tuning_problems(plan: StudyPlan, records: StudyRecords, task: TaskSection, arm: ArmSection) -> list[str]:
    rate = records.rate(plan, task, arm)
    tried = {record.learning_rate for record in records.tuning_of(task.name, arm.label)}
    if rate is None:
        return ["no learning rate was tuned"]
    last = plan.tuning.rungs[-1].step if plan.tuning.rungs else plan.max_steps
    out = []
    if last < plan.max_steps:
        out.append(f"its learning rate was chosen after {last} of {plan.max_steps} steps")
    if len(tried) > 1 and rate in (min(tried), max(tried)):
        out.append(f"its learning rate {rate:g} is at the edge of those tried, {min(tried):g} to {max(tried):g}")
    return out


def leaderboard(entries: Sequence[Entry]) -> str:
    """The page: a table for each set of results that compare, best mean loss first.

    Results compare if base model, task, held-out rows, steps and step size are equal. Differences to LoRA r=8 are paired by seed,
    with their 95% interval; p values stand on the pages of the studies, which say over what they are corrected.
    """
    tables: dict[tuple[str, ...], list[tuple[Entry, ArmResult, ArmResult | None]]] = {}
    for entry in entries:
        for task in entry.plan.tasks:
            results = [result for result in arm_results(entry.plan, entry.records, task) if len(result.runs) >= MIN_SEEDS]
            base = next((result for result in results if result.arm.label == REFERENCE), None)
            for result in results:
                first = next(iter(result.runs.values()))
                size = task.step_rows or first.config["training"]["per_device_train_batch_size"]
                rows = str(first.hashes.get("eval", ""))[:12]
                key = (task.name, entry.plan.model.model_name_or_path, f"{entry.plan.max_steps} steps of {size} rows", rows)
                tables.setdefault(key, []).append((entry, result, base))
    out = [
        "# Leaderboard",
        "",
        "All methods by held-out loss, the best first. `qpeft study leaderboard` makes this page from the studies' records. "
        "Compare only rows of the same table.",
        "",
        "* Loss: mean over seeds ± half of its 95% interval; lower is better.",
        "* Difference: to LoRA r=8 of the same study, paired by seed. p values are on the pages of the studies.",
        "* Bold: methods on the table's Pareto front of loss and trainable parameters.",
        "* Kind `control`: an adapter with its circuit replaced, which shows what the circuit contributes.",
        "",
        "No quantum advantage is claimed at sizes that a classical computer simulates. "
        "[Add a row](extending/leaderboard.md) with your own method or circuit.",
        "",
    ]
    for (task_name, model, steps, rows), found in tables.items():
        best = {id(result) for result in pareto_front([result for _, result, _ in found])}
        out += [f"## {task_name}, {steps}", "", f"Model: {model}. SHA-256 of the test rows: `{rows}`.", ""]
        columns = ["method", "kind", "trainable parameters", "seeds", "loss, nats/token"]
        columns += [f"difference to {REFERENCE} (95% interval)", "records"]
        out += [f"| {' | '.join(columns)} |", "|---|---|--:|--:|--:|--:|---|"]
        for entry, result, base in sorted(found, key=lambda row: row[1].loss.mean):
            name = f"**{result.arm.label}**" if id(result) in best else result.arm.label
            half = result.loss.half_width
            loss = f"{result.loss.mean:.3f}" + ("" if half is None else f" ± {half:.3f}")
            cells = [
                name,
                plots.NAMES[result.arm.kind],
                f"{result.parameters:,}",
                str(len(result.runs)),
                loss,
                _versus(result, base),
            ]
            out.append(f"| {' | '.join(cells)} | `{entry.source}` |")
        out.append("")
    notes = [f"* `{entry.source}`: {note}." for entry in entries for note in _notes(entry)]
    out += ["## Notes on the records", "", *notes, ""] if notes else []
    return "\n".join(out).rstrip() + "\n"


def _notes(entry: Entry) -> list[str]:
    """What a reader has to know of how the learning rates of a study were chosen."""
    tuning, steps = entry.plan.tuning, entry.plan.max_steps
    edge = [
        f"{arm.label} ({task.name})"
        for task in entry.plan.tasks
        for arm in entry.plan.arms
        if any("edge" in what for what in _tuning_problems(entry.plan, entry.records, task, arm))
    ]
    early = tuning.rungs and tuning.rungs[-1].step < steps
    return [
        *([f"learning rates were chosen after {tuning.rungs[-1].step} of {steps} steps"] if early else []),
        *([f"the chosen learning rate is at the edge of those tried for {', '.join(edge)}"] if edge else []),
    ]


def _versus(result: ArmResult, base: ArmResult | None) -> str:
    if base is None or result is base:
        return "-"
    seeds = sorted(result.runs.keys() & base.runs.keys())
    if len(seeds) < 2:
        return "-"
    mine, theirs = ([side.runs[seed].metrics["loss"] for seed in seeds] for side in (result, base))
    row = paired_difference(result.arm.label, mine, base.arm.label, theirs).difference
    return f"{row.mean:+.3f} ({row.low:+.3f} to {row.high:+.3f})"
