"""Charts as inline SVG: lines, stacked bars, points. `charts.js` shows what `data-tip` holds under the cursor."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from qpeft.web.svg import Markup, element, picture

WIDTH, HEIGHT = 460.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 12.0, 10.0, 34.0
DRAWN = 400  # points of one line


@dataclass(frozen=True)
class Series:
    """One line, set of bars or set of points: `y[k]` at `x[k]`, None where nothing is known. `key` names what it belongs to."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    key: str = ""
    dashed: bool = False


def short(value: float) -> str:
    """A number for an axis: at most four characters and a unit prefix where it is large."""
    size = abs(value)
    for bound, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= bound:
            return f"{value / (1e3 if prefix == 'k' else bound):.3g}{prefix}"
    if size and size < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.4g}"


def day(moment: float) -> str:
    """Month and day, UTC."""
    return time.strftime("%m-%d", time.gmtime(moment))


def minute(moment: float) -> str:
    """Month, day, hour and minute, UTC."""
    return time.strftime("%m-%d %H:%M", time.gmtime(moment))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 5, 10) if m * scale >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass
class _Axes:
    """The frame of a chart: from values to places."""

    x0: float
    x1: float
    y0: float
    y1: float
    log_x: bool = False

    def x(self, value: float) -> float:
        if self.log_x:
            low, high = math.log10(self.x0), math.log10(self.x1)
            value = math.log10(value)
        else:
            low, high = self.x0, self.x1
        return LEFT + (WIDTH - LEFT - RIGHT) * ((value - low) / (high - low) if high > low else 0.5)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * ((value - self.y0) / (self.y1 - self.y0) if self.y1 > self.y0 else 0.5)

    def frame(self, x_label: str, y_label: str, x_text: Callable[[float], str]) -> list[str]:
        parts = []
        for value in ticks(self.y0, self.y1, 4):
            y = self.y(value)
            parts.append(element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
            parts.append(element("text", short(value), x=LEFT - 6, y=y + 4, text_anchor="end"))
        marks = _decades(self.x0, self.x1) if self.log_x else ticks(self.x0, self.x1, 5)
        marks = marks[:: max(1, math.ceil(len(marks) / 6))]
        for value in marks:
            parts.append(element("text", x_text(value), x=self.x(value), y=HEIGHT - BOTTOM + 15, text_anchor="middle"))
        bottom = HEIGHT - BOTTOM
        parts.append(element("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom))
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(element("text", x_label, class_="label", x=middle, y=HEIGHT - 4, text_anchor="middle"))
        turned = f"rotate(-90 11 {(HEIGHT - BOTTOM) / 2:.0f})"
        parts.append(
            element("text", y_label, class_="label", x=11, y=(HEIGHT - BOTTOM) / 2, text_anchor="middle", transform=turned)
        )
        return parts


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    tens = [10.0**k for k in range(first, last + 1) if low <= 10.0**k <= high]
    if len(tens) > 2:
        return tens
    return [m * 10.0**k for k in range(first, last + 1) for m in (1, 2, 5) if low <= m * 10.0**k <= high]


def _axes(series: Sequence[Series], zero: bool, pad_x: float = 0.0, log_x: bool = False) -> _Axes | None:
    points = [(x, y) for one in series for x, y in zip(one.x, one.y, strict=True) if y is not None and math.isfinite(y)]
    if not points:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = (0.0 if zero else min(ys)), max(ys)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    y0 = 0.0 if zero else low - margin
    if log_x:
        return _Axes(min(xs) / 1.35, max(xs) * 1.35, y0, high + margin, True)
    return _Axes(min(xs) - pad_x, max(xs) + pad_x, y0, high + margin)


def _thin(one: Series) -> list[tuple[float, float]]:
    """At most `DRAWN` points: the mean of neighbours."""
    points = [(x, y) for x, y in zip(one.x, one.y, strict=True) if y is not None and math.isfinite(y)]
    size = math.ceil(len(points) / DRAWN)
    if size <= 1:
        return points
    groups = [points[k : k + size] for k in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def lines(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_label: str,
    zero: bool = False,
    x_text: Callable[[float], str] = short,
    y_text: Callable[[float], str] = short,
) -> Markup:
    """A line for each series, in the order of the palette; empty Markup without a point.

    Args:
        series: the lines.
        label: what a screen reader says of the picture.
        x_label: name of the x axis, with its unit.
        y_label: name of the y axis, with its unit.
        zero: whether the y axis starts at zero.
        x_text: how a number of the x axis is written.
        y_text: how a number of the y axis is written.
    """
    axes = _axes(series, zero)
    if axes is None:
        return Markup("")
    parts = axes.frame(x_label, y_label, x_text)
    for k, one in enumerate(series):
        points = _thin(one)
        path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)
        dashed = " dashed" if one.dashed else ""
        parts.append(element("polyline", class_=f"line s{k % 8} arm arm-{k}{dashed}", points=path))
        shown = points[:: max(1, len(points) // 60)] + points[-1:]
        for x, y in dict.fromkeys(shown):
            tip = f"{one.name}\n{x_label} {x_text(x)}: {y_text(y)}"
            radius = 2.6 if len(points) <= 40 else 1.2
            parts.append(
                element(
                    "circle", Markup(element("title", tip)), class_=f"f{k % 8} arm arm-{k}", cx=axes.x(x), cy=axes.y(y), r=radius,
                    data_tip=tip, data_of=one.key or None,
                )
            )  # fmt: skip
    return picture(WIDTH, HEIGHT, parts, label)


def stacked_days(days: Sequence[float], series: Sequence[Series], *, label: str, y_label: str) -> Markup:
    """Bars of one day each, the series on top of each other; empty Markup when nothing is above zero.

    Args:
        days: midnight of each day, seconds since 1970.
        series: one value a day each.
        label: what a screen reader says of the picture.
        y_label: name of the y axis, with its unit.
    """
    totals = [sum(one.y[d] or 0.0 for one in series) for d in range(len(days))]
    if not any(totals):
        return Markup("")
    axes = _Axes(days[0] - 43200, days[-1] + 43200, 0.0, max(totals) * 1.08)
    parts = axes.frame("", y_label, day)
    width = 0.7 * (axes.x(days[0] + 86400) - axes.x(days[0]))
    for d, moment in enumerate(days):
        below = 0.0
        for k, one in enumerate(series):
            if value := one.y[d] or 0.0:
                tip = f"{day(moment)}, {one.name}: {value:,.6g}"
                top, bottom = axes.y(below + value), axes.y(below)
                parts.append(
                    element(
                        "rect", Markup(element("title", tip)), class_=f"f{k % 8}", x=axes.x(moment) - width / 2, y=top,
                        width=width, height=max(bottom - top, 0.5), data_tip=tip,
                    )
                )  # fmt: skip
                below += value
    return picture(WIDTH, HEIGHT, parts, label)


@dataclass(frozen=True)
class Point:
    """One mark of a scatter plot."""

    name: str
    x: float
    y: float
    key: str = ""
    colour: int = 0


def pareto(points: Sequence[Point], *, label: str, x_label: str, y_label: str) -> Markup:
    """Points over a logarithmic x axis, lower and further left is better; a dashed line joins those that nothing beats in both.

    Args:
        points: the marks; those with x of zero or less, or without a finite y, are left out.
        label: what a screen reader says of the picture.
        x_label: name of the x axis, with its unit.
        y_label: name of the y axis, with its unit.
    """
    good = [point for point in points if point.x > 0 and math.isfinite(point.y)]
    axes = _axes([Series("", [p.x for p in good], [p.y for p in good])], False, log_x=True)
    if axes is None:
        return Markup("")
    parts = axes.frame(x_label, y_label, short)
    front: list[Point] = []
    for point in sorted(good, key=lambda p: (p.x, p.y)):
        if not front or point.y < front[-1].y:
            front.append(point)
    path = " ".join(f"{axes.x(p.x):.1f},{axes.y(p.y):.1f}" for p in front)
    parts.append(element("polyline", class_="line dashed s6", points=path))
    for point in good:
        tip = f"{point.name}\n{x_label} {point.x:,.6g}\n{y_label} {point.y:.4f}"
        parts.append(
            element(
                "circle", Markup(element("title", tip)), class_=f"f{point.colour % 8}", cx=axes.x(point.x), cy=axes.y(point.y), r=5,
                data_tip=tip, data_of=point.key or None,
            )
        )  # fmt: skip
    return picture(WIDTH, HEIGHT, parts, label)


def outcome_bars(rows: Sequence[tuple[str, float, float | None]], *, label: str, ideal_name: str, seen_name: str) -> Markup:
    """Relative frequencies as bars, the ideal probability as an outline on each.

    Args:
        rows: `(outcome, relative frequency, ideal probability or None)`.
        label: what a screen reader says of the picture.
        ideal_name: name of the ideal probability.
        seen_name: name of the relative frequency.
    """
    if not rows:
        return Markup("")
    height = HEIGHT if len(rows) <= 16 else HEIGHT + 20
    top = max(max(seen, ideal or 0.0) for _, seen, ideal in rows)
    axes = _Axes(-0.5, len(rows) - 0.5, 0.0, top * 1.08 or 1.0)
    parts = []
    for value in ticks(0.0, axes.y1, 4):
        parts.append(element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=axes.y(value), y2=axes.y(value)))
        parts.append(element("text", short(value), x=LEFT - 6, y=axes.y(value) + 4, text_anchor="end"))
    step = (WIDTH - LEFT - RIGHT) / len(rows)
    long = len(rows) > 8 or len(rows[0][0]) > 6
    for k, (word, seen, ideal) in enumerate(rows):
        tip = f"{word}\n{seen_name} {seen:.4f}" + ("" if ideal is None else f"\n{ideal_name} {ideal:.4f}")
        x = axes.x(float(k))
        parts.append(
            element(
                "rect", Markup(element("title", tip)), class_="f0", x=x - 0.36 * step, y=axes.y(seen), width=0.72 * step,
                height=max(axes.y(0.0) - axes.y(seen), 0.0), data_tip=tip,
            )
        )  # fmt: skip
        if ideal is not None:
            parts.append(
                element(
                    "rect", class_="ideal", x=x - 0.42 * step, y=axes.y(ideal), width=0.84 * step,
                    height=max(axes.y(0.0) - axes.y(ideal), 0.0),
                )
            )  # fmt: skip
        if len(rows) <= 32 and len(word) <= 12:
            y = HEIGHT - BOTTOM + 13
            turned = f"rotate(-60 {x:.1f} {y:.1f})" if long else None
            parts.append(element("text", word, x=x, y=y, text_anchor="end" if long else "middle", transform=turned))
    bottom = axes.y(0.0)
    parts.append(element("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom))
    if long and len(rows) <= 32:
        height = HEIGHT + 6.0 * min(len(rows[0][0]), 12) - 10
    return picture(WIDTH, height, parts, label)


def bar(share: float, colour: int = 0, label: str = "") -> Markup:
    """One horizontal bar for a table's cell.

    Args:
        share: its length, 0 to 1; others are cut off.
        colour: number of its colour in the palette.
        label: what a screen reader says of it; default the share in percent.
    """
    filled = max(0.0, min(share, 1.0)) * 100
    rect = element("rect", class_=f"f{colour % 8}", width=filled, height=12, rx=2)
    name = escape(label or f"{share:.0%}")
    return Markup(f'<svg viewBox="0 0 100 12" preserveAspectRatio="none" role="img" aria-label="{name}">{rect}</svg>')
