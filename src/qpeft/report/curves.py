"""Loss while training: one line per arm, a band over its seeds, and its name at the end of the line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from qpeft.records import Measurement
from qpeft.report import words
from qpeft.report.style import FONT, Mark, Panel, Theme, shorten_label, spread


@dataclass(frozen=True)
class Curve:
    """Mean, lowest and highest loss over the seeds of one arm, at the steps that all of them logged."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def curve(runs: Sequence[Sequence[Measurement]]) -> Curve | None:
    """Several seeds as one curve; None when the seeds share no step."""
    values = [{point.step: point.loss for point in run} for run in runs if run]
    steps = sorted(set(values[0]).intersection(*values[1:])) if values else []
    if not steps:
        return None
    columns = [[run[step] for run in values] for step in steps]
    return Curve(steps, [fmean(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns])


def smooth(points: Sequence[Measurement], window: int, stride: int = 1) -> list[Measurement]:
    """Centred moving average of the loss over `window` (odd) points, fewer at the ends; every `stride`-th of it, the last too."""
    reach, last = window // 2, len(points) - 1
    return [
        Measurement(step=points[i].step, loss=fmean(near.loss for near in points[max(0, i - reach) : i + reach + 1]))
        for i in range(last % stride, last + 1, stride)
    ]


def panel(curves: Mapping[str, Curve], marks: Mapping[str, Mark], ylabel: str, *, labels: bool) -> Panel:
    """Axes with one curve per arm.

    Args:
        curves: mean and band of each arm, by label.
        marks: colour, dash and marker of each arm, by label.
        ylabel: label of the y axis, with its unit.
        labels: write the arms' names to the right of their curves.
    """

    def draw(axes: Any, theme: Theme) -> None:
        last = max(line.steps[-1] for line in curves.values())
        few = max(len(line.steps) for line in curves.values()) <= 30
        low, high, start = limits(list(curves.values()))
        axes.set(xlabel="Optimizer steps", ylabel=ylabel, xlim=(0, max(1, last) * 1.012), ylim=(low, high))
        axes.xaxis.get_major_locator().set_params(integer=True)
        for label, line in curves.items():
            mark, color = marks[label], marks[label].color(theme)
            band = axes.fill_between(line.steps, line.low, line.high, color=color, alpha=min(0.16, 0.6 / len(curves)), linewidth=0)
            marker = {"marker": mark.marker, "markersize": 4} if few else {}
            mark.tag(band, *axes.plot(line.steps, line.mean, color=color, linestyle=mark.dash, linewidth=1.7, **marker))
        if start is not None:
            note = f"starts at {words.number(start)}, above this plot"
            axes.annotate(
                note,
                (0, 0),
                (5, 5),
                xycoords="axes fraction",
                textcoords="offset points",
                size=8,
                color=theme.muted,
                ha="left",
                va="bottom",
            )
        if labels:
            _label_ends(axes, curves, marks, theme)

    width = max((len(shorten_label(label)) for label in curves), default=0) * FONT * 0.6 / 72 + 0.45
    return Panel(4.4, width if labels else 0.0, len(curves) if labels else 0, draw)


def limits(curves: Sequence[Curve]) -> tuple[float, float, float | None]:
    """Lower and upper end of the loss axis, and the loss at the start where that is cut off.

    The first fall of the loss can dwarf the differences between arms. When it takes more than two thirds of the axis and there
    are arms to compare, its upper part is cut off. A run that diverged cannot stretch the axis beyond twice the fall, measured
    from the start or, where training loss is noisy and starts low, from what three quarters of all points stay below.
    """
    last = max(line.steps[-1] for line in curves)
    low, top = min(min(line.low) for line in curves), max(max(line.high) for line in curves)
    start = fmean(line.mean[0] for line in curves)
    means = sorted(mean for line in curves for mean in line.mean)
    usual = max(start, means[3 * (len(means) - 1) // 4])
    if usual > low:
        top = min(top, 2 * usual - low)
    late = [high for line in curves for step, high in zip(line.steps, line.high, strict=True) if step >= 0.15 * last]
    settled = min(max(late), top) - low
    few = max(len(line.steps) for line in curves) < 4  # with so few points a cut leaves nothing but steep lines
    if len(curves) > 1 and not few and start - low > 3 * settled > 0:
        return low - 0.1 * settled, low + 2 * settled, start
    pad = 0.06 * (top - low) or 0.05 * abs(top) or 1.0
    return low - pad, top + pad, None


def _label_ends(axes: Any, curves: Mapping[str, Curve], marks: Mapping[str, Mark], theme: Theme) -> None:
    """Each arm's name to the right of the axes, at the height of the end of its curve where there is room."""
    figure = axes.get_figure()
    frame = axes.get_window_extent()
    ends = [axes.transData.transform((line.steps[-1], line.mean[-1])) for line in curves.values()]
    heights = [min(max(y, frame.y0), frame.y1) for _, y in ends]
    gap = min(FONT * 1.45 * figure.dpi / 72, frame.height / max(1, len(curves)))
    inch = figure.dpi / frame.width
    for (label, line), y in zip(curves.items(), spread(heights, gap, frame.y0, frame.y1), strict=True):
        mark, color = marks[label], marks[label].color(theme)
        level = (y - frame.y0) / frame.height
        end = (line.steps[-1], min(max(line.mean[-1], axes.get_ylim()[0]), axes.get_ylim()[1]))
        leader = {"arrowstyle": "-", "color": color, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
        line_to = axes.annotate(
            "", end, (1 + 0.24 * inch, level), textcoords="axes fraction", arrowprops=leader, annotation_clip=False
        )
        points = axes.plot(
            [1 + 0.27 * inch], [level], mark.marker, color=color, markersize=5, transform=axes.transAxes, clip_on=False
        )
        name = axes.text(1 + 0.36 * inch, level, shorten_label(label), transform=axes.transAxes, size=FONT, va="center_baseline")
        mark.tag(line_to.arrow_patch, *points, name)
