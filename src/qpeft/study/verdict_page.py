"""The page of a verdict: one HTML file that needs no network, its sentence at the top."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, stdev
from typing import Any

from qpeft.circuits.ir import Circuit
from qpeft.errors import MissingDependencyError
from qpeft.report import notes
from qpeft.report.statistics import MIN_SEEDS
from qpeft.study import plots
from qpeft.study.plan import StudyPlan
from qpeft.study.power import seeds_needed
from qpeft.study.records import StudyRecords
from qpeft.study.results import ArmResult, arm_results, pareto_front
from qpeft.study.verdict import LEVEL, REFERENCE, Finding, findings, sentence

OUTCOMES = {"lower": "lower loss", "higher": "higher loss", "equal": "no measurable difference"}


def write_verdict(
    plan: StudyPlan,
    records: StudyRecords,
    subject: str,
    file: Path,
    context: tuple[StudyPlan, StudyRecords] | None = None,
) -> str:
    """Write the page from the records alone; returns its sentence.

    Args:
        plan: the verdict's (verdict_plan).
        records: its records.
        subject: the label of the arm that is judged.
        file: the page.
        context: another study, whose arms are drawn too on tasks of the same name and held-out rows.
    """
    found = findings(plan, records, subject)
    verdict = sentence(found, subject)
    adapter = next(arm.adapter for arm in plan.arms if arm.label == subject)
    family = sum(len(finding.rows) for finding in found)
    page = {
        "subject": subject,
        "sentence": verdict,
        "settings": json.dumps({key: value for key, value in adapter.items() if key != "circuit"}, indent=1, default=str),
        "circuit": _drawn(adapter.get("circuit")),
        "adapter": json.dumps(adapter, default=str),
        "plan": plan,
        "tuning": _tuning(plan, records, found),
        "sections": [_section(plan, finding, context) for finding in found],
        "family": family,
        "level": LEVEL,
        "changes": _what_would_change(plan, records, found, family),
        "statement": notes.NO_ADVANTAGE,
    }
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError("jinja2", "report", "a page of HTML") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qpeft", "study"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(environment.get_template("verdict.html.jinja").render(page), encoding="utf-8")
    return verdict


def _drawn(stored: Any) -> str:
    """The circuit of an adapter section as text; empty where it has none of its own."""
    return Circuit.from_dict(stored["circuit"]).draw() if isinstance(stored, Mapping) else ""


def _section(plan: StudyPlan, finding: Finding, context: tuple[StudyPlan, StudyRecords] | None) -> dict[str, Any]:
    own, stored = finding.subject, _stored(finding, context)
    rows = []
    for label, row in sorted(finding.rows.items(), key=lambda item: item[1].difference.mean):
        other = finding.others[label]
        rows.append(
            {
                "label": label,
                "kind": plots.NAMES[other.arm.kind],
                "parameters": f"{other.parameters:,}",
                "loss": f"{other.loss.mean:.3f}",
                "difference": f"{row.difference.mean:+.3f}",
                "interval": f"{row.difference.low:+.3f} to {row.difference.high:+.3f}",
                "relative": f"{100 * finding.relative(label):+.1f}%",
                "p": "-" if row.p is None else f"{row.p:.2g}",
                "p_holm": "-" if row.p_holm is None else f"{row.p_holm:.2g}",
                "outcome": OUTCOMES[finding.outcome(label)],
                "visible": f"{finding.visible[label]:.3f}",
            }
        )
    runs = list(own.runs.values())
    return {
        "task": finding.task.name,
        "parameters": f"{own.parameters:,}",
        "share": f"{100 * own.parameters / finding.others[REFERENCE].parameters:.0f}%" if REFERENCE in finding.others else "",
        "loss": f"{own.loss.mean:.3f}" + (f" ± {own.loss.half_width:.3f}" if own.loss.half_width is not None else ""),
        "before": f"{runs[0].metrics_before['loss']:.3f}",
        "seeds": len(runs),
        "equal_size": finding.equal_size or "",
        "seconds": f"{median(run.wall_s for run in runs):.0f}",
        "peak": f"{max(run.peak_memory_bytes for run in runs) / 2**30:.2f}",
        "circuits": sum(run.circuit_executions for run in runs),
        "front": _front(finding, stored),
        "rows": rows,
        "stored": len(stored),
        "image": _image(f"{finding.task.name}: {own.arm.label}", [own, *finding.others.values(), *stored]),
    }


def _front(finding: Finding, stored: Sequence[ArmResult]) -> str:
    """The subject's place on the Pareto front of loss and trainable parameters, in a sentence."""
    own, everyone = finding.subject, [finding.subject, *finding.others.values(), *stored]
    front = pareto_front(everyone)
    if any(result is own for result in front):
        place = [result is own for result in front].index(True) + 1
        where = f"place {place} of {len(front)} by size, of {len(everyone)} methods"
        return f"On the Pareto front of loss and trainable parameters: {where}."
    better = min(
        (r for r in everyone if r is not own and r.parameters <= own.parameters and r.loss.mean <= own.loss.mean),
        key=lambda r: r.loss.mean,
    )
    other = f"{better.arm.label} has a mean loss of {better.loss.mean:.3f} with {better.parameters:,} parameters"
    return f"Not on the Pareto front of loss and trainable parameters: {other}."


