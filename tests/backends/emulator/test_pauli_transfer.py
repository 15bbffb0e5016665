"""The Pauli-transfer simulator against Aer's density matrix with Aer's own noise, and against itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from qpeft.backends.emulator import backend, pauli_transfer
from qpeft.backends.emulator.backend import EmulatorBackend, probabilities_of
from qpeft.backends.emulator.noise import schedule
from qpeft.circuits.ir import Angle, Circuit, Op
from qpeft.circuits.simulator.simulate import expectations
from tests.backends.emulator import aer_reference
from tests.backends.emulator.random_chips import random_chip, random_native

SHAPES = {
    1: [],
    3: [(0, 1), (1, 2)],
    4: [(0, 1), (1, 2), (2, 3), (3, 0)],
    5: [(0, 1), (0, 2), (0, 3), (3, 4)],
    6: [(0, 1), (1, 2), (3, 4), (4, 5)],  # two parts
}


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("n", SHAPES)
def test_equal_to_aer_on_random_circuits(n: int, include: bool) -> None:
    """Gate, decay, idle and readout noise, qubits of the chip in another order than the circuit's."""
    rng = np.random.default_rng([n, include])
    physical = [int(q) for q in rng.permutation(n + 2)[:n]]
    joined = [(physical[a], physical[b]) for a, b in SHAPES[n]]
    spare = [q for q in range(n + 2) if q not in physical]
    chip = random_chip([*joined, (spare[0], physical[0]), (spare[0], spare[1])], n, include=include)
    aer = aer_reference.simulator(chip)
    for depth in (6, 30):
        circuit = random_native(n, SHAPES[n], depth, rng)
        params = rng.normal(size=(1, 3))
        emulated = EmulatorBackend(chip, native=True, layout=physical).compile(circuit)
        found = emulated.run(params, None).probabilities()
        for row, values in zip(found, params.tolist(), strict=True):
            expected = aer_reference.probabilities(chip, circuit, physical, values, aer)
            assert abs(row.sum() - 1) < 1e-14
            assert np.abs(row - expected).max() < 1e-8  # Aer's own sum can be 3e-9 short of 1


def test_noise_shows() -> None:
    """The reference would agree with itself if all noise were forgotten in both: each part of it moves the outcome."""
    chip = random_chip([(0, 1), (1, 2)], 0, include=False)
    circuit = random_native(3, SHAPES[3], 25, np.random.default_rng(0))

    def outcome(**changes: float) -> np.ndarray:
        qubits = tuple(dataclasses.replace(q, **{k: v for k, v in changes.items() if k != "error_cz"}) for q in chip.qubits)
        couplers = tuple(dataclasses.replace(c, error_cz=changes.get("error_cz", c.error_cz)) for c in chip.couplers)
        altered = dataclasses.replace(chip, qubits=qubits, couplers=couplers)
        return EmulatorBackend(altered, native=True).compile(circuit).run(np.ones((1, 3)), None).probabilities()

    before = outcome()
    for name, value in {"error_1q": 0.0, "error_cz": 0.0, "t2_us": 1.0, "p1_given_0": 0.0, "p0_given_1": 0.0}.items():
        assert np.abs(outcome(**{name: value}) - before).max() > 1e-3, name
    assert np.abs(outcome(t1_us=1e6) - before).max() > 1e-4


def test_without_noise_the_state_vector() -> None:
    chip = random_chip([(0, 1), (1, 2), (2, 3), (3, 0)], 0)
    quiet = dataclasses.replace(
        chip,
        qubits=tuple(
            dataclasses.replace(q, t1_us=1e12, t2_us=1e12, error_1q=0.0, p1_given_0=0.0, p0_given_1=0.0) for q in chip.qubits
        ),
        couplers=tuple(dataclasses.replace(c, error_cz=0.0) for c in chip.couplers),
    )
    rng = np.random.default_rng(0)
    circuit, params = random_native(4, SHAPES[4], 40, rng), rng.normal(size=(3, 3))
    counts = EmulatorBackend(quiet, native=True).compile(circuit).run(params, None)
    exact = [expectations(circuit, torch.zeros(0, dtype=torch.float64), torch.from_numpy(row)).numpy() for row in params]
    assert np.abs(counts.expectations() - exact).max() < 1e-8


def test_rows_of_a_batch_do_not_touch() -> None:
    rng = np.random.default_rng(1)
    chip, circuit = random_chip(SHAPES[4], 0), random_native(4, SHAPES[4], 30, rng)
    emulated = EmulatorBackend(chip, native=True).compile(circuit)
    params = rng.normal(size=(7, 3))
    params[:, 1] = 0.3  # one angle that all rows share
    whole = emulated.run(params, None).probabilities()
    each = np.concatenate([emulated.run(row[None], None).probabilities() for row in params])
    assert np.abs(whole - each).max() < 1e-14


