"""A picture of a chip: its lattice, coloured by errors."""

from __future__ import annotations

import math
import os
import textwrap
from typing import Any

from qpeft.backends.emulator.chip import Chip, Coupler
from qpeft.errors import MissingDependencyError

INK, MUTED, DISABLED = "#1c2128", "#5b6470", "#d0d5db"


def positions(chip: Chip) -> list[tuple[float, float]]:
    """Column and row of each qubit: the chip's own, or a circle where some qubit has none."""
    own = [qubit.position for qubit in chip.qubits]
    if all(position is not None for position in own):
        return [position for position in own if position is not None]
    n = chip.n_qubits
    radius = max(n / (2 * math.pi), 0.5)
    return [(radius * math.sin(2 * math.pi * q / n), -radius * math.cos(2 * math.pi * q / n)) for q in range(n)]


def draw_chip(chip: Chip, path: str | os.PathLike[str]) -> None:
    """Write a picture of a chip.

    A qubit's disc is coloured by its mean readout error, its rim by its one-qubit gate error, a coupler by its CZ error; dead
    couplers are dashed, disabled qubits grey.

    Args:
        chip: the chip.
        path: picture to write; its ending names the format.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.cm import ScalarMappable
        from matplotlib.collections import LineCollection
        from matplotlib.colors import Normalize, to_rgb
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "report", "drawing a chip") from error
    places = positions(chip)
    live = [chip.qubits[q] for q in chip.live_qubits]
    scales: dict[str, Any] = {}
    columns = {
        "CZ error": ("viridis_r", [e for near in chip.neighbours.values() for e in near.values()]),
        "readout error": ("YlOrRd", [qubit.readout_error for qubit in live]),
        "one-qubit gate error": ("PuBu", [qubit.error_1q or 0.0 for qubit in live]),
    }
    for label, (colours, values) in columns.items():
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        pad = 0.05 * (high - low) or 0.5 * high or 1e-3
        scales[label] = ScalarMappable(Normalize(max(low - pad, 0.0), high + pad), colours)

    xs, ys = [x for x, _ in places], [y for _, y in places]
    wide, tall = max(xs) - min(xs) + 1.6, max(ys) - min(ys) + 1.6
    unit = min(0.62, 13.0 / max(wide, tall))  # inches from qubit to qubit
    figure = Figure(figsize=(max(wide * unit, 3.0) + 3.1, tall * unit + 1.0), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    alive: list[Coupler] = []
    dead: list[Coupler] = []
    for coupler in chip.couplers:
        a, b = coupler.qubits
        (alive if b in chip.neighbours.get(a, {}) else dead).append(coupler)
    for members, style in ((alive, "solid"), (dead, (0, (2, 2)))):
        lines = LineCollection([[places[q] for q in coupler.qubits] for coupler in members], linestyles=[style], zorder=1)
        if members is alive:
            lines.set_color([scales["CZ error"].to_rgba(coupler.error_cz) for coupler in members])
            lines.set_linewidth(11 * unit)
        else:
            lines.set_color(MUTED)
            lines.set_linewidth(1.0)
        axes.add_collection(lines)
    discs: list[Any] = [scales["readout error"].to_rgba(q.readout_error) if q.enabled else DISABLED for q in chip.qubits]
    rims = [scales["one-qubit gate error"].to_rgba(q.error_1q) if q.enabled else MUTED for q in chip.qubits]
    axes.scatter(xs, ys, s=(72 * unit * 0.62) ** 2, c=discs, edgecolors=rims, linewidths=6 * unit, zorder=2)
    for number, (x, y) in enumerate(places):
        red, green, blue, *_ = to_rgb(discs[number])
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        axes.text(
            x, y, str(number), ha="center", va="center_baseline", fontsize=14 * unit, color="white" if dark else INK, zorder=3
        )
    axes.set_xlim(min(xs) - 0.8, max(xs) + 0.8)
    axes.set_ylim(max(ys) + 0.8, min(ys) - 0.8)
    axes.set_aspect("equal")
    axes.axis("off")
    for label, scale in scales.items():
        bar = figure.colorbar(scale, ax=axes, shrink=0.8, aspect=36, pad=0.012)
        bar.set_label(label, color=INK, fontsize=8)
        bar.ax.tick_params(labelsize=7, colors=MUTED)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        bar.outline.set_visible(False)
    couplers = f"{len(alive)} live couplers" + (f", {len(dead)} dead (dashed)" if dead else "")
    label = "SYNTHETIC calibration" if chip.synthetic else "calibration"
    figure.suptitle(
        f"{chip.name}: {len(live)} of {chip.n_qubits} qubits, {couplers}. {label}" + (f", {chip.date}" if chip.date else ""),
        fontsize=10,
        color="#b3261e" if chip.synthetic else INK,
    )
    note = textwrap.fill(chip.source, width=max(60, int(figure.get_figwidth() * 19)))
    figure.supxlabel(note, fontsize=6.5, color=MUTED)
    figure.savefig(path)
