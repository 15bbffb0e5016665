"""The schedule, and what the calibration's numbers become."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.quantum_info import SuperOp, average_gate_fidelity
from qiskit_aer.noise import depolarizing_error, thermal_relaxation_error

from qpeft.backends.emulator.noise import (
    CZPulse,
    Decay,
    IdealRotation,
    NoiseParameters,
    check_native,
    components,
    depolarising_keep,
    schedule,
)
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.errors import BackendError
from tests.backends.emulator.random_chips import random_chip

A = Angle(shift=1.0)


def waits(circuit: Circuit) -> list[tuple[int, float]]:
    """Idle times beside pulses, `(qubit, ns)`."""
    steps = schedule(circuit, 30.0, 40.0)[0].steps
    out = []
    for before, step in zip((None, *steps), steps, strict=False):
        pulse = isinstance(step, Decay) and (step.pulse or (step.ns == 40.0 and isinstance(before, CZPulse | Decay)))
        if isinstance(step, Decay) and not pulse:
            out.append((step.qubit, step.ns))
    return out


def test_a_waiting_qubit_decays_and_one_before_its_first_gate_does_not() -> None:
    circuit = Circuit(
        3, (Op("rx", (0,), A), Op("ry", (0,), A), Op("rx", (1,), A), Op("cz", (0, 1)), Op("rx", (1,), A), Op("cz", (1, 2)))
    )
    timeline, angles = schedule(circuit, 30.0, 40.0)
    assert timeline.duration_ns == 60 + 40 + 30 + 40
    assert angles == (A,) * 4
    assert timeline.pairs == ((0, 1), (1, 2))
    assert waits(circuit) == [(1, 30.0), (0, 70.0)]  # 1 waits for 0's second pulse; 0 for the end; 2 waits in |0>
    assert timeline.steps[0] == IdealRotation(0, "x", 0)
    assert timeline.steps[1] == Decay(0, 30.0, pulse=True)


def test_a_turn_about_z_is_free() -> None:
    timeline, _ = schedule(Circuit(1, (Op("rz", (0,), A), Op("rx", (0,), A), Op("rz", (0,), A))), 30.0, 40.0)
    assert [type(step) for step in timeline.steps] == [IdealRotation, IdealRotation, Decay, IdealRotation]
    assert timeline.duration_ns == 30.0


def test_parts_that_no_gate_joins_end_together_without_waiting() -> None:
    long = tuple(Op("rx", (0,), A) for _ in range(9))
    both = Circuit(3, (*long, Op("ry", (1,), A), Op("cz", (1, 2))))
    assert waits(both) == []
    assert [step for step in schedule(both, 30.0, 40.0)[0].steps if isinstance(step, Decay) and step.qubit == 2] == [
        Decay(2, 40.0, pulse=False)
    ]


def test_only_native_gates() -> None:
    with pytest.raises(BackendError, match="op 1: h is not a native gate") as caught:
        check_native(Circuit(1, (Op("rx", (0,), A), Op("h", (0,)))))
    assert "cz, rx, ry, rz" in str(caught.value)


@given(st.integers(1, 8), st.data())
def test_components(n: int, data: st.DataObject) -> None:
    import networkx

    pairs = data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=8))
    graph = networkx.Graph(pairs)
    graph.add_nodes_from(range(n))
    assert components(n, pairs) == sorted(sorted(group) for group in networkx.connected_components(graph))


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 0.4), st.floats(1, 100), st.floats(0.05, 2), st.floats(0, 5), st.sampled_from([1, 2]))
def test_a_gate_has_the_calibrated_infidelity(error: float, t1: float, ratio: float, ns: float, n: int) -> None:
    """The whole channel, depolarisation and decay, against Qiskit's average fidelity; more only where decay alone has more."""
    relax = thermal_relaxation_error(t1, ratio * t1, ns)
    decay = SuperOp(relax if n == 1 else relax.tensor(relax))
    trace = (1 + 2 * math.exp(-ns / (ratio * t1)) + math.exp(-ns / t1)) ** n
    keep = float(depolarising_keep(np.array(error), np.array(trace), 2**n))
    whole = SuperOp(depolarizing_error(1 - keep, n)).compose(decay)
    assert 1 - average_gate_fidelity(whole) == pytest.approx(max(error, 1 - average_gate_fidelity(decay)), abs=1e-9)


def test_without_decay_the_textbook_formula() -> None:
    errors = np.array([0.0, 0.003, 0.5])
    assert np.allclose(depolarising_keep(errors, np.full(3, 4.0), 2), 1 - 2 * errors)
    errors = np.array([0.0, 0.03, 0.75])
    assert np.allclose(depolarising_keep(errors, np.full(3, 16.0), 4), 1 - errors * 4 / 3)


def test_calibration_of_a_placement() -> None:
    chip = random_chip([(0, 1), (1, 2), (2, 3)], 1, include=False)
    calibration = NoiseParameters.of(chip, (3, 1, 2), [(0, 2), (1, 2)])
    assert calibration.t1_ns[0].tolist() == [chip.qubits[q].t1_us * 1e3 for q in (3, 1, 2)]  # type: ignore[operator]
    assert calibration.keep_1q[0].tolist() == pytest.approx([1 - 2 * chip.qubits[q].error_1q for q in (3, 1, 2)])  # type: ignore[operator]
    assert calibration.keep_cz[0].tolist() == pytest.approx([1 - chip.neighbours[a][b] * 4 / 3 for a, b in ((3, 2), (1, 2))])
    assert calibration.confusion[0, 0].tolist() == [
        [1 - chip.qubits[3].p1_given_0, chip.qubits[3].p0_given_1],  # type: ignore[operator]
        [chip.qubits[3].p1_given_0, 1 - chip.qubits[3].p0_given_1],  # type: ignore[operator]
    ]
    included = NoiseParameters.of(dataclasses.replace(chip, gate_errors_include_decay=True), (3, 1, 2), [(0, 2), (1, 2)])
    assert (included.keep_1q > calibration.keep_1q).all()  # decay takes its share of the error
    assert (included.keep_cz > calibration.keep_cz).all()
    double = NoiseParameters.stack([calibration, included]).repeat(2)
    assert np.array_equal(double.keep_1q, np.concatenate([calibration.keep_1q] * 2 + [included.keep_1q] * 2))
