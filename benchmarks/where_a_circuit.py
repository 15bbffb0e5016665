"""Tables and pictures of `docs/benchmarks/where-a-circuit-could-matter.md` from records: `python -m benchmarks.where_a_circuit`.

The records are those of `benchmarks.recovery`, `benchmarks.blocks_on_chip` and `benchmarks.few_shot`.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import few_shot, harness, recovery
from benchmarks.blocks_on_chip import PLACES, READINGS, SHOTS
from qpeft.report.statistics import MIN_SEEDS, PairedDifference, corrected, estimate, paired_difference
from qpeft.report.style import LIGHT, drawing, marks
from qpeft.study.page import table

ROOT = Path(__file__).parents[1]
FOLDER, IMAGES = ROOT / "docs" / "benchmarks", ROOT / "docs" / "images"
PAGE = FOLDER / "where-a-circuit-could-matter.md"
Lines = list[dict[str, Any]]


def _read(name: str) -> Lines:
    file = FOLDER / name
    return harness.read(file) if file.exists() else []


def _p(row: PairedDifference) -> str:
    return "-" if row.p_holm is None else f"{row.p_holm:.2g}"


def _interval(row: PairedDifference, digits: int = 3) -> str:
    low, high = row.difference.low, row.difference.high
    return f"{row.difference.mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def mend_values(lines: Lines, arm: str) -> list[float]:
    """The held-out losses of an arm, in order of seeds."""
    return [x["loss"] for x in sorted(lines, key=lambda x: x["seed"]) if (x["kind"], x["arm"]) == ("test", arm)]


def mend_done(lines: Lines) -> bool:
    """Whether every run is there."""
    return all(len(mend_values(lines, arm)) == len(recovery.SEEDS) for arm in recovery.ARMS)


def frame_of(lines: Lines) -> dict[str, float]:
    """The losses of the model before compression and of the compressed one."""
    return {name: next(x["loss"] for x in lines if x["kind"] == name) for name in ("before compression", "compressed")}


def tuned_table(lines: Lines) -> list[str]:
    """While runs are missing: the best loss on validation rows of every arm so far."""
    rows = []
    for arm in recovery.ARMS:
        tried = [(x["loss"], x["rate"]) for x in lines if (x["kind"], x["arm"]) == ("tuning", arm)]
        if tried:
            rows.append([arm, f"{min(tried)[1]:g} of {len(tried)}", f"{min(tried)[0]:.3f}"])
    if not rows:
        return ["No run yet."]
    frame = frame_of(lines)
    head = ["adapter, tuning alone", "best learning rate so far", "validation loss, one seed"]
    told = f"On test rows: compressed model {frame['compressed']:.3f}, before compression {frame['before compression']:.3f}."
    return [*table(head, rows), f"No seed has been run yet, so arms do not compare. {told}"]


def mend_table(lines: Lines) -> list[str]:
    """Loss of every arm, the share of the compression's cost that it recovers, and its difference to Cayley blocks of 4."""
    if not mend_done(lines):
        return tuned_table(lines)
    frame, ours = frame_of(lines), mend_values(lines, recovery.CAYLEY)
    others = [arm for arm in recovery.ARMS if arm != recovery.CAYLEY]
    compared = corrected([paired_difference(recovery.CAYLEY, ours, arm, mend_values(lines, arm)) for arm in others])
    by_arm = {row.reference: row for row in compared}
    rows = []
    for arm in sorted(recovery.ARMS, key=lambda arm: estimate(mend_values(lines, arm)).mean):
        run = next(x for x in lines if (x["kind"], x["arm"]) == ("test", arm))
        tried = sum((x["kind"], x["arm"]) == ("tuning", arm) for x in lines)
        loss, row = estimate(mend_values(lines, arm)), by_arm.get(arm)
        share = (frame["compressed"] - loss.mean) / (frame["compressed"] - frame["before compression"])
        cells = [arm, f"{run['parameters']:,}", f"{run['rate']:g} of {tried}", f"{loss.mean:.3f} ± {loss.half_width or 0:.3f}"]
        rows.append([*cells, f"{share:.1%}", "" if row is None else _interval(row), "" if row is None else _p(row)])
    head = ["adapter", "parameters", "learning rate, of how many tried", "held-out loss, nats/token", "recovered"]
    head += [f"{recovery.CAYLEY} minus it", "p, Holm"]
    return [
        *table(head, rows),
        f"Compressed model {frame['compressed']:.3f}, before compression {frame['before compression']:.3f}.",
    ]


