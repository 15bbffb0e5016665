"""Held-out metric against trainable parameters: a point per arm, its interval, its seeds, and the Pareto front of the means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from qpeft.report import words
from qpeft.report.sections import ComparableRuns
from qpeft.report.statistics import Estimate, direction, pareto
from qpeft.report.style import Box, Mark, Name, Panel, Theme, name_points, shorten_label
from qpeft.report.tables import ArmSummary, best


def drawable(arms: Sequence[ArmSummary], metric: str) -> list[ArmSummary]:
    """The arms that have a place in the plot: the metric, and parameters to put on a logarithmic axis."""
    return [arm for arm in arms if metric in arm.after and arm.trainable_parameters > 0]


def panel(section: ComparableRuns, arms: Sequence[ArmSummary], metric: str, marks: Mapping[str, Mark]) -> Panel:
    """Axes with one point for each drawable arm.

    Args:
        section: the runs to compare.
        arms: summaries of its arms.
        metric: name of the metric.
        marks: colour, dash and marker of each arm, by label.
    """
    shown = drawable(arms, metric)
    seeds = {arm.label: list(arm.values(metric).values()) for arm in section.arms}

    def draw(axes: Any, theme: Theme) -> None:
        sizes = [arm.trainable_parameters for arm in shown]
        margin = max(1.6 if len(set(sizes)) > 1 else 3.0, (max(sizes) / min(sizes)) ** 0.12)
        details = [words.unit(metric), {-1: "lower is better", 1: "higher is better", 0: ""}[direction(metric)]]
        axes.set(
            xscale="log",
            xlim=(min(sizes) / margin, max(sizes) * margin),
            ylim=extent([value for arm in shown for value in seeds[arm.label]], [arm.after[metric] for arm in shown]),
            xlabel="Trainable parameters (log scale)",
            ylabel=f"{words.metric_name(metric)} ({', '.join(filter(None, details))})".removesuffix(" ()"),
        )
        round_ticks(axes)
        taken = _draw_front(axes, shown, metric, theme) if len(shown) > 2 and direction(metric) else []
        for arm in shown:
            taken += _draw_point(axes, arm, seeds[arm.label], metric, marks[arm.label], theme)
        names = []
        for arm in shown:
            mark, mean = marks[arm.label], arm.after[metric].mean
            names.append(Name(shorten_label(arm.label), arm.trainable_parameters, mean, mark.color(theme), mark))
        name_points(axes, names, taken, theme)

    return Panel(5.4, 0.0, 0, draw)


def front(arms: Sequence[ArmSummary], metric: str) -> list[ArmSummary]:
    """The arms that no other equals or beats in both parameters and mean metric, ascending in parameters."""
    sizes, means = [arm.trainable_parameters for arm in arms], [arm.after[metric].mean for arm in arms]
    return [arms[i] for i in pareto(sizes, means, direction(metric))]


def extent(values: Sequence[float], estimates: Sequence[Estimate]) -> tuple[float, float]:
    """An axis that holds all values, and the intervals as far as they do not stretch it by more than its size on either side.

    Args:
        values: the values of single seeds, at least one.
        estimates: means with their intervals, at least one.

    Returns:
        Lower and upper end.
    """
    low, high = min(values), max(values)
    size = high - low or 0.02 * abs(high) or 1.0
    bottom = max(min(estimate.low for estimate in estimates), low - size)
    top = min(max(estimate.high for estimate in estimates), high + size)
    return min(low, bottom) - 0.12 * size, max(high, top) + 0.12 * size


def title(arms: Sequence[ArmSummary], metric: str) -> str:
    """Title of the plot: the best mean, and the number of arms that are not separated from it.

    Args:
        arms: summaries of the arms.
        metric: name of the metric.
    """
    name, top = words.metric_name(metric), best(arms, metric)
    if top is None:
        return f"{name} against trainable parameters"
    after, others = top.after[metric], [arm.after[metric] for arm in arms if arm is not top and metric in arm.after]
    text = f"Best mean {name[:1].lower()}{name[1:]}: {shorten_label(top.label)}, {words.number(after.mean)}"
    text += f" with {words.compact(top.trainable_parameters)} parameters"
    overlapping = [after.overlaps(other) for other in others]
    if None in overlapping:
        return f"{text} ({'one seed' if after.half_width is None else 'an arm has one seed'}: no ranking)"
    if len(others) == 1:
        return f"{text}; the two intervals {'overlap' if overlapping[0] else 'do not overlap'}"
    return f"{text}; {sum(map(bool, overlapping)) or 'none'} of the {len(others)} other intervals overlap with its own"


def legend(section: ComparableRuns, arms: Sequence[ArmSummary], metric: str) -> str:
    """Legend text: points, bars, dots and line; values that are cut off or not drawn.

    Args:
        section: the runs to compare.
        arms: summaries of its arms.
        metric: name of the metric.
    """
    shown = drawable(arms, metric)
    estimates, counts = [arm.after[metric] for arm in shown], sorted({arm.after[metric].n for arm in shown})
    text = "Points: one seed, no interval."
    if counts != [1]:
        number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        text = f"Points: mean over {number} seeds; bars: 95% t interval; small dots: single seeds."
        low, high = extent([value for arm in section.arms for value in arm.values(metric).values()], estimates)
        if any(estimate.low < low or estimate.high > high for estimate in estimates):
            text += " Bars that leave the plot are longer than shown."
    if len(shown) > 2 and direction(metric):
        text += " Grey line: Pareto front of the means."
    frozen = [shorten_label(arm.label) for arm in arms if metric in arm.after and arm not in shown]
    return text + (f" Not drawn, no trainable parameters: {words.listing(frozen)}." if frozen else "")


def _draw_front(axes: Any, arms: Sequence[ArmSummary], metric: str, theme: Theme) -> list[Box]:
    """Staircase along the Pareto front; returns the pixels it covers."""
    steps = [(float(arm.trainable_parameters), arm.after[metric].mean) for arm in front(arms, metric)]
    right, worst = axes.get_xlim()[1], axes.get_ylim()[1 if direction(metric) < 0 else 0]
    corners = [(steps[0][0], worst)]
    for x, y in steps:
        corners += [(x, corners[-1][1]), (x, y)]
    corners.append((right, corners[-1][1]))
    axes.plot(*zip(*corners, strict=True), color=theme.muted, linewidth=1.1, alpha=0.75, zorder=1)
    pixels = [axes.transData.transform(corner) for corner in corners]
    return [(min(a[0], b[0]) - 1, min(a[1], b[1]) - 1, max(a[0], b[0]) + 1, max(a[1], b[1]) + 1) for a, b in pairwise(pixels)]


def _draw_point(axes: Any, arm: ArmSummary, seeds: Sequence[float], metric: str, mark: Mark, theme: Theme) -> list[Box]:
    """The mean as the arm's marker with its interval, its seeds as small dots to the left; returns the pixels they cover."""
    from matplotlib.transforms import ScaledTranslation

    x, after, color = arm.trainable_parameters, arm.after[metric], mark.color(theme)
    (px, top), (_, centre), (_, bottom) = (axes.transData.transform((x, value)) for value in (after.high, after.mean, after.low))
    covered = [(px - 6.0, centre - 6.0, px + 6.0, centre + 6.0)]
    if after.half_width is not None:
        _, caps, bars = axes.errorbar(x, after.mean, yerr=after.half_width, color=color, linewidth=1.3, capsize=3, zorder=2)
        mark.tag(*caps, *bars)
        moved = axes.transData + ScaledTranslation(-0.085, 0, axes.get_figure().dpi_scale_trans)
        dots = axes.plot(
            [x] * len(seeds), seeds, "o", color=color, alpha=0.5, markersize=2.8, zorder=2, markeredgewidth=0, transform=moved
        )
        mark.tag(*dots)
        covered.append((px - 10.0, bottom, px + 4.0, top))
    points = axes.plot(
        [x], [after.mean], mark.marker, color=color, markersize=7.5, zorder=3, markeredgecolor=theme.paper, markeredgewidth=0.8
    )
    mark.tag(*points)
    return covered


def round_ticks(axes: Any) -> None:
    """Ticks at 1, 2 and 5 times powers of ten when the axis is short, at powers of ten when it is long; written 2k, 1M."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,), numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.compact(value)))
    axes.xaxis.set_minor_locator(NullLocator() if decades < 2.5 else LogLocator(subs=(2, 5), numticks=40))
    axes.xaxis.set_minor_formatter(NullFormatter())
