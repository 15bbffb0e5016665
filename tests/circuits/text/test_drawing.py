"""Drawings: what stands where, in text and as a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from qpeft.circuits import ansatz
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.circuits.text.drawing import columns
from tests import strategies


def test_text() -> None:
    ops = (Op("h", (0,)), Op("cx", (0, 2)), Op("ry", (1,), Angle(0)), Op("rxx", (1, 2), Angle(1, -2.0, 0.5)), Op("sdg", (0,)))
    assert Circuit(3, ops, 1, 2).draw().splitlines() == [
        "q0: ─H──●────S†───────────────────",
        "        │",
        "q1: ────┼──RY(x0)──RXX(-2*w0+0.5)─",
        "        │                │",
        "q2: ────X──────────RXX(-2*w0+0.5)─",
    ]


def test_long_circuits_are_folded() -> None:
    drawn = ansatz.qtha(3, 4).draw(fold=60)
    assert max(map(len, drawn.splitlines())) <= 60
    assert drawn.count("q0: ") == drawn.count("q2: ") > 3
    assert Circuit(2, ()).draw() == "q0: ──\n\nq1: ──"


@settings(deadline=None, max_examples=30)
@given(strategies.circuits())
def test_every_gate_is_drawn_once_and_in_order(circuit: Circuit) -> None:
    drawn = [op for column in columns(circuit) for op in column]
    assert sorted(map(repr, drawn)) == sorted(map(repr, circuit.ops))
    for qubit in range(circuit.n_qubits):
        assert [op for op in drawn if qubit in op.qubits] == [op for op in circuit.ops if qubit in op.qubits]
    lines = circuit.draw(fold=10**6).splitlines()
    assert len(lines) == 2 * circuit.n_qubits - 1


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    circuit = ansatz.hardware_efficient(3, 1)
    figure = circuit.draw("picture")
    figure.savefig(tmp_path / "circuit.png")
    assert (tmp_path / "circuit.png").stat().st_size > 2000
    words = {text.get_text() for text in figure.axes[0].texts}
    assert {"q0", "q1", "q2", "RY(x0)", "RZ(w8)", "X"} <= words