def test_chunks(monkeypatch: pytest.MonkeyPatch) -> None:

    rng = np.random.default_rng(2)
    emulated = EmulatorBackend(random_chip(SHAPES[4], 0), native=True).compile(random_native(4, SHAPES[4], 30, rng))
    params = rng.normal(size=(7, 3))
    whole = emulated.run(params, None).probabilities()
    monkeypatch.setattr(backend, "CHUNK_BYTES", 3 * 8 * max(part.plan.peak for part in emulated.parts[0]))
    assert np.abs(emulated.run(params, None).probabilities() - whole).max() < 1e-14


def test_gradients() -> None:
    """Inputs and angles alike, with other qubits traced out, against finite differences; in the noise too."""
    rng = np.random.default_rng(3)
    emulated = EmulatorBackend(random_chip(SHAPES[4], 0), native=True).compile(random_native(4, SHAPES[4], 20, rng))
    params = torch.from_numpy(rng.normal(size=(2, 3))).requires_grad_()
    assert torch.autograd.gradcheck(emulated.probabilities, params, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda p: emulated.marginals(p, [[2]])[0], params, fast_mode=True)
    part = emulated.parts[0][0]
    noise = {
        f.name: torch.from_numpy(getattr(part.calibration, f.name)).requires_grad_() for f in dataclasses.fields(part.calibration)
    }

    def ends(*values: torch.Tensor) -> torch.Tensor:
        turned = [torch.tensor([angle.value([0.1, 0.2, 0.3])], dtype=torch.float64) for angle in part.angles]
        return pauli_transfer.evolve(part.plan, lambda slot: turned[slot], dict(zip(noise, values, strict=True)))[0][1]

    assert torch.autograd.gradcheck(ends, tuple(noise.values()), fast_mode=True)


def test_single_precision() -> None:
    rng = np.random.default_rng(4)
    emulated = EmulatorBackend(random_chip(SHAPES[4], 0), native=True).compile(random_native(4, SHAPES[4], 30, rng))
    params = torch.from_numpy(rng.normal(size=(2, 3)))
    single = emulated.probabilities(params.float())
    assert single.dtype == torch.float32
    assert (single - emulated.probabilities(params)).abs().max() < 1e-6


@pytest.mark.parametrize("n", [4, 8])
def test_a_qubit_joins_late_and_leaves_early(n: int) -> None:
    """One layer along a line leaves one qubit's coefficients beside the outcomes of others; a vector of n qubits is 4^n at most."""
    line = [Op("cz", (q, q + 1)) for q in range(n - 1)]
    turns = [Op("rx", (q,), Angle(shift=1.0)) for q in range(n)]
    once, _ = schedule(Circuit(n, (*turns, *line)), 30.0, 40.0)
    assert pauli_transfer.arrange(once, frozenset(range(n))).peak == 4 * 2 ** (n - 2)
    many, _ = schedule(Circuit(n, (*turns, *line, *turns, *reversed(line), *turns, *line) * 3), 30.0, 40.0)
    assert 4 ** (n - 1) <= pauli_transfer.arrange(many, frozenset(range(n))).peak <= 4**n


def test_circuits_of_equal_structure_run_as_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other places, other noise, other angles and parameters, other numbers of rows: one call, equal to each alone."""
    chip = random_chip([(q, q + 1) for q in range(8)], 5)
    backends = [EmulatorBackend(chip, native=True, layout=layout) for layout in ((0, 1, 2), (5, 4, 3), (6, 7, 8))]
    shape = random_native(3, SHAPES[3], 20, np.random.default_rng(6))
    rng = np.random.default_rng(7)
    circuits = [
        Circuit(3, tuple(op if op.angle is None else Op(op.gate, op.qubits, Angle(int(rng.integers(2)))) for op in shape.ops), 0, 2)
        for _ in backends
    ]
    compiled = [backend.compile(circuit) for backend, circuit in zip(backends, circuits, strict=True)]
    params = [torch.from_numpy(rng.normal(size=(rows, 2))) for rows in (1, 4, 2)]
    alone = [one.probabilities(rows) for one, rows in zip(compiled, params, strict=True)]
    calls = []
    evolve = pauli_transfer.evolve
    monkeypatch.setattr(pauli_transfer, "evolve", lambda *a: calls.append(1) or evolve(*a))
    together = probabilities_of(compiled, params)
    assert len(calls) == 1
    for found, expected in zip(together, alone, strict=True):
        assert (found - expected).abs().max() < 1e-14
