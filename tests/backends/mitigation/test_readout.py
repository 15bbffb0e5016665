"""Readout correction on readout errors put in by hand, and on the emulator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from qpeft.backends.base import CompiledCircuit, Counts, Limits, check_run, sample
from qpeft.backends.mitigation.readout import MitigatedBackend, ReadoutCorrection, nearest_distribution
from qpeft.backends.registry import get_backend
from qpeft.backends.simulator import SimulatorBackend
from qpeft.circuits import ansatz
from qpeft.circuits.ir import Circuit
from qpeft.errors import BackendError

PAIR = np.array([[0.9, 0.1, 0.05, 0.0], [0.02, 0.8, 0.0, 0.1], [0.05, 0.02, 0.9, 0.15], [0.03, 0.08, 0.05, 0.75]])
ONE = np.array([[0.97, 0.09], [0.03, 0.91]])


@dataclass(frozen=True)
class Misread(SimulatorBackend):
    """A perfect chip with poor readout: qubits 0 and 2 together by PAIR, every other by ONE."""

    limits: Limits = field(default_factory=lambda: Limits(20, exact=True))
    calibration: str = "misread"

    def compile(self, circuit: Circuit) -> Any:
        inner = SimulatorBackend().compile(circuit)

        class Compiled(CompiledCircuit):
            def run(this, params: Any, shots: int | None, seed: int | None = None) -> Counts:
                rows = check_run("misread", self.limits, circuit, params, shots)
                table = misread(inner.run(rows, None).probabilities(), circuit.n_qubits)
                return Counts.dense(table, None) if shots is None else sample(table, shots, seed)

        compiled: Any = Compiled()
        compiled.circuit = circuit
        return compiled


def misread(table: np.ndarray, n: int) -> np.ndarray:
    """The errors, by the definition of a confusion matrix, index by index."""
    bits = (np.arange(2**n)[:, None] >> np.arange(n)[::-1]) & 1
    matrix = PAIR[2 * bits[:, None, 0] + bits[:, None, 2], 2 * bits[None, :, 0] + bits[None, :, 2]]
    for q in range(n):
        if q not in (0, 2):
            matrix = matrix * ONE[bits[:, None, q], bits[None, :, q]]
    return table @ matrix.T


GROUPS = ((2, 0), (1,), (3,))
CIRCUIT = ansatz.qtha(4, 1)
ROWS = np.random.default_rng(3).normal(size=(6, 20))


def test_calibration_finds_the_matrices() -> None:
    shots = 40_000
    found = ReadoutCorrection.measure(Misread(), 4, shots, groups=GROUPS, seed=0)
    assert found.shots == 4 * shots
    swapped = PAIR[np.ix_([0, 2, 1, 3], [0, 2, 1, 3])]  # the group is (2, 0): its first qubit is the chip's qubit 2
    for matrix, want in zip(found.matrices, (swapped, ONE, ONE), strict=True):
        assert (np.abs(matrix - want) <= 6 * np.sqrt(want * (1 - want) / shots) + 1e-9).all()


def test_correction_is_exact_with_exact_matrices_and_values() -> None:
    swapped = PAIR[np.ix_([0, 2, 1, 3], [0, 2, 1, 3])]
    correction = ReadoutCorrection(GROUPS, (swapped, ONE, ONE))
    exact = SimulatorBackend().compile(CIRCUIT).run(ROWS, None).probabilities()
    read = Misread().compile(CIRCUIT).run(ROWS, None)
    assert np.abs(read.probabilities() - exact).max() > 0.05
    np.testing.assert_allclose(correction.correct(read).probabilities(), exact, atol=1e-10)
    mitigated = MitigatedBackend(Misread(), correction).compile(CIRCUIT).run(ROWS, None)
    np.testing.assert_allclose(mitigated.probabilities(), exact, atol=1e-10)


def test_correction_with_shots_beats_none_and_stays_a_distribution() -> None:
    correction = ReadoutCorrection.measure(Misread(), 4, 20_000, groups=GROUPS, seed=0)
    exact = SimulatorBackend().compile(CIRCUIT).run(ROWS, None).expectations()
    read = Misread().compile(CIRCUIT).run(ROWS, 5000, seed=4)
    mended = correction.correct(read)
    assert (mended.probabilities() >= 0).all()
    np.testing.assert_allclose(mended.probabilities().sum(axis=1), 1)
    assert np.abs(mended.expectations() - exact).mean() < 0.2 * np.abs(read.expectations() - exact).mean()


def test_many_qubits_are_corrected_on_what_was_seen() -> None:
    """A GHZ state on 16 qubits: correlated outcomes that a product of marginals would miss."""
    n, shots, random = 16, 4000, np.random.default_rng(0)
    true = np.repeat(random.integers(0, 2, size=(shots, 1)), n, axis=1)
    flip = np.where(true == 1, ONE[0, 1], ONE[1, 0])
    words, seen = np.unique(true ^ (random.random(true.shape) < flip), axis=0, return_counts=True)
    counts = Counts.sparse(n, [(words, seen)], shots)
    mended = ReadoutCorrection(tuple((q,) for q in range(n)), (ONE,) * n).correct(counts)
    ((bits, weights),) = list(mended)
    ends = weights[(bits.all(axis=1)) | (~bits.any(axis=1))].sum() / shots
    raw = seen[(words.all(axis=1)) | (~words.any(axis=1))].sum() / shots
    assert raw < 0.5
    assert ends > 0.9


def test_nearest_distribution() -> None:
    random = np.random.default_rng(0)
    table = random.normal(0.1, 0.3, size=(50, 8))
    found = nearest_distribution(table)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)
    for other in random.dirichlet(np.ones(8), size=200):  # no other distribution is nearer
        assert (np.linalg.norm(table - found, axis=1) <= np.linalg.norm(table - other, axis=1) + 1e-12).all()
    np.testing.assert_allclose(nearest_distribution(found), found, atol=1e-12)


def test_never_twice() -> None:
    correction = ReadoutCorrection.measure(SimulatorBackend(), 2, 100, seed=0)
    once = MitigatedBackend(SimulatorBackend(), correction)
    with pytest.raises(BackendError, match="corrects readout itself"):
        MitigatedBackend(once, correction)
    with pytest.raises(BackendError, match="corrects readout itself"):
        ReadoutCorrection.measure(once, 2, 100)


def test_settings_are_checked() -> None:
    with pytest.raises(BackendError, match="every qubit once"):
        ReadoutCorrection(((0,), (0,)), (ONE, ONE))
    with pytest.raises(BackendError, match="distributions"):
        ReadoutCorrection(((0,),), (ONE.T,))
    with pytest.raises(BackendError, match="tells nothing"):
        ReadoutCorrection(((0,),), (np.full((2, 2), 0.5),))
    with pytest.raises(BackendError, match="another register"):
        MitigatedBackend(SimulatorBackend(), ReadoutCorrection(((0,),), (ONE,))).compile(CIRCUIT)


def test_emulator_needs_a_fixed_layout_and_gains() -> None:
    layout = get_backend("emulator:wukong-72").compile(CIRCUIT).qubits
    backend = get_backend("emulator:wukong-72", layout=layout)
    correction = ReadoutCorrection.measure(backend, 4, 20_000, seed=0)
    assert correction.place == layout
    exact = SimulatorBackend().compile(CIRCUIT).run(ROWS, None).expectations()
    errors = [
        np.abs(b.compile(CIRCUIT).run(ROWS, None).expectations() - exact).mean()
        for b in (backend, MitigatedBackend(backend, correction))
    ]
    assert errors[1] < errors[0]
    with pytest.raises(BackendError, match="other qubits"):
        MitigatedBackend(get_backend("emulator:wukong-72", layout=layout[::-1]), correction).compile(CIRCUIT)
    with pytest.raises(BackendError, match="packed"):
        ReadoutCorrection.measure(get_backend("emulator:wukong-72", pack=True), 4, 100)
