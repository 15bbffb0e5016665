"""The Markdown page of a study, with its plots, from the plan and the records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from qpeft.report.statistics import MIN_SEEDS, PairedDifference, estimate
from qpeft.study import plots
from qpeft.study.plan import StudyPlan
from qpeft.study.records import StudyRecords
from qpeft.study.results import ArmResult, arm_results, by_progress, paired_differences, pareto_front
from qpeft.study.tuning import lowest

REFERENCES = ("LoRA r=8", "LoRA r=1")
METRICS = ("loss", "token_accuracy", "accuracy", "balanced_accuracy", "f1", "auroc", "ece", "cost_best", "forgetting")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, the first column aligned left, the others right.

    Args:
        head: titles of the columns.
        rows: cells of each row.

    Returns:
        The lines of the table, then an empty line.
    """
    return [f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def write_page(plan: StudyPlan, records: StudyRecords, file: Path, images: Path) -> str:
    """Write the page and its plots; returns the Markdown.

    Args:
        plan: the study's.
        records: what is known of it.
        file: the page.
        images: folder of the plots, linked as `../images`.
    """
    done = sum(len(result.runs) for task in plan.tasks for result in arm_results(plan, records, task))
    every = len(plan.tasks) * len(plan.arms) * len(plan.seeds)
    held_out = "test rows; learning rates were chosen on validation rows" if plan.held_out == "test" else "validation rows"
    facts = {
        "model": f"{plan.model.model_name_or_path}, {plan.max_steps} steps",
        "seeds": ", ".join(map(str, plan.seeds)),
        "runs": f"{done} of {every} runs done" if done or plan.held_out == "test" else "tuning alone",
        "metrics": f"mean over seeds ± half width of its 95% t interval, on {held_out}",
        "units": "loss, forgetting: nats/token; accuracies, F1, AUROC, ECE: 0 to 1; trainable, stored, at inference: numbers of "
        "parameters (0 at inference: the adapter merges into the base model)",
        "s/run, peak GiB": "median wall-clock time under uneven load of the machine; largest resident memory",
        "bold": "methods on the Pareto front of loss and trainable parameters",
        "kind": f"`{plots.NAMES['quantum']}`: published methods with a circuit, or derived from one; `ours`: methods of this "
        "project, with and without a circuit; `control`: a method with its circuit replaced",
        "p": "of a paired t-test over seeds. `p, Holm over N` is corrected over the N rows of its table. [LoRA vs. the other "
        "adapters](lora-comparison.md) corrects over tables of its own: a comparison on both pages has one p and two corrected "
        "values.",
        "made by": f"`qpeft study report recipes/studies/{plan.name}.yaml` from the records in `{records.folder.name}/`; the runs "
        "by `qpeft study run`",
    }
    out = [
        f"# Study: {plan.name}",
        "",
        f"Losses and parameters of {len(plan.arms)} adapters with tuned learning rates. After this page you know the loss and "
        "the size of each adapter, and can rerun the study.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in facts.items()),
        "",
        "Circuits are simulated exactly on a classical computer. No quantum advantage is claimed at sizes that a classical "
        "computer simulates.",
        "",
        *([plan.note, ""] if plan.note else []),
        "## Tuning",
        "",
        *_tuning(plan, records),
    ]
    for task in plan.tasks:
        found, behind = by_progress(arm_results(plan, records, task))
        if not any(result.runs for result in found):
            continue
        first = next(iter(next(result for result in found if result.runs).runs.values()))
        image = images / f"study-{plan.name}-{task.name.replace(' ', '-')}.png"
        images.mkdir(parents=True, exist_ok=True)
        plots.losses({f"{plan.name}: {task.name}": found}, image)
        out += [
            f"## {task.name[0].upper()}{task.name[1:]}",
            "",
            f"Steps of {first.config['training']['per_device_train_batch_size']} rows of up to {task.max_length} tokens. "
            f"Held-out loss before training: {first.metrics_before['loss']:.3f} nats/token. SHA-256 of the rows: "
            + ", ".join(f"{name} `{value[:12]}`" for name, value in first.hashes.items() if name != "model")
            + ".",
            "",
            f"![{task.name}](../images/{image.name})",
            "",
            *_results(found),
        ]
        if behind:
            out += ["Unfinished: " + ", ".join(f"{r.arm.label} (seeds so far: {len(r.runs)})" for r in behind) + ".", ""]
        by_label = {result.arm.label: result for result in found}
        for base in (by_label[name] for name in REFERENCES if name in by_label):
            others = [(result, base) for result in found if result is not base and result.arm.kind != "control"]
            out += difference_table(paired_differences(others), f"loss, vs. {base.arm.label}")
        if any(result.arm.of for result in found):
            rows = paired_differences((result, by_label[result.arm.of]) for result in found if result.arm.of in by_label)
            out += ["Each variant and control vs. the arm that it changes:", ""]
            if rows:
                forest = image.with_name(f"{image.stem}-changes.png")
                plots.differences(rows, f"{plan.name}: {task.name}", forest)
                out += [f"![changes](../images/{forest.name})", ""]
            out += difference_table(rows, "loss, vs. what it changes")
        failures = [r for r in records.runs.values() if r.status == "failed" and r.group == first.group]
        out += [f"- failed: {r.label}, seed {r.seed}: {r.error}" for r in failures]
    text = "\n".join(out).rstrip() + "\n"
    file.write_text(text, encoding="utf-8")
    return text


def difference_table(rows: Sequence[PairedDifference], head: str) -> list[str]:
    """Paired differences as a table; `head` names the first column. Holm's correction is over the rows of the table."""
    if not rows:
        return ["Too few paired seeds yet.", ""]
    told = [
        [
            f"{row.label} − {row.reference}",
            f"{row.difference.mean:+.3f}",
            f"{row.difference.low:+.3f} to {row.difference.high:+.3f}",
            f"{row.lower} of {row.difference.n}",
            "-" if row.p is None else f"{row.p:.2g}",
            "-" if row.p_holm is None else f"{row.p_holm:.2g}",
        ]
        for row in rows
    ]
    few = [] if rows[0].difference.n >= MIN_SEEDS else [f"Fewer than {MIN_SEEDS} paired seeds prove nothing.", ""]
    columns = [head, "mean difference, nats/token", "95% interval", "seeds with lower loss", "p", f"p, Holm over {len(rows)}"]
    return [*table(columns, told), *few]


def _number(values: Sequence[float]) -> str:
    if not values:
        return "-"
    found = estimate(values)
    return f"{found.mean:.3f}" + (f" ± {found.half_width:.3f}" if found.half_width is not None else "")


def _results(found: Sequence[ArmResult]) -> list[str]:
    metrics = [name for name in METRICS if any(result.values(name) for result in found)]
    best = {id(result) for result in pareto_front(found)}
    head = ["method", "kind", "trainable", "stored", "at inference", "seeds", *(m.replace("_", " ") for m in metrics)]
    rows = []
    for result in found:
        label, kind = result.arm.label, plots.NAMES[result.arm.kind]
        if not result.runs:
            rows.append([label, kind, *"---", f"0 ({result.failed} failed)", *["-"] * (len(metrics) + 2)])
            continue
        runs = list(result.runs.values())
        sizes = (runs[-1].trainable_parameters, runs[-1].stored_parameters, runs[-1].inference_parameters)
        rows.append(
            [
                f"**{label}**" if id(result) in best else label,
                kind,
                *("-" if size is None else f"{size:,}" for size in sizes),
                f"{len(runs)}" + (f" ({result.failed} failed)" if result.failed else ""),
                *(_number(result.values(name)) for name in metrics),
                f"{median(run.wall_s for run in runs):.0f}",
                f"{max(run.peak_memory_bytes for run in runs) / 2**30:.2f}",
            ]
        )
    return table([*head, "s/run", "peak GiB"], rows)


def _tuning(plan: StudyPlan, records: StudyRecords) -> list[str]:
    tuning, edge = plan.tuning, False
    rows = []
    for arm in plan.arms:
        cells = []
        for task in plan.tasks:
            mine = records.tuning_of(task.name, arm.label)
            last = {t.learning_rate: t.loss for t in mine if t.step == max(t.step for t in mine)}
            rates = {t.learning_rate for t in mine}
            if not last:
                cells.append("-")
                continue
            best = lowest(last, 1)[0]
            at_edge = len(rates) > 1 and best in (min(rates), max(rates))
            edge |= at_edge
            loss = "failed" if last[best] is None else f"loss {last[best]:.3f}"
            cells.append(f"{best:g}{' (edge)' if at_edge else ''} of {len(rates)}, {loss}")
        rows.append([arm.label, *cells])
    grid = ", ".join(f"{rate:g}" for rate in tuning.learning_rates)
    if tuning.search == "hill_climb":
        how = "The search starts at a rate given for the method and ends when both neighbours of the best rate on the grid "
        how += f"{grid} are worse. Each rate trains for all {plan.max_steps} steps."
    else:
        rungs = ", ".join(f"the best {rung.keep} after step {rung.step}" for rung in tuning.rungs)
        how = f"The rates {grid} are tried. "
        how += f"After a few steps only the best continue: {rungs}; " if rungs else f"Each trains for all {plan.max_steps} steps: "
        how += f"{tuning.steps(plan.max_steps)} training steps per method and task."
        how += f" If the best is at the edge, up to {tuning.extend} more rates beyond the edge are tried." if tuning.extend else ""
    last_step = tuning.rungs[-1].step if tuning.rungs else plan.max_steps
    notes = [
        "A cell has the chosen rate, how many rates were tried, and the validation loss in nats/token.",
        *([f"The rate is chosen after {last_step} of the {plan.max_steps} training steps."] if last_step < plan.max_steps else []),
        *(["(edge): the best rate is the smallest or largest that was tried; a better one may lie beyond."] if edge else []),
    ]
    return [
        f"Each method's learning rate is chosen in the same way, by loss on validation rows with seed {tuning.seed}. {how}",
        " ".join(notes),
        "",
        *table(["method", *(task.name for task in plan.tasks)], rows),
    ]
