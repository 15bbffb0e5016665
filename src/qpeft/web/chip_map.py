"""A chip as a map: qubits and couplers coloured by error, dead ones crossed, rings on the qubits that circuits occupy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qpeft.web.svg import Markup, element, picture

STEP, RADIUS, EDGE = 46.0, 14.0, 34.0
SHADES = 7
QUBIT_COLUMNS = {
    "readout": ("Readout error", "%", True),
    "single": ("Single-qubit gate error", "%", True),
    "t1": ("T1", "µs", False),
    "t2": ("T2", "µs", False),
}
"""What the discs may show: name, unit, and whether a large value is a bad one."""


@dataclass(frozen=True)
class Occupant:
    """Who holds qubits of the chip: a name, an address or none, and the qubits."""

    name: str
    href: str | None
    qubits: tuple[int, ...]


@dataclass(frozen=True)
class ChipMap:
    """The drawing, and its legends: `(shade, text)` for qubits and for couplers."""

    svg: Markup
    qubits: list[tuple[int, str]]
    couplers: list[tuple[int, str]]
    live: int
    dead_qubits: int
    dead_couplers: int
    rows: list[dict[str, Any]] = field(default_factory=list)


def value_of(qubit: Mapping[str, Any], column: str) -> float | None:
    """A qubit's number: errors in percent, times in microseconds; None where it is not known."""
    if column == "readout":
        flips = [qubit.get(name) for name in ("p1_given_0", "p0_given_1")]
        known = [float(flip) for flip in flips if flip is not None]
        return 100 * sum(known) / len(known) if known else None
    found = qubit.get({"single": "error_1q", "t1": "t1_us", "t2": "t2_us"}[column])
    return None if found is None else float(found) * (100 if column == "single" else 1)


class Scale:
    """Shades 0 (good) to 6 (bad) over the values' range."""

    def __init__(self, values: Sequence[float], bad_is_large: bool, unit: str) -> None:
        self.low, self.high = (min(values), max(values)) if values else (0.0, 1.0)
        self.bad_is_large, self.unit = bad_is_large, unit

    def shade(self, value: float) -> int:
        """The shade of a value."""
        span = self.high - self.low
        place = 0 if not span > 0 else min(int(SHADES * (value - self.low) / span), SHADES - 1)
        return place if self.bad_is_large else SHADES - 1 - place

    def legend(self) -> list[tuple[int, str]]:
        """Each shade with its range, from good to bad."""
        if not self.high > self.low:
            return [(0, f"{self.low:.3g} {self.unit}")]
        bounds = [self.low + (self.high - self.low) * k / SHADES for k in range(SHADES + 1)]
        found = [(self.shade((a + b) / 2), f"{a:.3g}–{b:.3g} {self.unit}") for a, b in itertools.pairwise(bounds)]
        return sorted(found)


def places(qubits: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Column and row of each qubit: the chip's own, or a square where some qubit has none."""
    own = [qubit.get("position") for qubit in qubits]
    if all(own):
        return [(float(place[0]), float(place[1])) for place in own if place]
    side = max(1, math.ceil(math.sqrt(len(qubits))))
    return [(float(q % side), float(q // side)) for q in range(len(qubits))]


def chip_map(data: Mapping[str, Any], column: str, occupants: Sequence[Occupant], label: str) -> ChipMap | None:
    """The map of a calibration; None where it has no qubits.

    Args:
        data: the chip file's JSON.
        column: which value colours the qubits, a key of `QUBIT_COLUMNS`.
        occupants: circuits that run on it now.
        label: what a screen reader says of the picture.
    """
    qubits, couplers = data.get("qubits") or [], data.get("couplers") or []
    if not qubits:
        return None
    _, unit, bad_is_large = QUBIT_COLUMNS[column]
    alive = [bool(qubit.get("enabled", True)) for qubit in qubits]
    numbers = [value_of(qubit, column) if up else None for qubit, up in zip(qubits, alive, strict=True)]
    scale = Scale([value for value in numbers if value is not None], bad_is_large, unit)
    usable = [
        c.get("enabled", True) and c["error_cz"] is not None and alive[c["qubits"][0]] and alive[c["qubits"][1]] for c in couplers
    ]
    edge_scale = Scale([100 * c["error_cz"] for c, up in zip(couplers, usable, strict=True) if up], True, "%")
    grid = places(qubits)
    left, top = min(x for x, _ in grid), min(y for _, y in grid)
    spots = [(EDGE + STEP * (x - left), EDGE + STEP * (y - top)) for x, y in grid]
    holder = {q: (k, one) for k, one in enumerate(occupants) for q in one.qubits}
    parts: list[str] = []
    for coupler, up in zip(couplers, usable, strict=True):
        (x1, y1), (x2, y2) = (spots[q] for q in coupler["qubits"])
        ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        name = "{}–{}".format(*coupler["qubits"])
        if up:
            error = 100 * coupler["error_cz"]
            tip = f"{name}: CZ {error:.2f} %"
            parts.append(element("line", class_="edge", **ends))
            parts.append(
                element("line", Markup(element("title", tip)), class_=f"coupler k{edge_scale.shade(error)}", data_tip=tip, **ends)
            )
        else:
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            parts.append(element("line", class_="gone", data_tip=f"{name}: –", **ends))
            parts += _cross(x, y, 4.0)
    rows = []
    for q, (qubit, up, value) in enumerate(zip(qubits, alive, numbers, strict=True)):
        x, y = spots[q]
        known = {name: value_of(qubit, name) for name in QUBIT_COLUMNS}
        told = [f"{title} {known[name]:.3g} {unit}" for name, (title, unit, _) in QUBIT_COLUMNS.items() if known[name] is not None]
        held = holder.get(q)
        tip = "\n".join([f"q{q}" + ("" if up else " (disabled)"), *told, *([held[1].name] if held else [])])
        rows.append({"qubit": q, "enabled": up, "held": held[1].name if held else "", **known})
        if not up:
            parts.append(element("circle", Markup(element("title", tip)), class_="dead", cx=x, cy=y, r=RADIUS, data_tip=tip))
            parts += _cross(x, y, 9.0)
            continue
        shade = f"h{scale.shade(value)}" if value is not None else "off"
        parts.append(element("circle", Markup(element("title", tip)), class_=f"rim {shade}", cx=x, cy=y, r=RADIUS, data_tip=tip))
        if held:
            parts.append(element("circle", class_=f"held s{held[0] % 8}", cx=x, cy=y, r=RADIUS + 2.5))
        parts.append(element("text", str(q), x=x, y=y))
    width = 2 * EDGE + max(x for x, _ in spots) - EDGE
    height = 2 * EDGE + max(y for _, y in spots) - EDGE
    svg = picture(width, height, parts, label, fixed=True)
    dead = len(qubits) - sum(alive)
    return ChipMap(svg, scale.legend(), edge_scale.legend() if any(usable) else [], sum(alive), dead, usable.count(False), rows)


def _cross(x: float, y: float, size: float) -> list[str]:
    ends = ((x - size, y - size, x + size, y + size), (x - size, y + size, x + size, y - size))
    return [element("line", class_="cross", x1=a, y1=b, x2=c, y2=d) for a, b, c, d in ends]
