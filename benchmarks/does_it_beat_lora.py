"""The answer and the tables of LoRA vs. the other adapters from the studies' records: `python -m benchmarks.does_it_beat_lora`.

docs/does-it-beat-lora.md has the answer, docs/benchmarks/lora-comparison.md and step-times.md the details. Their words are written
by hand; what stands between `<!-- NAME -->` and `<!-- end -->` is made here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from qpeft.report.statistics import Estimate
from qpeft.report.style import LIGHT, drawing
from qpeft.study import plots
from qpeft.study.page import table
from qpeft.study.plan import load_plan
from qpeft.study.records import StudyRecords
from qpeft.study.results import ArmResult, arm_results, paired_differences, pareto_front

PLANS = tuple(Path(__file__).parents[1] / f"recipes/studies/{name}.yaml" for name in ("breadth", "depth", "search"))
PAGE = Path("docs/does-it-beat-lora.md")
DETAILS = Path("docs/benchmarks/lora-comparison.md")
TIMES = Path("docs/benchmarks/step-times.md")
SHARE = 0.24  # of LoRA r=8's parameters: who has no more is of equal size
LARGE, SMALL = "LoRA r=8", "LoRA r=1"
OURS = "one-sided LoRA"
ROTATED = "Cayley blocks, o and down"
WIDE = "QTHA of 23%"
OWN = {  # the last column of a method's table: its control, or the arm that it changes
    "QTHA": "QTHA without circuit",
    WIDE: "QTHA",
    OURS: "one-sided LoRA with circuit",
    ROTATED: f"{ROTATED}, not orthogonal",
}
SEARCHED = {  # the search's names of arms that the other plans have too
    "QCORE, one side, down, random frames": OURS,
    "QCORE, random side, with a circuit": "one-sided LoRA with circuit",
    "QCORE, random side, with an MLP": "one-sided LoRA with MLP",
}
WITHOUT = (  # a method with its circuit, and what stands in the circuit's place
    ("QTHA", "QTHA without circuit"),
    ("QTHA", "QTHA frozen"),
    ("QTHA", "QTHA unentangled"),
    ("QTHA", "QTHA cos"),
    ("QTHA", "QTHA MLP"),
    ("QCORE, with a circuit", "QCORE"),
    ("QCORE, with a circuit", "QCORE, with an MLP"),
    ("QCORE, all linear, with a circuit", "QCORE, all linear"),
    ("one-sided LoRA with circuit", OURS),
    ("one-sided LoRA with circuit", "one-sided LoRA with MLP"),
    ("QuIC, o and down", "QuIC, o and down, tied"),
)


@dataclass(frozen=True)
class Case:
    """A task of a study with what was found: its name, and the lines by label."""

    name: str
    lines: dict[str, ArmResult]


def cases(records: Path) -> list[Case]:
    """Every task of the plans on which LoRA r=8 has all its seeds, with the arms that have all of theirs."""
    found = []
    for file in PLANS:
        plan = load_plan(file)
        study_records = StudyRecords(records, plan.name)
        suffix = {"depth": "1.5B", "search": "135M, the search"}.get(plan.name, "135M")
        for task in plan.tasks:
            told = {
                SEARCHED.get(line.arm.label, line.arm.label): line
                for line in arm_results(plan, study_records, task)
                if len(line.runs) == len(plan.seeds)
            }
            if LARGE in told:
                found.append(Case(f"{task.name}, {suffix}", told))
    return found


def _equal_size(case: Case, label: str) -> ArmResult | None:
    """The best other classical method, LoRA of rank 1 among them, with at most SHARE of the parameters of LoRA r=8."""
    bound = SHARE * case.lines[LARGE].parameters
    classical = [
        x for x in case.lines.values() if x.arm.kind in ("classical", "lora") and x.parameters <= bound and x.arm.label != label
    ]
    return min(classical, key=lambda line: line.loss.mean, default=None)


def verdict(found: Sequence[Case], label: str) -> list[str]:
    """A method's loss relative to that of LoRA of ranks 8 and 1, the best classical method of its size and what it has in
    OWN, with the p values of the paired differences, also corrected over the table (Holm).
    """
    control = OWN[label]
    told = [case for case in found if label in case.lines]
    others = [[case.lines[LARGE], case.lines.get(SMALL), _equal_size(case, label), case.lines.get(control)] for case in told]
    pairs = [(case.lines[label], base) for case, row in zip(told, others, strict=True) for base in row if base is not None]
    paired = [pair for pair in pairs if len(pair[0].runs.keys() & pair[1].runs.keys()) > 1]
    rows_of = zip(paired, paired_differences(paired), strict=True)
    values = {(id(line), id(base)): (row.p, row.p_holm) for (line, base), row in rows_of}

    def relative(line: ArmResult, base: ArmResult | None) -> str:
        if base is None:
            return "-"
        p, corrected = values.get((id(line), id(base)), (None, None))
        told = "" if p is None or corrected is None else f" (p {p:.1g}, corrected {corrected:.1g})"
        return f"{100 * (line.loss.mean / base.loss.mean - 1):+.1f}%" + told

    rows = []
    for case, (large, small, equal, own) in zip(told, others, strict=True):
        line = case.lines[label]
        assert large is not None
        rows.append(
            [
                case.name,
                str(len(line.runs)),
                f"{100 * line.parameters / large.parameters:.0f}%",
                f"{line.loss.mean:.3f}; {large.loss.mean:.3f}",
                relative(line, large),
                relative(line, small),
                relative(line, equal) + (f": {equal.arm.label}" if equal is not None else ""),
                relative(line, own),
            ]
        )
    head = ["task, model", "seeds", "% of LoRA r=8's parameters", "loss; loss of LoRA r=8", "vs. LoRA r=8", "vs. LoRA r=1"]
    return table([*head, f"vs. the best classical method of at most {SHARE:.0%}", f"vs. {control}"], rows)


def circuits(found: Sequence[Case]) -> list[str]:
    """The loss with a circuit minus the loss with what stands in its place, with the 95% interval."""
    rows = []
    for label, base in WITHOUT:
        cells = []
        for case in found:
            pair = [(case.lines[label], case.lines[base])] if {label, base} <= case.lines.keys() else []
            told = [row.difference for row in paired_differences(pair)]
            cells.append(f"{told[0].mean:+.3f} ({told[0].low:+.3f} to {told[0].high:+.3f})" if told else "-")
        if any(cell != "-" for cell in cells):
            rows.append([f"{label} − {base}", *cells])
    return table(["loss", *(case.name for case in found)], rows)


def fronts(found: Sequence[Case]) -> list[str]:
    """The Pareto front of every case."""
    rows = []
    for case in found:
        told = [f"{x.arm.label} ({x.parameters:,}: {x.loss.mean:.3f})" for x in pareto_front(list(case.lines.values()))]
        rows.append([case.name, ", ".join(told)])
    return table(["task, model", "Pareto front, ascending in parameters"], rows)


def reruns(records: Path) -> list[str]:
    """Runs repeated on another CPU (`--rerun`): mean losses, and the largest change of one run."""
    kept, made = (StudyRecords(folder, PLANS[0].stem).runs for folder in (records, records / "rerun"))
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for mark, record in made.items():
        losses = kept[mark].metrics["loss"], record.metrics["loss"]
        pairs.setdefault((record.group.partition(": ")[2], record.label), []).append(losses)
    rows = []
    for (task, label), found in pairs.items():
        before, after = (sum(side) / len(found) for side in zip(*found, strict=True))
        apart = 100 * max(abs(y / x - 1) for x, y in found)
        rows.append([task, label, str(len(found)), f"{before:.3f}", f"{after:.3f}", f"{apart:.1f}%"])
    return table(["task", "method", "seeds", "loss", "rerun", "largest change of a run"], rows)


def times(records: Path) -> list[str]:
    """What a training step of every arm costs, relative to LoRA r=8, from `benchmarks.step_times`."""
    rows = harness.read(records / "breadth-times.jsonl")
    machine, steps = rows[0], {row["arm"]: row for row in rows if row["kind"] == "step"}
    shape = steps[LARGE]

    def ratio(row: dict[str, Any], key: str) -> str:
        return f"{row['timing'][key] / shape['timing'][key]:.2f}"

    cells = [[arm, ratio(row, "min_ms"), ratio(row, "median_ms")] for arm, row in steps.items()]
    cells.sort(key=lambda row: float(row[1]))
    where = f"{shape['batch']} rows of {shape['length']} tokens, SmolLM2-135M, {machine['cpu']}, {machine['threads']} thread"
    return [
        f"{where}; LoRA r=8 takes {shape['timing']['min_ms'] / 1e3:.2f} s:",
        "",
        *table(["a training step / LoRA r=8's", "minimum", "median"], cells),
    ]


SUMMARY = (  # arms of the answer: after LoRA r=8 those of at most SHARE of its parameters; controls follow the adapter with circuit
    LARGE,
    SMALL,
    "QTHA",
    "QTHA without circuit",
    WIDE,
    "one-sided LoRA with circuit",
    "one-sided LoRA with MLP",
    OURS,
    ROTATED,
)
CIRCUITS = ("QTHA", WIDE, "one-sided LoRA with circuit")
SHOWN = {WIDE: "QTHA, wider bonds"}  # the answer's column of sizes has the percentage


def relative_losses(found: Sequence[Case], label: str) -> list[Estimate | None]:
    """An arm's loss minus that of LoRA r=8 in % of the latter, per case: mean and 95% t interval of the paired difference.

    None where the arm was not run; without interval for LoRA r=8 itself. The search is left out: its test rows ranked candidates.
    """
    told: list[Estimate | None] = []
    for case in found:
        line, base = case.lines.get(label), case.lines[LARGE]
        if line is None:
            told.append(None)
        elif line is base:
            told.append(Estimate(0.0, None, len(base.runs)))
        else:
            difference = paired_differences([(line, base)])[0].difference
            scale = 100 / base.loss.mean
            half = None if difference.half_width is None else scale * difference.half_width
            told.append(Estimate(100 * (line.loss.mean / base.loss.mean - 1), half, difference.n))
    return told


def without_search(found: Sequence[Case]) -> list[Case]:
    """The cases whose test rows chose nothing."""
    return [case for case in found if "search" not in case.name]


def answer(found: Sequence[Case]) -> list[str]:
    """The table of the answer: size and loss relative to LoRA r=8 of the arms of SUMMARY, bold where the interval excludes 0."""
    shown = without_search(found)
    rows = []
    for label in SUMMARY[1:]:
        cells = []
        for told in relative_losses(shown, label):
            certain = told is not None and told.half_width is not None and abs(told.mean) > told.half_width
            text = "not run" if told is None else f"{told.mean:+.1f}%"
            cells.append(f"**{text}**" if certain else text)
        rows.append([SHOWN.get(label, label), "yes" if label in CIRCUITS else "no", _share(label, found), *cells])
    return table(["adapter", "circuit", "parameters, of LoRA r=8", *(case.name for case in shown)], rows)


def summary(found: Sequence[Case], file: Path) -> None:
    """Loss of a few arms relative to LoRA r=8, with 95% t intervals of the paired difference, and the goal's corner."""
    shown = without_search(found)
    goal = 100 * (plots.GOAL_LOSS - 1)
    with drawing(LIGHT):
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=130)
        figure.suptitle("No circuit is measurably better than its best control; adapters on other layers beat LoRA r=8")
        marks: dict[str, Any] = {}
        for axes, case in zip(figure.subplots(1, len(shown)), shown, strict=True):
            for height, label in enumerate(SUMMARY):
                (told,) = relative_losses([case], label)
                if told is None:
                    axes.text(0, height, "not run", color=LIGHT.muted, fontsize=8, ha="center", backgroundcolor=LIGHT.paper)
                    continue
                kind = f"{'with' if label in CIRCUITS else 'without'} a circuit, 95% interval"
                color, marker = (LIGHT.palette[1], "s") if label in CIRCUITS else (LIGHT.palette[0], "o")
                marks[kind] = axes.errorbar(told.mean, height, xerr=told.half_width or 0, fmt=marker, color=color, capsize=3)
            marks["loss of LoRA r=8"] = axes.axvline(0, color=LIGHT.muted, linewidth=1, linestyle="dashed")
            left = min(axes.get_xlim()[0], 1.5 * goal)
            bottom = len(SUMMARY) - 0.5
            corner = Rectangle((left, 0.5), goal - left, bottom - 0.5, color=LIGHT.palette[2], alpha=0.15, lw=0, zorder=0)
            marks[f"goal: at most {SHARE:.0%} of LoRA r=8's parameters, {-goal:.1f}% less loss"] = axes.add_patch(corner)
            axes.axhline(0.5, color=LIGHT.palette[2], linewidth=0.8)
            axes.set_xlim(left=left)
            axes.set_title(f"{case.name}, {len(case.lines[LARGE].runs)} seeds", fontsize=9)
            names = [f"{SHOWN.get(label, label)} ({_share(label, found)})" for label in SUMMARY]
            axes.set_yticks(range(len(SUMMARY)), names if axes is figure.axes[0] else [])
            axes.set_ylim(bottom, -0.5)
            axes.set_xlabel("loss relative to LoRA r=8, %\n(left is better)", fontsize=9)
        figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=len(marks), fontsize=8, frameon=False)
        figure.savefig(file)


