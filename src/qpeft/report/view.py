"""Text of a report section, for the HTML and Markdown templates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from qpeft.records import RunRecord
from qpeft.report import notes, words
from qpeft.report.plots import Plot
from qpeft.report.sections import ComparableRuns, flat
from qpeft.report.statistics import PairedDifference
from qpeft.report.style import Mark
from qpeft.report.tables import ArmSummary, costs, paired, reference_lora, summaries, unbeaten
from qpeft.web.charts import Series, lines


@dataclass(frozen=True)
class Cell:
    """One cell of the table of results: a value with its interval, the value before training, and a remark below."""

    value: str
    interval: str = ""
    before: str = ""
    remark: str = ""
    bold: bool = False


def section_view(number: int, section: ComparableRuns, look: Mapping[str, Mark], figures: Mapping[str, Plot]) -> dict[str, Any]:
    """Everything that the templates show of one section, as text.

    Args:
        number: number of the section in the report.
        section: the runs to compare.
        look: colour, dash and marker of each arm, by label.
        figures: plots by file name.
    """
    numbers, pairs = summaries(section), paired(section)
    circuits = any(arm.runs_circuits for arm in numbers)
    reference = reference_lora(section)
    columns = ["Seeds", "Trainable parameters", f"Share of {reference}" if reference else "Share of LoRA"]
    columns += [
        f"{words.heading(name)} ({unit})" if (unit := words.unit(name)) else words.heading(name) for name in section.metrics
    ]
    columns += ["Training time", "Tokens/s", "Peak memory (GiB)", *(["Circuits"] if circuits else [])]
    bold = {name: unbeaten(numbers, name) for name in section.metrics}
    settings = _settings(section)
    return {
        "number": number,
        "heading": f"{section.group}: {section.model}",
        "facts": _facts(section),
        "circuits": notes.circuit_note(numbers),
        "cautions": notes.cautions(section),
        "columns": columns,
        "rows": [_row(arm, section.metrics, bold, circuits, look) for arm in numbers],
        "finished": any(arm.seeds for arm in numbers),
        "bold": any(bold.values()),
        "overlap": notes.overlap_note(numbers),
        "seeds_only": notes.SEEDS_ONLY if any(len(arm.seeds) > 1 for arm in numbers) else "",
        "curves": _curves(section),
        "pairs": [_pair(row) for row in pairs],
        "pairs_reference": pairs[0].reference if pairs else "",
        "pairs_note": notes.pair_note(pairs) if pairs else "",
        "figures": [
            {
                "file": file,
                "alt": f"{plot.title}. {plot.caption}",
                "svg": plot.svg,
            }
            for file, plot in figures.items()
            if plot.name != "hero"
        ],
        "failed": [(run.label, run.seed, run.error or "no error was recorded") for run in section.runs if run.status != "ok"],
        "run_columns": [
            "Run",
            "Arm",
            "Seed",
            "Status",
            *map(words.heading, section.metrics),
            "Steps",
            "Training time",
            "Made",
            "Settings",
        ],
        "runs": [
            *(_run(run, section.metrics, settings, run.status) for run in section.runs),
            *(_run(run, section.metrics, settings, f"superseded ({run.status})") for run in section.superseded),
        ],
        "settings": [_yaml(config) for config in settings.values()],
    }


def _row(
    arm: ArmSummary, metrics: Sequence[str], bold: Mapping[str, set[str]], circuits: bool, look: Mapping[str, Mark]
) -> dict[str, Any]:
    failures = f"{len(arm.failed_seeds)} failed" if arm.failed_seeds else ""
    known = arm.seeds or arm.trainable_parameters
    share = arm.share_of_reference if arm.seeds else None
    cells = [
        Cell(str(len(arm.seeds)), remark=failures),
        Cell(words.count(arm.trainable_parameters) if known else words.NONE),
        Cell(words.NONE if share is None else words.percent(share)),
    ]
    cells += [
        Cell(
            words.number(arm.after[name].mean),
            words.interval(arm.after[name]),
            words.number(arm.before[name]) if name in arm.before else "",
            bold=arm.label in bold[name],
        )
        if name in arm.after
        else Cell(words.NONE)
        for name in metrics
    ]
    cells += [Cell(cost) for cost in costs(arm)]
    if circuits and arm.runs_circuits:
        shots = words.plural(round(arm.shots), "shot") if arm.shots else "exact"
        executions = words.plural(round(arm.circuit_executions), "execution") if arm.circuit_executions else ""
        cells.append(Cell(f"simulated, {shots}" if arm.simulated else f"hardware, {shots}", remark=executions))
    elif circuits:
        cells.append(Cell(words.NONE))
    return {"label": arm.label, "arm": look[arm.label].number, "colour": look[arm.label].index, "cells": cells}


def _curves(section: ComparableRuns) -> str:
    """Held-out loss over steps, a line for each run; empty where none was measured during training."""
    series = [
        Series(f"{run.label}, seed {run.seed}", [float(p.step) for p in run.eval_curve], [p.loss for p in run.eval_curve])
        for run in section.runs
        if len(run.eval_curve) > 1
    ]
    return lines(series, label="Held-out loss of every run", x_label="step", y_label="nats/token")


def _pair(row: PairedDifference) -> list[str]:
    return [
        row.label,
        words.signed(row.difference.mean),
        f"{words.signed(row.difference.low)} to {words.signed(row.difference.high)}",
        f"{row.lower} of {row.difference.n}",
        words.probability(row.p),
        words.probability(row.p_holm),
    ]


def _facts(section: ComparableRuns) -> list[tuple[str, str]]:
    """Settings of the runs as (name, value). Settings that no record holds are left out."""
    finished = [run for run in section.runs if run.status == "ok"]
    runs = finished or list(section.runs)
    sizes = {run.base_parameters for run in runs if run.base_parameters}
    made = sorted(run.created_at for run in runs if run.created_at)
    facts = {
        "Base model": section.model + (f", {words.listing(map(words.count, sorted(sizes)))} parameters" if sizes else ""),
        "Hashes": ", ".join(f"{name} {value[:16]}" for name, value in section.hashes.items()),
        "Training": f"{_range([run.steps for run in runs])} steps, {_range([run.train_tokens for run in runs])} tokens per run",
        "Seeds": ", ".join(map(str, sorted({run.seed for run in section.runs}))),
        "Runs": f"{len(finished)} finished, {len(section.runs) - len(finished)} failed",
        "Made": " to ".join(dict.fromkeys((made[0], made[-1]))) if made else "",
        "Machine": words.merged([run.machine for run in runs]),
        "Versions": words.merged([run.versions for run in runs]),
    }
    return [(name, text) for name, text in facts.items() if text]


def _run(run: RunRecord, metrics: Sequence[str], settings: Mapping[str, Any], status: str) -> list[str]:
    values = [words.number(run.metrics[name]) if name in run.metrics else words.NONE for name in metrics]
    place = str(list(settings).index(_settings_key(run)) + 1)
    return [
        run.id[:12],
        run.label,
        str(run.seed),
        status,
        *values,
        words.count(run.steps),
        words.duration(run.wall_s),
        run.created_at,
        place,
    ]


def _settings(section: ComparableRuns) -> dict[str, Mapping[str, Any]]:
    """Each distinct configuration once; runs that differ in seed and folders alone share one, shown as the first of them has it."""
    settings: dict[str, Mapping[str, Any]] = {}
    for run in (*section.runs, *section.superseded):
        settings.setdefault(_settings_key(run), run.config)
    return settings


def _settings_key(run: RunRecord) -> str:
    return json.dumps(flat(run.config), sort_keys=True)


def _yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(json.loads(json.dumps(dict(config))), sort_keys=True, allow_unicode=True).rstrip()


def _range(values: Sequence[int]) -> str:
    return " to ".join(dict.fromkeys((words.count(min(values)), words.count(max(values)))))
