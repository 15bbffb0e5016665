"""Native gates and routing: the same unitary, on couplers that are there."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings

from qpeft.backends.emulator.chip import Chip, load_chip
from qpeft.backends.emulator.native_gates import DECOMPOSITION, NATIVE, to_native
from qpeft.backends.emulator.routing import InteractionGraph, best_placement, check_layout, placements, route
from qpeft.circuits import ansatz
from qpeft.circuits.ir import GATES, Angle, Circuit, Op
from qpeft.errors import BackendError, MissingDependencyError
from tests import reference, strategies
from tests.backends.emulator.random_chips import random_chip


def unitary(circuit: Circuit, params: Sequence[float]) -> np.ndarray:
    n = circuit.n_qubits
    out = np.eye(2**n, dtype=complex).reshape((2,) * n + (2**n,))
    for op in circuit.ops:
        k = len(op.qubits)
        gate = np.array(op.spec.matrix(op.angle.value(params) if op.angle else 0.0)).reshape((2,) * 2 * k)
        out = np.moveaxis(np.tensordot(gate, out, axes=(range(k, 2 * k), op.qubits)), range(k), op.qubits)
    return out.reshape(2**n, 2**n)


def assert_equal_up_to_phase(a: np.ndarray, b: np.ndarray) -> None:
    overlap = np.vdot(a, b)
    assert np.abs(b * abs(overlap) / overlap - a).max() < 1e-7


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("angle", [0.0, 0.7, -2.9, 5.0])
def test_every_gate(name: str, angle: float) -> None:
    spec = GATES[name]
    circuit = Circuit(
        spec.n_qubits, (Op(name, tuple(range(spec.n_qubits)), Angle(0, 1.3, 0.2) if spec.parametrised else None),), 0, 1
    )
    native = to_native(circuit)
    assert {op.gate for op in native.ops} <= NATIVE
    assert_equal_up_to_phase(unitary(circuit, [angle]), unitary(native, [angle]))
    assert set(DECOMPOSITION) == set(GATES)


@settings(deadline=None)
@given(strategies.bound_circuits())
def test_any_circuit(drawn: tuple[Circuit, list[float]]) -> None:
    circuit, params = drawn
    native = to_native(circuit)
    assert (native.n_qubits, native.n_inputs, native.n_params) == (circuit.n_qubits, circuit.n_inputs, circuit.n_params)
    assert_equal_up_to_phase(unitary(circuit, params), unitary(native, params))


def test_turns_join() -> None:
    cx = [Op("cx", (0, 1)), Op("cx", (0, 1))]
    assert [op.gate for op in to_native(Circuit(2, tuple(cx))).ops] == ["ry", "cz", "cz", "ry"]
    turns = (Op("ry", (0,), Angle(0, 2.0)), Op("ry", (0,), Angle(0, -0.5, 1.0)), Op("ry", (0,), Angle(1)))
    assert [op.angle for op in to_native(Circuit(1, turns, 0, 2)).ops] == [Angle(0, 1.5, 1.0), Angle(1)]


def distribution(circuit: Circuit, params: Sequence[float], wanted: Sequence[int]) -> np.ndarray:
    """Outcome probabilities of the wanted qubits, in their order."""
    grid = (np.abs(reference.state(circuit, params)) ** 2).reshape((2,) * circuit.n_qubits)
    others = tuple(q for q in range(circuit.n_qubits) if q not in wanted)
    return np.transpose(grid.sum(axis=others), [sorted(wanted).index(q) for q in wanted])


def dead(chip: Chip, share: float, seed: int) -> Chip:
    gone = np.random.default_rng(seed).random(len(chip.couplers)) < share
    couplers = (dataclasses.replace(c, enabled=c.enabled and not off) for c, off in zip(chip.couplers, gone, strict=True))
    return dataclasses.replace(chip, couplers=tuple(couplers))


@pytest.mark.parametrize("name", ["wukong-72", "wukong-180"])
@pytest.mark.parametrize("make", [ansatz.qtha, ansatz.hardware_efficient])
@pytest.mark.parametrize("n", [1, 3, 4, 5, 7])
def test_a_routed_template_does_the_same_on_live_couplers(name: str, make, n: int) -> None:  # type: ignore[no-untyped-def]
    """Rings of 3 to 7: some fit as they are, some need swaps; the template's angles stay symbolic."""
    chip = dead(load_chip(name), 0.1, n)
    circuit = make(n, 1)
    routed = route(circuit, chip, seed=1)
    check_layout(routed.circuit, routed.qubits, chip)
    assert routed.circuit.n_params == circuit.n_params
    assert routed == route(circuit, chip, seed=1)
    for seed in range(2):
        params = np.random.default_rng(seed).uniform(-3, 3, circuit.n_params).tolist()
        found = distribution(routed.circuit, params, routed.measured)
        assert np.abs(found - distribution(circuit, params, range(n))).max() < 1e-12