def mend_picture(lines: Lines, file: Path) -> None:
    """Loss of every arm with its seeds, next to the compressed model's."""
    look, frame = marks(recovery.ARMS), frame_of(lines)
    order = sorted(recovery.ARMS, key=lambda arm: -estimate(mend_values(lines, arm)).mean)
    with drawing(LIGHT):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.5, 3.2), layout="constrained", dpi=130)
        axes = figure.subplots()
        for at, arm in enumerate(order):
            values = mend_values(lines, arm)
            loss = estimate(values)
            style: dict[str, Any] = {"color": look[arm].color(LIGHT), "marker": look[arm].marker}
            axes.errorbar(loss.mean, at, xerr=loss.half_width, capsize=3, **style)
            axes.plot(values, [at - 0.25] * len(values), linestyle="none", markersize=3, alpha=0.7, **style)
        axes.set_yticks(range(len(order)), order)
        axes.set_ylim(-0.6, len(order) - 0.4)
        for name, loss_there in frame.items():
            axes.axvline(loss_there, color=LIGHT.muted, linestyle="--", linewidth=1)
            axes.annotate(name, (loss_there, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
        axes.set_xlabel("held-out loss (nats/token), lower is better; bars: 95% interval of the mean, small marks: seeds")
        cost = frame["compressed"] - frame["before compression"]
        shares = [(frame["compressed"] - estimate(mend_values(lines, arm)).mean) / cost for arm in recovery.ARMS]
        title = f"6,000 parameters of any kind recover {min(shares):.0%} to {max(shares):.0%} of what compression cost"
        figure.suptitle(title, fontsize=10)
        figure.savefig(file)


def chip_done(chip: Lines) -> bool:
    """Whether every measurement is there."""
    wanted = {(p, s, r) for p, s, r in itertools.product(PLACES, SHOTS, READINGS) if (p, s) != ("simulator", None)}
    return wanted <= {(x["place"], x["shots"], x["reading"]) for x in chip}


def chip_table(chip: Lines) -> list[str]:
    """Loss with blocks as they were measured."""
    if not chip_done(chip):
        return ["No run yet."]
    exact, none = (next(x for x in chip if x["place"] == place) for place in ("exact", "no blocks"))

    def cells(name: str, shots: str, reading: str, line: dict[str, Any]) -> list[str]:
        kept = (none["loss"] - line["loss"]) / (none["loss"] - exact["loss"])
        chip_s = f"{line['chip_s']:,.0f} s" if "chip_s" in line else "-"
        return [name, shots, reading, f"{line['error']:.3f}", f"{line['loss']:.3f}", f"{kept:.0%}", chip_s]

    rows = [cells("exact blocks", "-", "-", exact)]
    for place, shots, reading in itertools.product(PLACES, SHOTS, READINGS):
        told = f"{shots:,}" if shots else "exact outcomes"
        mine = [x for x in chip if (x["place"], x["shots"], x["reading"]) == (place, shots, reading)]
        rows += [cells(PLACES[place], told, reading, line) for line in mine]
    rows.append(cells("no blocks", "-", "-", none))
    return table(
        ["blocks", "shots per circuit", "reading", "RMSE of an entry", "held-out loss, nats/token", "gain kept", "chip time"], rows
    )


def chip_picture(chip: Lines, lines: Lines, file: Path) -> None:
    """Loss against shots; exact blocks, the other arms of the same seed and the compressed model as lines."""
    look = marks(PLACES.values())
    with drawing(LIGHT):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.5, 4.4), layout="constrained", dpi=130)
        axes = figure.subplots()
        for (place, name), reading in itertools.product(PLACES.items(), READINGS):
            mine = {x["shots"]: x["loss"] for x in chip if (x["place"], x["reading"]) == (place, reading)}
            points = [(at, mine[shots]) for at, shots in enumerate(SHOTS) if shots in mine]
            dash = "-" if reading == READINGS[1] else ":"
            style: dict[str, Any] = {"color": look[name].color(LIGHT), "marker": look[name].marker, "linestyle": dash}
            axes.plot(*zip(*points, strict=True), label=f"{name}, {reading}", **style)
        axes.set_xticks(range(len(SHOTS)), [f"{shots:,}" if shots else "exact" for shots in SHOTS])
        seed = chip[0]["seed"]
        exact = {f"{arm}, exact": mend_values(lines, arm)[seed] for arm in recovery.ARMS}
        exact["compressed, no adapter"] = frame_of(lines)["compressed"]
        for loss in exact.values():
            axes.axhline(loss, color=LIGHT.muted, linestyle="--", linewidth=0.8)
        told = "\n".join(f"{loss:.3f} {label}" for label, loss in sorted(exact.items(), key=lambda pair: -pair[1]))
        axes.set_xlim(-0.2, len(SHOTS) + 0.5)
        box = {"facecolor": LIGHT.paper, "edgecolor": "none", "pad": 2}
        axes.annotate(
            f"dashed lines:\n{told}", (0.995, 0.5), xycoords="axes fraction", fontsize=7.5, ha="right", va="center", bbox=box
        )
        axes.set(xlabel="shots per circuit", ylabel="held-out loss (nats/token)")
        gain = exact["compressed, no adapter"] - exact[f"{recovery.CAYLEY}, exact"]
        fewest = [x["loss"] for x in chip if (x["place"], x["shots"]) == (list(PLACES)[-1], SHOTS[0])]
        kept = (exact["compressed, no adapter"] - max(fewest)) / gain
        title = f"Blocks measured with {SHOTS[0]:,} shots per circuit on the emulated chip keep {kept:.0%} of their gain"
        figure.suptitle(title, fontsize=10)
        figure.legend(fontsize=8, loc="outside lower center", ncol=2)
        figure.savefig(file)