def _share(label: str, found: Sequence[Case]) -> str:
    """Trainable parameters in % of those of LoRA r=8 in the first case that has the arm."""
    case = next(case for case in found if label in case.lines)
    return f"{100 * case.lines[label].parameters / case.lines[LARGE].parameters:.0f}%"


def write(records: Path, docs: Path) -> None:
    """Fill the pages' tables and draw their pictures."""
    found = cases(records)
    made = {
        PAGE: {"answer": answer(found)},
        DETAILS: {
            "qtha": verdict(found, "QTHA"),
            "wide": verdict(found, WIDE),
            "ours": verdict(found, OURS),
            "rotated": verdict(found, ROTATED),
            "circuits": circuits(found),
            "fronts": fronts(found),
            "rerun": reruns(records),
        },
        TIMES: {"times": times(records)},
    }
    for page, tables in made.items():
        file = docs / page.relative_to("docs")
        text = file.read_text(encoding="utf-8")
        for name, told in tables.items():
            head, mark, rest = text.partition(f"<!-- {name} -->\n")
            text = head + mark + "\n".join(told) + rest[rest.index("<!-- end -->") :]
        file.write_text(text, encoding="utf-8")
    image = docs / "images" / f"{PAGE.stem}.png"
    plots.losses({case.name: list(case.lines.values()) for case in found}, image)
    summary(found, image.with_name(f"{image.stem}-summary.png"))


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=Path("docs/benchmarks/study"))
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder with the pages and images/")
    arguments = parser.parse_args(given)
    write(arguments.records, arguments.docs)


if __name__ == "__main__":
    main()
