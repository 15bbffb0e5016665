"""The page of a study from its two files alone: `python -m benchmarks.study.page --plan benchmarks/study/breadth.yaml`.

Writes docs/benchmarks/study-NAME.md and a picture for each task: held-out loss against trained parameters, with the Pareto front.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.study import pictures
from benchmarks.study.ledger import Ledger, chosen
from benchmarks.study.plan import Plan, load_plan
from benchmarks.study.results import Line, compared, front, furthest, lines
from qpeft.report.statistics import MIN_SEEDS, PairedDifference, estimate

REFERENCES = ("LoRA r=8", "LoRA r=1")
MEASURES = ("loss", "token_accuracy", "accuracy", "balanced_accuracy", "f1", "auroc", "ece", "cost_best", "forgetting")


def _number(values: Sequence[float]) -> str:
    if not values:
        return "-"
    found = estimate(values)
    return f"{found.mean:.3f}" + (f" ± {found.half_width:.3f}" if found.half_width is not None else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def _results(found: Sequence[Line]) -> list[str]:
    measures = [name for name in MEASURES if any(line.values(name) for line in found)]
    best = {id(line) for line in front(found)}
    head = [
        "method",
        "kind",
        "trained",
        "stored",
        "at inference",
        "seeds",
        *(m.replace("_", " ") for m in measures),
        "s a run",
        "peak GiB",
    ]
    rows = []
    for line in found:
        if not line.runs:
            blank = ["-"] * (len(measures) + 2)
            rows.append([line.arm.label, pictures.NAMES[line.arm.kind], *"---", f"0 ({line.failed} failed)", *blank])
            continue
        runs = list(line.runs.values())
        last = runs[-1]
        sizes = (last.trainable_parameters, last.stored_parameters, last.inference_parameters)
        rows.append(
            [
                f"**{line.arm.label}**" if id(line) in best else line.arm.label,
                pictures.NAMES[line.arm.kind],
                *("-" if size is None else f"{size:,}" for size in sizes),
                f"{len(runs)}" + (f" ({line.failed} failed)" if line.failed else ""),
                *(_number(line.values(name)) for name in measures),
                f"{median(run.wall_s for run in runs):.0f}",
                f"{max(run.peak_memory_bytes for run in runs) / 2**30:.2f}",
            ]
        )
    return table(head, rows)


def _differences(rows: Sequence[PairedDifference], head: str) -> list[str]:
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
    return [*table([head, "mean", "95% interval", "lower in", "p", "p, Holm"], told), *few]


def _tuning(plan: Plan, ledger: Ledger) -> list[str]:
    rungs = ", ".join(f"the best {rung.keep} after step {rung.step}" for rung in plan.tuning.rungs)
    rows = []
    for arm in plan.arms:
        cells = []
        for task in plan.tasks:
            mine = [trial for trial in ledger.trials.values() if (trial.arm, trial.task) == (arm.label, task.name)]
            last = {t.learning_rate: t.loss for t in mine if t.step == max(t.step for t in mine)}
            cells.append(f"{chosen(last, 1)[0]:g} of {len({t.learning_rate for t in mine})}, {len(mine)} trials" if last else "-")
        rows.append([arm.label, *cells])
    return [
        f"Every method has the learning rates {', '.join(f'{r:g}' for r in plan.tuning.learning_rates)}, seed {plan.tuning.seed}, "
        f"judged by loss on validation rows: {rungs}; {plan.tuning.steps()} steps a method and task. Chosen:",
        "",
        *table(["method", *(task.name for task in plan.tasks)], rows),
    ]


def page(plan: Plan, ledger: Ledger, file: Path, images: Path) -> str:
    """The Markdown; writes the pictures."""
    done = sum(len(line.runs) for task in plan.tasks for line in lines(plan, ledger, task))
    out = [
        f"# Study: {plan.name}",
        "",
        f"Made by `python -m benchmarks.study.page --plan benchmarks/study/{plan.name}.yaml` from the records beside it; the runs "
        f"by `python -m benchmarks.study`. {plan.model.model_name_or_path}, {plan.training['max_steps']} steps, seeds "
        f"{', '.join(map(str, plan.seeds))}: {done} of {len(plan.tasks) * len(plan.arms) * len(plan.seeds)} runs done. A number is "
        "the mean over seeds ± the half width of its 95% t interval, on test rows no setting was chosen on; seconds are medians, "
        "under uneven load. Bold methods are on the Pareto front of loss and trained parameters. Circuits are simulated exactly on "
        "a classical computer, and no quantum advantage is claimed at sizes it simulates.",
        "",
        "## Tuning",
        "",
        *_tuning(plan, ledger),
    ]
    for task in plan.tasks:
        found, behind = furthest(lines(plan, ledger, task))
        if not any(line.runs for line in found):
            continue
        first = next(iter(next(line for line in found if line.runs).runs.values()))
        image = images / f"study-{plan.name}-{task.name.replace(' ', '-')}.png"
        images.mkdir(parents=True, exist_ok=True)
        pictures.losses({f"{plan.name}: {task.name}": found}, image)
        out += [
            f"## {task.name.capitalize()}",
            "",
            f"Steps of {first.config['training']['per_device_train_batch_size']} rows of up to {task.max_length} tokens. "
            f"Held-out loss before training {first.metrics_before['loss']:.3f}; data "
            + ", ".join(f"{name} `{value[:12]}`" for name, value in first.hashes.items() if name != "model")
            + ".",
            "",
            f"![{task.name}](../images/{image.name})",
            "",
            *_results(found),
        ]
        if behind:
            out += ["At work: " + ", ".join(f"{line.arm.label} (seeds so far: {len(line.runs)})" for line in behind) + ".", ""]
        by_label = {line.arm.label: line for line in found}
        for base in (by_label[name] for name in REFERENCES if name in by_label):
            others = [(line, base) for line in found if line is not base and line.arm.kind != "control"]
            out += _differences(compared(others), f"loss, against {base.arm.label}")
        if any(line.arm.of for line in found):
            rows = compared((line, by_label[line.arm.of]) for line in found if line.arm.of in by_label)
            out += ["Each change, and what may stand in the circuit's place, beside what it changes:", ""]
            if rows:
                forest = image.with_name(f"{image.stem}-changes.png")
                pictures.changes(rows, f"{plan.name}: {task.name}", forest)
                out += [f"![changes](../images/{forest.name})", ""]
            out += _differences(rows, "loss, against what it changes")
        failures = [r for r in ledger.records.values() if r.status == "failed" and r.group == first.group]
        out += [f"- failed: {r.label}, seed {r.seed}: {r.error}" for r in failures]
    text = "\n".join(out).rstrip() + "\n"
    file.write_text(text, encoding="utf-8")
    return text


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--records", type=Path, default=Path("docs/benchmarks/study"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args(given)
    plan = load_plan(arguments.plan)
    file = arguments.out / f"study-{plan.name}.md"
    page(plan, Ledger(arguments.records, plan.name), file, arguments.images)
    print(file)


if __name__ == "__main__":
    main()
