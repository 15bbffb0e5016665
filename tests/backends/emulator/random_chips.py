"""Chips for tests: small ones by hand and by hypothesis, and native circuits that suit them."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
from hypothesis import strategies as st

from qpeft.backends.emulator.chip import FORMAT, VERSION, Chip, Coupler, GateTime, NativeGates, Qubit, Timing
from qpeft.circuits.ir import Angle, Circuit, Op

TIMING = Timing(shot_us=100.0, circuit_s=0.05, job_s=3.0, max_shots=10_000, max_circuits_per_job=200)


def make_chip(qubits: list[Qubit], couplers: list[Coupler], *, include: bool = True, name: str = "small", **settings: Any) -> Chip:
    fields: dict[str, Any] = {
        "source": "a test",
        "date": datetime.date(2026, 1, 2),
        "synthetic": True,
        "timing": TIMING,
        **settings,
    }
    fields.setdefault("native_gates", NativeGates(rphi=GateTime(time_ns=30.0), cz=GateTime(time_ns=40.0)))
    return Chip(
        format=FORMAT,
        version=VERSION,
        name=name,
        gate_errors_include_decay=include,
        qubits=tuple(qubits),
        couplers=tuple(couplers),
        **fields,
    )


def random_chip(pairs: list[tuple[int, int]], seed: int, *, include: bool = True, **settings: Any) -> Chip:
    """Unlike numbers everywhere, T2 sometimes above T1, gate errors above what decay alone costs."""
    rng = np.random.default_rng(seed)
    qubits = []
    for _ in range(max(max(pair) for pair in pairs) + 1):
        t1 = float(rng.uniform(8, 40))
        up, down = rng.uniform(0.01, 0.12, 2)
        qubits.append(
            Qubit(
                t1_us=t1,
                t2_us=t1 * float(rng.uniform(0.1, 1.9)),
                error_1q=float(rng.uniform(0.004, 0.02)),
                p1_given_0=float(up),
                p0_given_1=float(down),
            )
        )
    couplers = [Coupler(qubits=pair, error_cz=float(rng.uniform(0.02, 0.08))) for pair in pairs]
    return make_chip(qubits, couplers, include=include, **settings)


def random_native(n_qubits: int, pairs: list[tuple[int, int]], depth: int, rng: np.random.Generator, n_params: int = 3) -> Circuit:
    """Native gates at random on the given pairs, angles affine in the parameters or constant."""
    ops = []
    for _ in range(depth):
        if pairs and rng.random() < 0.4:
            a, b = pairs[rng.integers(len(pairs))]
            ops.append(Op("cz", (a, b) if rng.random() < 0.5 else (b, a)))
        else:
            index = int(rng.integers(n_params)) if rng.random() < 0.7 else None
            angle = Angle(index, float(rng.normal()), float(rng.normal()))
            ops.append(Op(str(rng.choice(["rx", "ry", "rz"])), (int(rng.integers(n_qubits)),), angle))
    return Circuit(n_qubits, tuple(ops), 0, n_params)


@st.composite
def chips(draw: st.DrawFn, max_qubits: int = 6) -> Chip:
    """Any valid chip: dead couplers, disabled qubits with and without numbers, extreme errors and times."""
    n = draw(st.integers(1, max_qubits))
    chance, times = st.floats(0, 1), st.floats(0, 1e6)
    qubits = []
    for _ in range(n):
        enabled = draw(st.booleans())
        t1 = draw(st.floats(1e-3, 1e6))
        known = enabled or draw(st.booleans())
        qubits.append(
            Qubit(
                t1_us=t1 if known else None,
                t2_us=min(t1 * draw(st.floats(1e-3, 2)), 2 * t1) if known else None,
                error_1q=draw(st.floats(0, 0.5)) if known else None,
                p1_given_0=draw(chance) if known else None,
                p0_given_1=draw(chance) if known else None,
                enabled=enabled,
                position=draw(st.none() | st.tuples(st.floats(-9, 9), st.floats(-9, 9))),
            )
        )
    possible = [(a, b) for a in range(n) for b in range(n) if a < b]
    couplers = []
    for pair in draw(st.lists(st.sampled_from(possible), unique=True)) if possible else []:
        alive = draw(st.booleans())
        error = draw(st.floats(0, 0.75)) if alive or draw(st.booleans()) else None
        couplers.append(Coupler(qubits=pair if draw(st.booleans()) else pair[::-1], error_cz=error, enabled=alive))
    gates = NativeGates(rphi=GateTime(time_ns=draw(times)), cz=GateTime(time_ns=draw(times)))
    return make_chip(qubits, couplers, include=draw(st.booleans()), native_gates=gates, synthetic=draw(st.booleans()))
