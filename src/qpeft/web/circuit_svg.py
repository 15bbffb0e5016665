"""A circuit as inline SVG, in the columns of `circuits.text.drawing`."""

from __future__ import annotations

from collections.abc import Sequence

from qpeft.circuits.ir import Circuit, Op
from qpeft.circuits.text.drawing import columns, labels
from qpeft.web.svg import Markup, element, picture

ROW, GAP, NAME = 38.0, 14.0, 34.0
MAX_COLUMNS, MAX_QUBITS = 240, 80


def circuit_svg(circuit: Circuit, label: str, angles: Sequence[float] | None = None) -> tuple[Markup, bool]:
    """The drawing, and whether all of the circuit is on it.

    Args:
        circuit: at most the first `MAX_COLUMNS` columns and `MAX_QUBITS` qubits are drawn.
        label: what a screen reader says of it.
        angles: trained values of the circuit's angles (radians), shown instead of their names.
    """
    found = columns(circuit)
    n = min(circuit.n_qubits, MAX_QUBITS)
    whole = len(found) <= MAX_COLUMNS and n == circuit.n_qubits
    drawn = [[op for op in ops if max(op.qubits) < n] for ops in found[:MAX_COLUMNS]]
    texts = {id(op): _texts(circuit, op, angles) for ops in drawn for op in ops}
    widths = [max([28.0, *(14 + 7.2 * len(text) for op in ops for text in texts[id(op)])]) for ops in drawn]
    width = NAME + GAP + sum(widths) + GAP * (len(widths) + 1)
    height = ROW * n + 8
    parts: list[str] = []
    for q in range(n):
        y = _y(q)
        parts.append(element("line", class_="wire", x1=NAME, x2=width, y1=y, y2=y))
        parts.append(element("text", f"q{q}", class_="q", x=NAME - 6, y=y))
    left = NAME + GAP
    for ops, size in zip(drawn, widths, strict=True):
        for op in ops:
            parts += _gate(circuit, op, texts[id(op)], left, size)
        left += size + GAP
    return picture(width, height, parts, label, fixed=True), whole


def _y(qubit: int) -> float:
    return ROW * qubit + ROW / 2 + 4


def _texts(circuit: Circuit, op: Op, angles: Sequence[float] | None) -> tuple[str, ...]:
    angle, n = op.angle, circuit.n_inputs
    if angles is not None and angle is not None and angle.index is not None and angle.index >= n:
        value = angle.scale * angles[angle.index - n] + angle.shift
        return tuple(text.partition("(")[0] + f"({value:.2f})" if "(" in text else text for text in labels(circuit, op))
    return labels(circuit, op)


def _gate(circuit: Circuit, op: Op, texts: Sequence[str], left: float, size: float) -> list[str]:
    middle = left + size / 2
    low, high = _y(min(op.qubits)), _y(max(op.qubits))
    parts = [element("line", class_="join", x1=middle, x2=middle, y1=low, y2=high)] if high > low else []
    for qubit, text in zip(op.qubits, texts, strict=True):
        y = _y(qubit)
        if text == "●":
            parts.append(element("circle", class_="dot", cx=middle, cy=y, r=4.5))
        elif text == "x":
            for sign in (-1, 1):
                parts.append(element("line", class_="join", x1=middle - 5, y1=y - 5 * sign, x2=middle + 5, y2=y + 5 * sign))
        else:
            kind = "box data" if circuit.is_input(op) else "box"
            parts.append(element("rect", class_=kind, x=left, y=y - 13, width=size, height=26, rx=4))
            parts.append(element("text", text, x=middle, y=y))
    return parts