def few_seeds(lines: Lines) -> list[int]:
    """The seeds of which every arm is finished at every size."""
    done = {(x["arm"], x["size"], x["seed"]) for x in lines if x["kind"] == "test"}
    pairs = list(itertools.product(few_shot.ARMS, few_shot.SIZES))
    return [seed for seed in few_shot.SEEDS if all((*pair, seed) in done for pair in pairs)]


def few_values(lines: Lines, arm: str, size: int, metric: str) -> list[float]:
    """A metric of an arm's runs on test rows, in order of the finished seeds."""
    mine = {x["seed"]: x[metric] for x in lines if (x["kind"], x["arm"], x["size"]) == ("test", arm, size)}
    return [mine[seed] for seed in few_seeds(lines)]


def few_rows(lines: Lines, metric: str) -> dict[tuple[str, int], PairedDifference]:
    """The circuit minus every other arm at every size, Holm over all of them."""
    others = [arm for arm in few_shot.ARMS if arm != "circuit"]
    keys = [(arm, size) for size in few_shot.SIZES for arm in others]
    rows = [
        paired_difference("circuit", few_values(lines, "circuit", size, metric), arm, few_values(lines, arm, size, metric))
        for arm, size in keys
    ]
    return dict(zip(keys, corrected(rows), strict=True))


def few_table(lines: Lines) -> list[str]:
    """Accuracy and loss of every arm at every size, and the circuit's differences."""
    if len(few_seeds(lines)) < MIN_SEEDS:
        return [f"{len(few_seeds(lines))} of {len(few_shot.SEEDS)} seeds are finished. Below {MIN_SEEDS} no comparison is made."]
    by = {metric: few_rows(lines, metric) for metric in ("accuracy", "loss")}
    rows = []
    for size, arm in itertools.product(few_shot.SIZES, few_shot.ARMS):
        mine = [x for x in lines if (x["kind"], x["arm"], x["size"]) == ("test", arm, size)]
        right, loss = (estimate(few_values(lines, arm, size, metric)) for metric in ("accuracy", "loss"))
        cells = [str(size), arm, f"{mine[0]['parameters']:,}", f"{mine[0]['rate']:g}"]
        cells += [f"{right.mean:.3f} ± {right.half_width or 0:.3f}", f"{loss.mean:.3f} ± {loss.half_width or 0:.3f}"]
        for metric in ("accuracy", "loss"):
            row = by[metric].get((arm, size))
            cells += ["", ""] if row is None else [_interval(row), _p(row)]
        rows.append(cells)
    head = ["rows", "adapter", "parameters", "learning rate", "accuracy", "loss"]
    head += ["circuit minus it, accuracy", "p, Holm", "circuit minus it, loss", "p, Holm"]
    untouched = next(line for line in lines if line["kind"] == "untouched")
    done = f"{len(few_seeds(lines))} of {len(few_shot.SEEDS)} registered seeds are finished."
    return [*table(head, rows), f"Untouched model: accuracy {untouched['accuracy']:.3f}, loss {untouched['loss']:.3f}. {done}"]


