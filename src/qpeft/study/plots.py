"""The plots of a study: loss against parameters, and differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from qpeft.report.statistics import MIN_SEEDS, PairedDifference
from qpeft.report.style import LIGHT, Box, Name, drawing, name_points
from qpeft.report.tradeoff import round_ticks
from qpeft.study.results import ArmResult, pareto_front

NAMES = {"lora": "LoRA", "classical": "classical", "quantum": "quantum(-inspired)", "control": "control", "ours": "ours"}
COLOURS = dict(zip(NAMES, (LIGHT.palette[0], LIGHT.palette[6], LIGHT.palette[1], LIGHT.palette[4], LIGHT.palette[2]), strict=True))
UNIT = "nats/token"
MOST_NAMES = 25  # in one panel
REFERENCE = "LoRA r=8"
GOAL_PARAMETERS, GOAL_LOSS = 0.24, 1 - 0.084  # of the reference's: what docs/does-it-beat-lora.md calls the goal


def losses(panels: Mapping[str, Sequence[ArmResult]], file: Path) -> None:
    """Plot loss against trained parameters: one point per method, bars for the interval where there are enough seeds, the Pareto
    front. Where methods are many, controls and variants off the front have no names.

    Methods far above the others are drawn as triangles at the upper edge, with their loss. Where LoRA r=8 is among the methods,
    its loss is a line and the goal a shaded corner.

    Args:
        panels: results of the arms, by title of the panel.
        file: picture to write.
    """
    with drawing(LIGHT):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 6.4 * len(panels)), layout="constrained", dpi=130)
        canvas = FigureCanvasAgg(figure)
        drawn = dict(zip(panels, figure.subplots(len(panels), squeeze=False)[:, 0], strict=True))
        shown = {title: [result for result in found if result.runs] for title, found in panels.items()}
        for title, axes in drawn.items():
            _losses(axes, title, shown[title])
        canvas.draw()  # where names are free is known when the axes have their places
        for title, axes in drawn.items():
            _name(axes, shown[title])
        figure.savefig(file)


def _losses(axes: Any, title: str, shown: Sequence[ArmResult]) -> None:
    low, top, bound = _range(shown)
    for kind in (kind for kind in NAMES if any(result.arm.kind == kind for result in shown)):
        mine = [result for result in shown if result.arm.kind == kind]
        heights = [_height(result, top, bound) for result in mine]
        bars = [_bar(result) if result.loss.mean <= bound else 0.0 for result in mine]
        sizes = [result.parameters for result in mine]
        order = 2 if kind == "control" else 3
        axes.plot([], [], "o", markersize=5, color=COLOURS[kind], label=NAMES[kind])
        for marker, beyond in (("o", False), ("^", True)):
            own = [(x, y) for x, y, result in zip(sizes, heights, mine, strict=True) if (result.loss.mean > bound) == beyond]
            axes.plot([x for x, _ in own], [y for _, y in own], marker, ls="", markersize=5, color=COLOURS[kind], zorder=order)
        axes.errorbar(sizes, heights, yerr=bars, fmt="none", ecolor=COLOURS[kind], alpha=0.35, capsize=2, lw=1)
    best = pareto_front(shown)
    heights = [_height(result, top, bound) for result in best]
    axes.plot([result.parameters for result in best], heights, color=LIGHT.ink, lw=0.8, ls=":", label="Pareto front")
    if any(result.loss.mean > bound for result in shown):
        axes.plot([], [], "^", markersize=5, color=LIGHT.muted, label="above the axis (loss in brackets)")
    reference = next((result for result in shown if result.arm.label == REFERENCE), None)
    if reference is not None:
        low = min(low, reference.loss.mean * GOAL_LOSS)
    space = 0.06 * (top - low) or 0.01
    axes.set(xscale="log", xlabel="trainable parameters (log scale)", ylabel=f"held-out loss, {UNIT} (lower is better)")
    axes.set_title(_point(title, shown), fontsize=10)
    axes.set_ylim(low - space, top + space)
    axes.margins(x=0.12)
    if reference is not None:
        _goal(axes, reference)
    round_ticks(axes)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=5)  # covers no point


def _point(title: str, shown: Sequence[ArmResult]) -> str:
    """The title of a panel: which method has the lowest loss, and which of the published ones of kind `quantum`."""
    best = min(shown, key=lambda result: result.loss.mean, default=None)
    if best is None:
        return title
    text = f"{title}\nlowest loss: {best.arm.label} ({best.loss.mean:.3f})"
    quantum = min((r for r in shown if r.arm.kind == "quantum"), key=lambda result: result.loss.mean, default=None)
    if quantum is None or quantum is best:
        return text
    return f"{text}; lowest published {NAMES['quantum']} method: {quantum.arm.label} ({quantum.loss.mean:.3f})"


def _goal(axes: Any, reference: ArmResult) -> None:
    """The reference's loss as a line, and the corner of the goal."""
    from matplotlib.patches import Rectangle

    left, right = axes.get_xlim()
    bottom, _ = axes.get_ylim()
    axes.axhline(reference.loss.mean, color=COLOURS["lora"], lw=0.8, ls="--", zorder=1, label=f"loss of {REFERENCE}")
    width, height = GOAL_PARAMETERS * reference.parameters - left, GOAL_LOSS * reference.loss.mean - bottom
    if width > 0 < height:
        told = f"goal: {GOAL_PARAMETERS:.0%} of its parameters, {1 - GOAL_LOSS:.1%} less loss"
        axes.add_patch(Rectangle((left, bottom), width, height, color=LIGHT.palette[2], alpha=0.08, lw=0, zorder=0, label=told))
    axes.set_xlim(left, right)