def _stored(finding: Finding, context: tuple[StudyPlan, StudyRecords] | None) -> list[ArmResult]:
    """Arms of the context on the same task and held-out rows that the verdict does not have."""
    if context is None:
        return []
    plan, records = context
    rows = next(iter(finding.subject.runs.values())).hashes.get("eval")
    known = {finding.subject.arm.label, *finding.others}
    tasks = [task for task in plan.tasks if task.name == finding.task.name]
    return [
        result
        for task in tasks
        for result in arm_results(plan, records, task)
        if result.runs and result.arm.label not in known and next(iter(result.runs.values())).hashes.get("eval") == rows
    ]


def _image(title: str, results: Sequence[ArmResult]) -> str:
    """The plot of loss against parameters as a data URI."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "plot.png"
        plots.losses({title: results}, file)
        return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def _tuning(plan: StudyPlan, records: StudyRecords, found: Sequence[Finding]) -> list[dict[str, str]]:
    """The chosen learning rate of every arm and task, and whether it is the smallest or largest that was tried."""
    rows = []
    for arm in plan.arms:
        cells = {"label": arm.label}
        for finding in found:
            rate = records.rate(plan, finding.task, arm)
            tried = sorted({record.learning_rate for record in records.tuning_of(finding.task.name, arm.label)})
            edge = len(tried) > 1 and rate in (tried[0], tried[-1])
            cells[finding.task.name] = "-" if rate is None else f"{rate:g}{' (edge)' if edge else ''}"
        rows.append(cells)
    return rows


def _what_would_change(plan: StudyPlan, records: StudyRecords, found: Sequence[Finding], family: int) -> list[str]:
    """Sentences on what the verdict hangs on."""
    out = []
    for finding in found:
        label = REFERENCE if REFERENCE in finding.others else next(iter(finding.others), None)
        if label is None:
            continue
        row, n = finding.rows[label], finding.rows[label].difference.n
        seeds = sorted(finding.subject.runs.keys() & finding.others[label].runs.keys())
        spread = stdev(finding.subject.runs[s].metrics["loss"] - finding.others[label].runs[s].metrics["loss"] for s in seeds)
        line = (
            f"{finding.task.name}: {n} seeds see a difference to {label} of {finding.visible[label]:.3f} nats/token or more in "
            f"four studies of five; {abs(row.difference.mean):.3f} was measured."
        )
        needed = seeds_needed(row.difference.mean, spread, LEVEL / family) if row.difference.mean else None
        if finding.outcome(label) == "equal" and needed is not None:
            line += f" If that were the true difference, {needed} seeds would be needed to show it."
        out.append(line)
        for arm in plan.arms:
            rate, tried = records.rate(plan, finding.task, arm), records.tuning_of(finding.task.name, arm.label)
            rates = sorted({record.learning_rate for record in tried})
            if rate is not None and len(rates) > 1 and rate in (rates[0], rates[-1]):
                out.append(f"{finding.task.name}: {arm.label} is best at {rate:g}, the edge of the rates that were tried.")
    out.append(f"Runs have {plan.max_steps} steps. Longer training may change the order.")
    if len(plan.seeds) < MIN_SEEDS:
        out.append(f"Fewer than {MIN_SEEDS} paired seeds prove nothing.")
    out.append("Other models and data: nothing here was measured on them.")
    return out