def few_picture(lines: Lines, file: Path) -> None:
    """Accuracy and loss against training rows."""
    look = marks(few_shot.ARMS)
    untouched = next(line for line in lines if line["kind"] == "untouched")
    with drawing(LIGHT):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4), layout="constrained", dpi=130)
        for axes, (metric, title) in zip(
            figure.subplots(1, 2),
            {"accuracy": "accuracy, 128 test rows", "loss": "held-out loss (nats/answer)"}.items(),
            strict=True,
        ):
            for number, arm in enumerate(few_shot.ARMS):
                told = [estimate(few_values(lines, arm, size, metric)) for size in few_shot.SIZES]
                at = [k + 0.06 * (number - 1.5) for k in range(len(few_shot.SIZES))]
                style: dict[str, Any] = {"color": look[arm].color(LIGHT), "marker": look[arm].marker, "label": arm}
                axes.errorbar(at, [x.mean for x in told], yerr=[x.half_width for x in told], capsize=3, **style)
            axes.set_xticks(range(len(few_shot.SIZES)), [str(size) for size in few_shot.SIZES])
            axes.axhline(untouched[metric], color=LIGHT.muted, linestyle="--", linewidth=1, label="untouched model")
            axes.set(xlabel="training rows", ylabel=title)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncol=4)
        ahead = [
            row
            for row in few_rows(lines, "accuracy").values()
            if row.p_holm is not None and row.p_holm < 0.05 and row.difference.mean > 0
        ]
        verdict = f"ahead in {len(ahead)}" if ahead else "not ahead in any"
        title = f"The circuit is {verdict} of {len(few_shot.SIZES) * (len(few_shot.ARMS) - 1)} comparisons of accuracy"
        figure.suptitle(f"{title} (mean over {len(few_seeds(lines))} seeds, 95% intervals)", fontsize=10)
        figure.savefig(file)


def fill(text: str, name: str, lines: Sequence[str]) -> str:
    """The page with what stands between `<!-- name -->` and `<!-- end -->` replaced."""
    body = "\n".join(lines).strip()
    return re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{body}\n{m[2]}", text, count=1, flags=re.DOTALL)


def write(page: Path, images: Path) -> None:
    """Fill the page's tables, draw the pictures of what is finished and link them."""
    lines, chip, few = (_read(f"{name}.jsonl") for name in ("recovery", "blocks-on-chip", "few-shot"))
    parts = {"mend": mend_table(lines), "chip": chip_table(chip), "few": few_table(few)}
    drawn: dict[str, tuple[str, Callable[[Path], None]]] = {}
    if mend_done(lines):
        drawn["mend"] = ("Held-out loss of the mended model by adapter", lambda file: mend_picture(lines, file))
    if mend_done(lines) and chip_done(chip):
        drawn["chip"] = ("Held-out loss against shots", lambda file: chip_picture(chip, lines, file))
    if len(few_seeds(few)) >= MIN_SEEDS:
        drawn["few"] = ("Accuracy and loss against training rows", lambda file: few_picture(few, file))
    text = page.read_text(encoding="utf-8")
    for name, made in parts.items():
        if name in drawn:
            title, draw = drawn[name]
            draw(images / f"where-a-circuit-{name}.png")
            made = [f"![{title}](../images/where-a-circuit-{name}.png)", "", *made]
        text = fill(text, name, made)
    page.write_text(text, encoding="utf-8")


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--images", type=Path, default=IMAGES)
    arguments = parser.parse_args(given)
    write(arguments.page, arguments.images)


if __name__ == "__main__":
    main()
