"""Our gates in the words of other tools, for tests that compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def pennylane_gate(name: str, angle: float, wires: Sequence[int]) -> Any:
    """PennyLane's gate on `wires`; `angle` in radians, ignored by fixed gates."""
    import pennylane as qml

    fixed = {
        "id": qml.Identity, "x": qml.X, "y": qml.Y, "z": qml.Z, "h": qml.Hadamard, "s": qml.S, "t": qml.T, "sx": qml.SX,
        "cx": qml.CNOT, "cy": qml.CY, "cz": qml.CZ, "ch": qml.CH, "swap": qml.SWAP,
    }  # fmt: skip
    rotations = {
        "rx": qml.RX, "ry": qml.RY, "rz": qml.RZ, "p": qml.PhaseShift, "crx": qml.CRX, "cry": qml.CRY, "crz": qml.CRZ,
        "cp": qml.ControlledPhaseShift, "rxx": qml.IsingXX, "ryy": qml.IsingYY, "rzz": qml.IsingZZ,
    }  # fmt: skip
    if name in rotations:
        return rotations[name](angle, wires=wires)
    if name in fixed:
        return fixed[name](wires=wires)
    return qml.adjoint(fixed[name.removesuffix("dg")])(wires=wires)