def _bar(result: ArmResult) -> float:
    return (result.loss.half_width or 0.0) if result.loss.n >= MIN_SEEDS else 0.0


def _height(result: ArmResult, top: float, bound: float) -> float:
    """Where a method is drawn: at its mean, or at the edge."""
    return result.loss.mean if result.loss.mean <= bound else top


def _range(shown: Sequence[ArmResult]) -> tuple[float, float, float]:
    """The least loss drawn and the greatest, and the mean beyond which a method sits at the edge, where bars are cut as well."""
    means = sorted(result.loss.mean for result in shown)
    bound = max(3 * means[len(means) // 2] - 2 * means[0], 2 * means[0])
    near = [result for result in shown if result.loss.mean <= bound]
    top = max(result.loss.mean + _bar(result) for result in near)
    return min(result.loss.mean - _bar(result) for result in near), min(top, bound), bound


def _name(axes: Any, shown: Sequence[ArmResult]) -> None:
    """Each method's name near its point, where it covers no other."""
    _, top, bound = _range(shown)
    best = {id(result) for result in pareto_front(shown)}
    points, names = [], []
    for result in shown:
        height = _height(result, top, bound)
        points.append(axes.transData.transform((result.parameters, height)))
        if len(shown) <= MOST_NAMES or id(result) in best or result.loss.mean > bound or not _variant(result):
            beyond = f" ({result.loss.mean:.2f})" if result.loss.mean > bound else ""
            names.append(Name(result.arm.label + beyond, result.parameters, height, COLOURS[result.arm.kind]))
    corner = axes.get_legend().get_window_extent()
    taken = [(corner.x0, corner.y0, corner.x1, corner.y1), *((x - 5, y - 5, x + 5, y + 5) for x, y in points), *_lines(axes)]
    name_points(axes, names, taken, LIGHT, size=7, joined=True)


def _lines(axes: Any) -> list[Box]:
    """Small boxes along the Pareto front, the line of LoRA r=8 and the intervals, pixels: names keep clear of them."""
    lines = [line.get_xydata() for line in axes.get_lines() if line.get_linestyle() == ":"]
    lines += [segment for bars in axes.containers for collection in bars.lines[2] for segment in collection.get_segments()]
    paths = [axes.transData.transform(line) for line in lines if len(line)]
    paths += [line.get_transform().transform(line.get_xydata()) for line in axes.get_lines() if line.get_linestyle() == "--"]
    boxes = []
    for path in paths:
        for (x0, y0), (x1, y1) in pairwise(path):
            for k in range(count := 1 + int(math.hypot(x1 - x0, y1 - y0) / 8)):
                x, y = x0 + (x1 - x0) * k / count, y0 + (y1 - y0) * k / count
                boxes.append((x - 2, y - 2, x + 2, y + 2))
    return boxes


def _variant(result: ArmResult) -> bool:
    """A control, or one change of many to another method: not named where names are many."""
    return result.arm.kind == "control" or (result.arm.of is not None and "," in result.arm.label)


def differences(rows: Sequence[PairedDifference], title: str, file: Path) -> None:
    """Plot differences of loss with their 95% intervals, one row each, grouped by the reference.

    Args:
        rows: paired differences, nats/token.
        title: title of the picture.
        file: picture to write.
    """
    groups = {name: [row for row in rows if row.reference == name] for name in dict.fromkeys(row.reference for row in rows)}
    with drawing(LIGHT):
        from matplotlib.figure import Figure

        size = (8.5, 0.6 * len(groups) + 0.3 * len(rows) + 0.8)
        figure = Figure(figsize=size, layout="constrained", dpi=130)
        heights = [len(group) + 0.6 for group in groups.values()]
        panels = figure.subplots(len(groups), squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})[:, 0]
        for (name, group), axes in zip(groups.items(), panels, strict=True):
            ordered = sorted(group, key=lambda row: row.difference.mean)
            for place, row in enumerate(ordered):
                told = row.difference
                sides = [[told.mean - told.low], [told.high - told.mean]]
                colour = LIGHT.palette[2] if told.high < 0 else LIGHT.palette[1] if told.low > 0 else LIGHT.muted
                axes.errorbar(told.mean, place, xerr=sides, fmt="o", capsize=2, color=colour)
            axes.axvline(0, color=LIGHT.ink, lw=0.8, ls=":")
            axes.set_yticks(range(len(ordered)), [row.label for row in ordered], fontsize=8)
            axes.set_ylim(len(ordered) - 0.5, -0.5)
            axes.set_title(f"vs. {name}", fontsize=9, loc="left")
        panels[-1].set_xlabel(
            f"difference of held-out loss, {UNIT}, with its 95% interval\n(left: lower, better; grey: the interval contains 0)"
        )
        lower, higher = sum(row.difference.high < 0 for row in rows), sum(row.difference.low > 0 for row in rows)
        figure.suptitle(f"{title}: {lower} of {len(rows)} changes lower the loss (green), {higher} raise it (orange)", fontsize=9)
        figure.savefig(file)
