"""Drawings of the documentation: `make pictures` (python docs/pictures.py [NAME ...]). `make screenshots` takes its screenshots.

* `concepts`: the adapted layer, QTHA's circuit, the grid surrogate.
* `chips`: maps of the shipped chips.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"


def concepts() -> None:
    """The drawings of docs/concepts.md."""
    _layer(IMAGES / "concept-layer.png")
    _circuit(IMAGES / "concept-circuit.png")
    _surrogate(IMAGES / "concept-surrogate.png")


@contextmanager
def _canvas(path: Path, width: float, height: float) -> Iterator[Any]:
    """Axes without frame whose units are inches, saved to `path`."""
    from qpeft.report.style import LIGHT, drawing

    with drawing(LIGHT):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), dpi=130)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, width)
        axes.set_ylim(0, height)
        axes.axis("off")
        yield axes
        figure.savefig(path)


def _box(axes: Any, x: float, y: float, width: float, text: str, colour: str, height: float = 0.62) -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = FancyBboxPatch((x, y - height / 2), width, height, boxstyle="round,pad=0.02", fc=colour + "22", ec=colour, lw=1.4)
    axes.add_patch(shape)
    axes.text(x + width / 2, y, text, ha="center", va="center", fontsize=9)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "lw": 1.2, "color": "#1c2128"})


def _layer(path: Path) -> None:
    from qpeft.report.style import LIGHT

    grey, blue, orange = LIGHT.palette[6], LIGHT.palette[0], LIGHT.palette[1]
    with _canvas(path, 9.2, 3.3) as axes:
        axes.text(0.15, 3.05, "A frozen layer and its adapter: only the coloured boxes are trained", fontsize=11)
        axes.text(0.2, 1.75, "x", fontsize=12, ha="center", va="center")
        _box(axes, 1.2, 2.45, 5.9, "W0, frozen: d_in → d_out", grey)
        _box(axes, 1.2, 1.05, 1.5, "down\nd_in → r", blue)
        _box(axes, 3.4, 1.5, 1.9, "circuit of r qubits\nr → r", orange)
        _box(axes, 3.4, 0.5, 1.9, "classical map\nr → r", blue)
        _box(axes, 6.0, 1.05, 1.5, "up\nr → d_out", blue)
        axes.text(8.05, 1.75, "+", fontsize=16, ha="center", va="center")
        axes.text(8.9, 1.75, "y", fontsize=12, ha="center", va="center")
        for start, end in (
            ((0.35, 1.8), (1.15, 2.4)), ((0.35, 1.7), (1.15, 1.1)), ((2.75, 1.1), (3.35, 1.45)), ((2.75, 1.0), (3.35, 0.55)),
            ((5.35, 1.45), (5.95, 1.1)), ((5.35, 0.55), (5.95, 1.0)), ((7.15, 2.4), (7.9, 1.85)), ((7.55, 1.1), (7.9, 1.65)),
            ((8.2, 1.75), (8.75, 1.75)),
        ):  # fmt: skip
            _arrow(axes, start, end)
        axes.text(3.4, 0.02, "control: the same adapter without the orange box", fontsize=8, color=LIGHT.muted)


def _circuit(path: Path) -> None:
    from qpeft.circuits import ansatz

    figure = ansatz.qtha(3, 1).draw("picture")
    figure.suptitle("QTHA's circuit, 3 qubits, 1 layer: x is data, w is trained", fontsize=10)
    figure.savefig(path, dpi=130, bbox_inches="tight")


def _surrogate(path: Path) -> None:
    """One input of a circuit: its value everywhere from its values at 2 L + 1 points."""
    import numpy as np
    import torch

    from qpeft import expectations
    from qpeft.circuits import ansatz
    from qpeft.report.style import LIGHT, drawing

    circuit = ansatz.qtha(2, 1)
    angles = torch.linspace(-1.0, 1.2, circuit.n_angles, dtype=torch.float64)

    def value(x: Any) -> Any:
        rows = np.stack([x, np.full_like(x, 0.7)], axis=1)
        return expectations(circuit, torch.tensor(rows), angles)[:, 1].numpy()

    grid = 2 * np.pi * np.arange(3) / 3
    basis = np.stack([np.ones(3), np.cos(grid), np.sin(grid)], axis=1)
    weights = np.linalg.solve(basis, value(grid))
    x = np.linspace(0, 2 * np.pi, 200)
    with drawing(LIGHT):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 3.6), layout="constrained", dpi=130)
        axes = figure.add_subplot()
        axes.plot(x, value(x), color=LIGHT.palette[6], lw=5, alpha=0.35, label="circuit, simulated at 200 inputs")
        series = np.stack([np.ones_like(x), np.cos(x), np.sin(x)]).T @ weights
        axes.plot(x, series, color=LIGHT.palette[0], label="polynomial through the 3 grid values")
        axes.plot(grid, value(grid), "o", color=LIGHT.palette[1], markersize=8, label="grid: circuits that a chip runs")
        axes.set(xlabel="input u (rad)", ylabel="expectation value <Z>")
        axes.set_title("Three circuits determine the output for every input (one input, L = 1)", fontsize=10)
        axes.legend(fontsize=8)
        figure.savefig(path)


def chips() -> None:
    """Maps of the shipped chips."""
    from qpeft.backends.emulator.chip import load_chip, shipped_chips
    from qpeft.backends.emulator.drawing import draw_chip

    for name in shipped_chips():
        draw_chip(load_chip(name), IMAGES / f"chip-{name}.png")


PICTURES: dict[str, Callable[[], None]] = {"concepts": concepts, "chips": chips}


if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
        print(f"made {name}", flush=True)
