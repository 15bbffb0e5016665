"""Drawings of circuits: lines of text, or a Matplotlib figure. Both draw the same columns of gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import MissingDependencyError

_CONTROLLED = {"cx": "X", "cy": "Y", "cz": "Z", "ch": "H", "crx": "RX", "cry": "RY", "crz": "RZ", "cp": "P"}
_DAGGER = {"sdg": "S†", "tdg": "T†", "sxdg": "SX†"}


def columns(circuit: Circuit) -> list[list[Op]]:
    """Gates by column: each in the first column where the lines that it covers are free."""
    out: list[list[Op]] = []
    free = [0] * circuit.n_qubits  # per qubit, the first column without a gate
    for op in circuit.ops:
        covered = range(min(op.qubits), max(op.qubits) + 1)
        place = max(free[q] for q in covered)
        out += [[] for _ in range(place + 1 - len(out))]
        out[place].append(op)
        for q in covered:
            free[q] = place + 1
    return out


def labels(circuit: Circuit, op: Op) -> tuple[str, ...]:
    """Label of the gate on each of its qubits; `●` is a control, `x` an end of a swap.

    Args:
        circuit: the circuit, which names the parameter of an angle.
        op: one of its gates.
    """
    angle = "" if op.angle is None else f"({_angle(circuit, op.angle)})"
    if op.gate in _CONTROLLED:
        return "●", _CONTROLLED[op.gate] + angle
    if op.gate == "swap":
        return "x", "x"
    name = _DAGGER.get(op.gate, op.gate.upper()) + angle
    return (name,) * len(op.qubits)


def _angle(circuit: Circuit, angle: Angle) -> str:
    if angle.index is None:
        return f"{angle.shift:.4g}"
    n = circuit.n_inputs
    name = f"x{angle.index}" if angle.index < n else f"w{angle.index - n}"
    scaled = {1.0: name, -1.0: f"-{name}"}.get(angle.scale, f"{angle.scale:.4g}*{name}")
    return scaled + (f"{angle.shift:+.4g}" if angle.shift else "")


def draw_text(circuit: Circuit, fold: int = 100) -> str:
    """The circuit as lines of text, one for each qubit and one between two neighbours, in parts of at most `fold` characters."""
    n = circuit.n_qubits
    width = len(f"q{n - 1}: ")
    parts = [_column(circuit, ops) for ops in columns(circuit)]
    blocks: list[list[str]] = []
    for part in parts or [_column(circuit, ())]:
        if not blocks or len(blocks[-1][0]) + len(part[0]) > fold:
            blocks.append([f"q{row // 2}: ".rjust(width) if row % 2 == 0 else " " * width for row in range(2 * n - 1)])
        blocks[-1] = [line + more for line, more in zip(blocks[-1], part, strict=True)]
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks)


def _column(circuit: Circuit, ops: Sequence[Op]) -> list[str]:
    """The lines of one column, all of one length: even rows are qubits, odd ones between them."""
    cells = dict.fromkeys(range(2 * circuit.n_qubits - 1), "")
    for op in ops:
        for row in range(2 * min(op.qubits) + 1, 2 * max(op.qubits)):
            cells[row] = "│" if row % 2 else "┼"
        for qubit, label in zip(op.qubits, labels(circuit, op), strict=True):
            cells[2 * qubit] = label
    size = max(map(len, cells.values()))
    return [cell.center(size, "─").join("──") if row % 2 == 0 else cell.center(size).join("  ") for row, cell in cells.items()]


def draw_picture(circuit: Circuit) -> Any:
    """The circuit as a Matplotlib figure, which is the caller's to save or close.

    Raises:
        MissingDependencyError: no Matplotlib.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "report", "a picture of a circuit") from error
    found = columns(circuit)
    widths = [max([0.7, *(0.35 + 0.13 * len(label) for op in ops for label in labels(circuit, op))]) for ops in found]
    length = sum(widths) + 0.4 * (len(widths) + 1)
    figure = Figure(figsize=(0.8 * length + 0.6, 0.7 * circuit.n_qubits + 0.3), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-0.7, length), ylim=(circuit.n_qubits - 0.4, -0.6))
    axes.axis("off")
    axes.hlines(range(circuit.n_qubits), 0, length, colors="black", linewidth=0.8, zorder=0)
    for qubit in range(circuit.n_qubits):
        axes.text(-0.1, qubit, f"q{qubit}", ha="right", va="center")
    left = 0.4
    for ops, width in zip(found, widths, strict=True):
        middle = left + width / 2
        for op in ops:
            axes.vlines(middle, min(op.qubits), max(op.qubits), colors="black", linewidth=0.8, zorder=1)
            for qubit, label in zip(op.qubits, labels(circuit, op), strict=True):
                if label == "●":
                    axes.plot(middle, qubit, "o", color="black", markersize=5)
                elif label == "x":
                    axes.plot(middle, qubit, "x", color="black", markersize=7)
                else:
                    box = Rectangle((left, qubit - 0.3), width, 0.6, facecolor="white", edgecolor="black", linewidth=0.8, zorder=2)
                    axes.add_patch(box)
                    axes.text(middle, qubit, label, ha="center", va="center", fontsize=9, zorder=3)
        left += width + 0.4
    return figure
