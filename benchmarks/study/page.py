"""The page of a study from its two files alone: `python -m benchmarks.study.page --plan benchmarks/study/breadth.yaml`.

Writes docs/benchmarks/study-NAME.md and a picture for each task: held-out loss against trained parameters, with the Pareto front.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study.ledger import Ledger, chosen
from benchmarks.study.plan import Arm, Plan, Task, load_plan
from qpeft.records import RunRecord
from qpeft.report.statistics import MIN_SEEDS, PairedDifference, corrected, estimate, paired_difference

COLOURS = {"lora": "#1f77b4", "classical": "#7f7f7f", "quantum": "#d62728", "control": "#ff9896", "ours": "#2ca02c"}
NAMES = {"lora": "LoRA", "classical": "classical", "quantum": "quantum", "control": "control", "ours": "ours"}
REFERENCES = ("LoRA r=8", "LoRA r=1")
MEASURES = ("loss", "token_accuracy", "accuracy", "balanced_accuracy", "f1", "auroc", "ece", "cost_best", "forgetting")


@dataclass(frozen=True)
class Line:
    """The finished runs of an arm on a task, by seed."""

    arm: Arm
    runs: dict[int, RunRecord]
    failed: int

    @property
    def parameters(self) -> int:
        return next(iter(self.runs.values())).trainable_parameters

    def values(self, measure: str) -> list[float]:
        return [run.metrics[measure] for run in self.runs.values() if measure in run.metrics]


def lines(plan: Plan, ledger: Ledger, task: Task) -> list[Line]:
    """Every arm of the plan that has a run on the task, best mean loss first."""
    group = plan.run(task, plan.arms[0], "test", 1e-3, 0).name
    found = []
    for arm in plan.arms:
        mine = [r for r in ledger.records.values() if r.group == group and r.label == arm.label and r.seed in plan.seeds]
        done = {r.seed: r for r in mine if r.status == "ok"}
        if mine:
            found.append(Line(arm, dict(sorted(done.items())), len(mine) - len(done)))
    return sorted(found, key=lambda line: estimate(line.values("loss")).mean if line.runs else float("inf"))


def front(found: Sequence[Line]) -> list[Line]:
    """The lines that no other beats in both parameters and mean loss, ascending in parameters."""
    kept: list[Line] = []
    for line in sorted((line for line in found if line.runs), key=lambda line: line.parameters):
        if not kept or estimate(line.values("loss")).mean < estimate(kept[-1].values("loss")).mean:
            kept.append(line)
    return kept


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


def _number(values: Sequence[float]) -> str:
    if not values:
        return "-"
    found = estimate(values)
    return f"{found.mean:.3f}" + (f" ± {found.half_width:.3f}" if found.half_width is not None else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
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
            rows.append([line.arm.label, NAMES[line.arm.kind], *"---", f"0 ({line.failed} failed)", *["-"] * (len(measures) + 2)])
            continue
        runs = list(line.runs.values())
        last = runs[-1]
        sizes = (last.trainable_parameters, last.stored_parameters, last.inference_parameters)
        rows.append(
            [
                f"**{line.arm.label}**" if id(line) in best else line.arm.label,
                NAMES[line.arm.kind],
                *("-" if size is None else f"{size:,}" for size in sizes),
                f"{len(runs)}" + (f" ({line.failed} failed)" if line.failed else ""),
                *(_number(line.values(name)) for name in measures),
                f"{sum(run.wall_s for run in runs) / len(runs):.0f}",
                f"{max(run.peak_memory_bytes for run in runs) / 2**30:.2f}",
            ]
        )
    return _table(head, rows)


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
    return [*_table([head, "mean", "95% interval", "lower in", "p", "p, Holm"], told), *few]


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
        *_table(["method", *(task.name for task in plan.tasks)], rows),
    ]


def picture(found: Sequence[Line], title: str, file: Path) -> None:
    """Loss against trained parameters, a point a method, bars for the interval, the front as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5), dpi=130)
    shown = [line for line in found if line.runs]
    named = {id(line) for line in front(shown)} | {id(line) for line in shown if line.arm.kind in ("lora", "ours")}
    losses = sorted(estimate(line.values("loss")).mean for line in shown)
    top = 2 * losses[len(losses) // 2] - losses[0]  # far outliers would hide the rest: they sit at the edge, named
    for kind in dict.fromkeys(line.arm.kind for line in shown):
        mine = [line for line in shown if line.arm.kind == kind]
        told = [estimate(line.values("loss")) for line in mine]
        heights = [min(value.mean, top) for value in told]
        bars = [0.0 if value.mean > top else value.half_width or 0.0 for value in told]
        axes.errorbar(
            [line.parameters for line in mine], heights, yerr=bars, fmt="o", color=COLOURS[kind], label=NAMES[kind], capsize=2
        )
        for line, value, height in zip(mine, told, heights, strict=True):
            if id(line) in named or value.mean > top or kind == "quantum":
                text = line.arm.label + (f" ({value.mean:.2f})" if value.mean > top else "")
                axes.annotate(text, (line.parameters, height), xytext=(5, 4), textcoords="offset points", fontsize=7)
    best = front(shown)
    axes.plot(
        [line.parameters for line in best], [estimate(line.values("loss")).mean for line in best], color="black", lw=0.8, ls=":"
    )
    axes.set(
        xscale="log", xlabel="trained parameters (log scale)", ylabel="held-out loss, nats a token (lower is better)", title=title
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    pyplot.close(figure)


def picture_of_changes(rows: Sequence[PairedDifference], title: str, file: Path) -> None:
    """Differences of loss with their intervals, a row each, under the name of what is changed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = {name: [row for row in rows if row.reference == name] for name in dict.fromkeys(row.reference for row in rows)}
    figure, axes = pyplot.subplots(
        len(groups),
        figsize=(8.5, 0.6 * len(groups) + 0.3 * len(rows) + 0.8),
        dpi=130,
        squeeze=False,
        sharex=True,
        gridspec_kw={"height_ratios": [len(group) + 0.6 for group in groups.values()]},
    )
    for (name, group), panel in zip(groups.items(), axes[:, 0], strict=True):
        ordered = sorted(group, key=lambda row: row.difference.mean)
        for place, row in enumerate(ordered):
            told = row.difference
            colour = "#2ca02c" if told.high < 0 else "#d62728" if told.low > 0 else "#7f7f7f"  # better, worse, neither
            panel.errorbar(
                told.mean, place, xerr=[[told.mean - told.low], [told.high - told.mean]], fmt="o", capsize=2, color=colour
            )
        panel.axvline(0, color="black", lw=0.8, ls=":")
        panel.set_yticks(range(len(ordered)), [row.label for row in ordered], fontsize=8)
        panel.set_ylim(len(ordered) - 0.5, -0.5)
        panel.set_title(f"beside {name}", fontsize=9, loc="left")
        panel.grid(axis="x", alpha=0.25)
    axes[-1, 0].set_xlabel("difference of held-out loss, nats a token, with its 95% interval (left: lower, better)")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)


def page(plan: Plan, ledger: Ledger, file: Path, images: Path) -> str:
    """The Markdown; writes the pictures."""
    done = sum(len(line.runs) for task in plan.tasks for line in lines(plan, ledger, task))
    out = [
        f"# Study: {plan.name}",
        "",
        f"Made by `python -m benchmarks.study.page --plan benchmarks/study/{plan.name}.yaml` from the records beside it; the runs "
        f"by `python -m benchmarks.study`. {plan.model.model_name_or_path}, {plan.training['max_steps']} steps, seeds "
        f"{', '.join(map(str, plan.seeds))}: {done} of {len(plan.tasks) * len(plan.arms) * len(plan.seeds)} runs done. A number is "
        "the mean over seeds ± the half width of its 95% t interval, on test rows no setting was chosen on. Bold methods are on "
        "the Pareto front of loss and trained parameters. Circuits are simulated exactly on a classical computer, and no quantum "
        "advantage is claimed at sizes it simulates.",
        "",
        "## Tuning",
        "",
        *_tuning(plan, ledger),
    ]
    for task in plan.tasks:
        found = lines(plan, ledger, task)
        if not any(line.runs for line in found):
            continue
        first = next(iter(next(line for line in found if line.runs).runs.values()))
        image = images / f"study-{plan.name}-{task.name.replace(' ', '-')}.png"
        picture(found, f"{plan.name}: {task.name}", image)
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
        by_label = {line.arm.label: line for line in found}
        for base in (by_label[name] for name in REFERENCES if name in by_label):
            others = [(line, base) for line in found if line is not base and line.arm.kind != "control"]
            out += _differences(compared(others), f"loss, against {base.arm.label}")
        if any(line.arm.of for line in found):
            rows = compared((line, by_label[line.arm.of]) for line in found if line.arm.of in by_label)
            out += ["Each change, and what may stand in the circuit's place, beside what it changes:", ""]
            if rows:
                forest = image.with_name(f"{image.stem}-changes.png")
                picture_of_changes(rows, f"{plan.name}: {task.name}", forest)
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
