"""The figures of a section: loss curves, held-out metrics against trainable parameters, and both side by side (the hero)."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from qpeft.report import curves, tradeoff, words
from qpeft.report.sections import ComparableRuns
from qpeft.report.statistics import direction
from qpeft.report.style import LIGHT, Mark, Panel, drawing
from qpeft.report.svg import page_svg
from qpeft.report.tables import ArmSummary, summaries

_LEFT, _RIGHT, _TOP, _BOTTOM = 0.85, 0.3, 0.3, 0.62  # inches around the axes
_DPI = 160


@dataclass(frozen=True)
class Plot:
    """One figure: `name` (file stem), `title` and `caption` in words, PNG bytes, and SVG for a page of either theme (see `svg`)."""

    name: str
    title: str
    caption: str
    png: bytes
    svg: str


def plots(section: ComparableRuns, marks: Mapping[str, Mark]) -> list[Plot]:
    """The figures that the section's records can fill, the hero first: curves for any arm, points for two arms or more.

    Args:
        section: the runs to compare.
        marks: colour, dash and marker of each arm, by label.
    """
    arms = [arm for arm in section.arms if arm.finished]
    numbers = [summary for summary in summaries(section) if summary.seeds]
    longest = max((len(run.train_curve) for arm in arms for run in arm.finished), default=0)
    window, stride = max(1, longest // 12) | 1, max(1, longest // 200)
    held_out, training = {}, {}
    for arm in arms:
        if line := curves.curve([run.eval_curve for run in arm.finished]):
            held_out[arm.label] = line
        if line := curves.curve([curves.smooth(run.train_curve, window, stride) for run in arm.finished]):
            training[arm.label] = line

    if training and held_out and max(len(line.steps) for line in held_out.values()) < 3:
        held_out = {}  # two points are no curve; the title has them, and the points of the trade-off
        ends_only = " Held-out loss was measured before and after training only."
    else:
        ends_only = ""
    panels, result = [], []
    if training:
        panels.append(curves.panel(training, marks, "Training loss (nats/token)", labels=not held_out))
    if held_out:
        panels.append(curves.panel(held_out, marks, "Held-out loss (nats/token)", labels=True))
    lines = (
        "mean over seeds, band from the lowest to the highest seed" if any(len(arm.seeds) > 1 for arm in numbers) else "one seed"
    )
    if panels:
        smoothed = f" Training loss: moving average over {window:,} logged points." if training and window > 1 else ""
        result.append(_figure("curves", _fall(numbers), f"Lines: {lines}.{smoothed}{ends_only}", panels))
    for metric in section.metrics:
        if (metric == "loss" or (direction(metric) > 0 and metric != "token_accuracy")) and len(
            tradeoff.drawable(numbers, metric)
        ) > 1:
            name = "tradeoff" if metric == "loss" else "tradeoff-" + "".join(c if c.isalnum() else "-" for c in metric.lower())
            title, legend = tradeoff.title(numbers, metric), tradeoff.legend(section, numbers, metric)
            points = tradeoff.panel(section, numbers, metric, marks)
            result.append(_figure(name, title, legend, [points]))
            if metric == "loss" and panels:
                result.insert(0, _figure("hero", title, f"Lines: {lines}. {legend}", [panels[-1], points]))
    return result


def _figure(name: str, title: str, caption: str, panels: Sequence[Panel]) -> Plot:
    """Panels side by side under a title and a caption, as tall as the most labels need that stand above one another."""
    inner = [7.4] if len(panels) == 1 else [panel.width for panel in panels]
    widths = [_LEFT + axes_width + panel.label_width + _RIGHT for axes_width, panel in zip(inner, panels, strict=True)]
    width, height = sum(widths), max(3.7, 0.2 + 0.19 * max(panel.label_rows for panel in panels))
    head = textwrap.wrap(title, int(width * 8.7), max_lines=2, placeholder=" …")
    body = textwrap.wrap(caption, int(width * 14), max_lines=3, placeholder=" …")
    words_height = 0.2 + 0.25 * len(head) + 0.18 * len(body)
    total = words_height + _TOP + height + _BOTTOM
    theme, files = LIGHT, {}
    for kind in ("png", "svg"):
        with drawing(theme):
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure

            figure = Figure(figsize=(width, total), dpi=100)
            FigureCanvasAgg(figure)
            left = 0.0
            for panel, axes_width, panel_width in zip(panels, inner, widths, strict=True):
                axes = figure.add_axes(((left + _LEFT) / width, _BOTTOM / total, axes_width / width, height / total))
                axes.tick_params(length=3)
                panel.draw(axes, theme)
                left += panel_width
            figure.text(0.2 / width, 1 - 0.2 / total, "\n".join(head), size=13, weight="bold", va="top", linespacing=1.25)
            below = 1 - (0.25 + 0.25 * len(head)) / total
            figure.text(0.2 / width, below, "\n".join(body), size=9, color=theme.muted, va="top", linespacing=1.35)
            if kind == "svg":  # a page draws the halo of its text by CSS; as paths it would take half the file
                for text in figure.findobj(lambda artist: hasattr(artist, "get_text")):
                    text.set_path_effects([])
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, dpi=_DPI, metadata={"Software": None} if kind == "png" else {"Date": None})
            files[kind] = stream.getvalue()
    return Plot(name, title, caption, files["png"], page_svg(files["svg"].decode()))


def _fall(numbers: Sequence[ArmSummary]) -> str:
    """Title of the curves: where the held-out loss starts and ends."""
    ends = [arm.after["loss"].mean for arm in numbers if "loss" in arm.after]
    before = [arm.before["loss"] for arm in numbers if "loss" in arm.before]
    if not ends:
        return "Loss while training"
    end = words.number(ends[0]) if len(ends) == 1 else f"{words.number(min(ends))} to {words.number(max(ends))}"
    return (
        f"Held-out loss: {words.number(fmean(before))} before training, {end} after"
        if before
        else f"Held-out loss after training: {end}"
    )