def test_a_circuit_that_fits_gets_no_swaps_and_the_best_place() -> None:
    chip = random_chip([(0, 1), (1, 2), (2, 3), (3, 0), (2, 4), (4, 5)], 3)
    circuit = to_native(Circuit(3, (Op("cx", (0, 1)), Op("cx", (2, 1)), Op("cx", (0, 1)))))
    routed = route(circuit, chip)
    assert routed.circuit == circuit
    shape = InteractionGraph.of(circuit, range(3))
    everywhere = {qubits: cost for cost, qubits in placements(shape, chip, range(6))}

    def by_hand(place: tuple[int, ...]) -> float:
        fidelity = 1.0
        for op in circuit.ops:
            a, *b = (place[q] for q in op.qubits)
            fidelity *= 1 - (chip.neighbours[a].get(b[0], 1.0) if b else chip.qubits[a].error_1q)  # type: ignore[operator]
        return fidelity * float(np.prod([1 - chip.qubits[q].readout_error for q in place]))

    fidelities = {place: by_hand(place) for place in itertools.permutations(range(6), 3)}
    possible = {place: f for place, f in fidelities.items() if f > 0}
    assert set(everywhere) == set(possible)
    for place, cost in everywhere.items():
        assert cost == pytest.approx(-math.log(possible[place]))
    assert routed.qubits == max(possible, key=lambda place: possible[place])


def test_free_qubits_and_parts() -> None:
    chip = load_chip("wukong-72")
    pairs = Circuit(5, (Op("cx", (0, 1)), Op("cx", (3, 4))))
    free = [0, 1, 6, 7, 8, 40]
    routed = route(pairs, chip, free=free)
    assert set(routed.qubits) <= set(free)
    check_layout(routed.circuit, routed.qubits, chip)
    assert best_placement(InteractionGraph.of(to_native(Circuit(2, (Op("cx", (0, 1)),))), (0, 1)), chip, [0, 2]) is None


def test_refusals_give_the_reason() -> None:
    chip = load_chip("wukong-72")
    down = next(c.qubits for c in chip.couplers if not c.enabled)
    bell = Circuit(2, (Op("h", (0,)), Op("cx", (0, 1))))
    with pytest.raises(BackendError, match=r"op 1: the coupler between qubits \d+ and \d+ of wukong-72 is dead"):
        route(bell, chip, layout=down)
    with pytest.raises(BackendError, match="qubits 0 and 8 of wukong-72 are not coupled"):
        route(bell, chip, layout=(0, 8))
    with pytest.raises(BackendError, match="no qubit 72"):
        route(bell, chip, layout=(71, 72))
    with pytest.raises(BackendError, match="different chip qubit"):
        route(bell, chip, layout=(0, 0))
    with pytest.raises(BackendError, match="different chip qubit"):
        route(bell, chip, layout=(0, 1, 2))
    with pytest.raises(BackendError, match="op 0: h is not a native gate"):
        route(bell, chip, native=True)
    with pytest.raises(BackendError, match="more qubits than wukong-72 has"):
        route(Circuit(73, ()), chip)
    with pytest.raises(BackendError, match="no qubit 72"):
        route(Circuit(73, ()), chip, native=True)
    off = dataclasses.replace(chip, qubits=(dataclasses.replace(chip.qubits[0], enabled=False), *chip.qubits[1:]))
    with pytest.raises(BackendError, match="qubit 0 of wukong-72 is disabled"):
        route(to_native(bell), off, native=True)
    with pytest.raises(BackendError, match="no 3 free qubits that live couplers join"):
        route(Circuit(3, (Op("cx", (0, 1)), Op("cx", (1, 2)))), chip, free=[0, 1, 40, 41])


def test_swaps_without_qiskit(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = load_chip("wukong-180")
    monkeypatch.setitem(sys.modules, "qiskit.circuit", None)
    assert len(route(ansatz.qtha(6, 1), chip).qubits) == 6  # a hexagon needs none
    with pytest.raises(MissingDependencyError, match=r"qpeft\[qiskit\]"):
        route(ansatz.qtha(3, 1), chip)
