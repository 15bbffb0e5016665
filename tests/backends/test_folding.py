"""Folding: the same circuit, and on every backend that can scale its noise the noise that it asks for."""

from __future__ import annotations

import numpy as np
import pytest

from qpeft.backends.emulator.backend import EmulatorBackend
from qpeft.backends.folding import folded, inverse
from qpeft.backends.registry import get_backend
from qpeft.backends.simulator import SimulatorBackend
from qpeft.circuits import ansatz
from qpeft.circuits.ir import GATES, Angle, Circuit, Op
from qpeft.errors import BackendError
from tests.reference import fidelity, state

RY = Circuit(1, (Op("ry", (0,), Angle(0)),), 0, 1)


@pytest.mark.parametrize("name", GATES)
def test_inverses(name: str) -> None:
    spec = GATES[name]
    op = Op(name, tuple(range(spec.n_qubits)), Angle(0, 0.7, 0.2) if spec.parametrised else None)
    start = (*(Op("ry", (q,), Angle(shift=0.4 + q)) for q in range(2)), Op("rx", (1,), Angle(shift=1.0)))
    plain, undone = Circuit(2, start, 0, 1), Circuit(2, (*start, op, inverse(op)), 0, 1)
    assert fidelity(state(plain, [0.9]), state(undone, [0.9])) == pytest.approx(1, abs=1e-12)


def test_folding_keeps_the_circuit_and_its_parameters() -> None:
    circuit = ansatz.qtha(3, 1)
    row = np.random.default_rng(0).normal(size=circuit.n_params)
    once, thrice = folded(circuit, 1), folded(circuit, 3)
    assert once == circuit
    assert len(thrice.ops) == 3 * len(circuit.ops)
    assert fidelity(state(circuit, row), state(thrice, row)) == pytest.approx(1, abs=1e-12)
    assert len(folded(circuit, 3, frozenset({"ry"})).ops) == 3 * len(circuit.ops) - 2 * sum(op.gate == "ry" for op in circuit.ops)
    for scale in (0, 2, -1):
        with pytest.raises(BackendError, match="odd"):
            folded(circuit, scale)


@pytest.mark.parametrize("layout", [None, (0,)])
def test_folds_survive_the_emulators_compiler(layout: tuple[int, ...] | None) -> None:
    """RY at scales 1, 3, 5: each is further from the noiseless value than the one before."""
    backend = EmulatorBackend("wukong-72", layout=layout)
    values = []
    for scale in (1, 3, 5):
        compiled = backend.with_noise_scale(scale).compile(RY)
        p = backend.chip.qubits[compiled.places[0].qubits[0]]
        assert p.p1_given_0 is not None
        assert p.p0_given_1 is not None
        z = compiled.run(np.array([[1.2]]), None).expectations()[0, 0]
        readout = (1 - p.p1_given_0 - p.p0_given_1, p.p0_given_1 - p.p1_given_0)  # <Z> read = slope <Z> + offset
        values.append((z - readout[1]) / readout[0])
    off = np.abs(np.array(values) - np.cos(1.2))
    assert off[0] < off[1] < off[2]
    assert len({len(backend.with_noise_scale(s).compile(RY).places[0].circuit.ops) for s in (1, 3, 5)}) == 3


def test_a_noise_scale_is_another_calibration() -> None:
    backend = get_backend("emulator:wukong-72")
    assert backend.with_noise_scale(1).calibration == backend.calibration
    assert backend.with_noise_scale(3).calibration != backend.calibration


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_folds_survive_qiskits_transpiler() -> None:
    """On a noisy Qiskit backend whose native gates are cx, rz, sx and x: depth and error grow with the scale."""
    pytest.importorskip("qiskit_aer")
    circuit = Circuit(2, (Op("ry", (0,), Angle(0)), Op("cx", (0, 1))), 0, 1)
    backend = get_backend("qiskit:tests.backends.fake_qiskit:backend", allow_import=True)
    row, shots = np.array([[1.2]]), 60_000
    exact = SimulatorBackend().compile(circuit).run(row, None).expectations()
    off, sizes = [], []
    for scale in (1, 15):
        compiled = backend.with_noise_scale(scale).compile(circuit)
        sizes.append(compiled.quantum_circuit.size())  # type: ignore[attr-defined]
        off.append(np.abs(compiled.run(row, shots, seed=1).expectations() - exact).max())
    assert sizes[1] > 12 * sizes[0]
    assert off[1] > off[0] + 0.01


def test_backends_without_noise_and_backends_that_cannot() -> None:
    simulator = SimulatorBackend()
    assert simulator.with_noise_scale(3) is simulator
    with pytest.raises(BackendError, match="odd"):
        simulator.with_noise_scale(2)
