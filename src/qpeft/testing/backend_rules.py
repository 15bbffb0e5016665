"""The contract of a backend: a function for each rule, and `BACKEND_RULES`, the list of them.

A rule raises AssertionError with the reason where the backend breaks it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qpeft.backends.base import Backend, Counts, FloatArray
from qpeft.backends.executor import BackendExecutor
from qpeft.backends.simulator import SimulatorBackend
from qpeft.circuits.ir import GATES, Angle, Circuit, Observable, Op
from qpeft.circuits.simulator.simulate import expectations
from qpeft.errors import BackendError, CircuitError, QpeftError

SIGMAS = 6.0


@dataclass(frozen=True)
class BackendSubject:
    """The backend under test and how to hold it."""

    backend: Backend
    noisy: bool
    seeded: bool
    shots: int
    seed: int

    def run(self, circuit: Circuit, rows: Any, shots: int | None = 0, seed: int | None = None) -> Counts:
        """Compile and run a circuit on the backend under test.

        Args:
            circuit: the circuit.
            rows: parameters `(batch, n_params)`, radians.
            shots: repetitions of each row; 0 for the subject's own number, None for exact probabilities.
            seed: default the subject's own.
        """
        chosen = self.shots if shots == 0 else shots
        return self.backend.compile(circuit).run(rows, chosen, self.seed if seed is None else seed)

    def parameters(self, circuit: Circuit, rows: int) -> FloatArray:
        """Random parameters of a circuit, uniform in (-3, 3) radians: `(rows, n_params)` float64, equal for equal `seed`."""
        return np.random.default_rng(self.seed).uniform(-3, 3, size=(rows, circuit.n_params))


def _asymmetric(n: int) -> Circuit:
    """Qubit 0 in 1, the others turned a little, each by another angle: every permutation of the bits gives another outcome."""
    ops = [Op("x", (0,))]
    ops += [Op("ry", (q,), Angle(q - 1, 0.2, 0.5 / q)) for q in range(1, n)]
    return Circuit(n, (*ops, *(Op("cz", (q, q + 1)) for q in range(n - 1))), 0, n - 1)


def _every_gate() -> Circuit:
    """Each gate of the table between two layers of rotations, in a circuit that is sensitive to all."""
    ops = [Op(gate, (q,), Angle(q)) for q in range(3) for gate in ("ry", "rx")]
    for k, (name, spec) in enumerate(GATES.items()):
        qubits = tuple((k + j) % 3 for j in range(spec.n_qubits))
        ops.append(Op(name, qubits, Angle(3 + k % 4, 0.3 + k / 17, 0.1 * k) if spec.parametrised else None))
    return Circuit(3, (*ops, *(Op("rx", (q,), Angle(shift=0.7 + q)) for q in range(3))), 0, 7)


def _close(counts: Counts, want: FloatArray, what: str) -> None:
    """Frequencies within `SIGMAS` standard deviations of the probabilities."""
    assert counts.shots is not None
    bound = SIGMAS * np.sqrt(want * (1 - want) / counts.shots) + 1e-9
    excess = np.abs(counts.probabilities() - want) / bound
    assert excess.max(initial=0) <= 1, f"{what}: {SIGMAS * excess.max():.1f} standard deviations from the right distribution"


def _noiseless(circuit: Circuit, rows: FloatArray) -> FloatArray:
    return SimulatorBackend().compile(circuit).run(rows, None).probabilities()


def _reference(subject: BackendSubject, circuit: Circuit, rows: FloatArray) -> FloatArray | None:
    """The distribution that shots must follow: the noiseless one, or a noisy backend's own where it is known."""
    if not subject.noisy:
        return _noiseless(circuit, rows)
    return subject.run(circuit, rows, None).probabilities() if subject.backend.limits.exact else None


def describes_itself(subject: BackendSubject) -> None:
    """The backend implements the protocol: name, calibration, limits that JSON can hold, an estimate of at least 0 seconds."""
    backend = subject.backend
    assert isinstance(backend, Backend), "an attribute or method of the Backend protocol is missing"
    assert backend.name, "no name"
    assert isinstance(backend.calibration, str), "calibration is text"
    assert backend.calibration, "calibration is empty"
    assert isinstance(backend.simulated, bool), "simulated is true or false"
    json.dumps(dataclasses.asdict(backend.limits))
    assert backend.limits.max_qubits >= 1, "a backend takes at least one qubit"
    assert backend.estimate(10, 100) >= 0, "an estimate is a number of seconds"
    assert backend.compile(_asymmetric(2)).per_program >= 1, "a program carries at least one row"


def bit_order(subject: BackendSubject) -> None:
    """Qubit 0 is the leftmost bit of an outcome and the first column of `expectations()`."""
    circuit = _asymmetric(3)
    counts = subject.run(circuit, np.zeros((1, 2)))
    z = counts.expectations()[0]
    assert z[0] < 0, f"qubit 0 was turned to 1, but <Z_0> = {z[0]:.2f}: are the bits reversed?"
    assert z[1:].min() > 0, f"qubits 1 and 2 stay near 0, but <Z> = {z[1:]}: are the bits reversed?"
    (row,) = counts.counts
    likeliest = max(row, key=lambda word: row[word])
    assert likeliest == "100", f"the likeliest outcome is 100, qubit 0 leftmost, but {likeliest} was"
    reference = _reference(subject, circuit, np.zeros((1, 2)))
    if reference is not None:
        _close(counts, reference, "three qubits turned by different angles")


def every_gate(subject: BackendSubject) -> None:
    """Every gate of `GATES` gives the right distribution.

    Exact probabilities of a noiseless backend are within 1e-6, frequencies within `SIGMAS` standard deviations. A noisy backend's
    frequencies are compared with its own exact probabilities; where it has none, nothing is checked.
    """
    circuit = _every_gate()
    rows = subject.parameters(circuit, 2)
    if subject.backend.limits.exact and not subject.noisy:
        off = np.abs(subject.run(circuit, rows, None).probabilities() - _noiseless(circuit, rows)).max()
        assert off < 1e-6, f"exact probabilities off by {off:.1e}"
    reference = _reference(subject, circuit, rows)
    if reference is not None:
        _close(subject.run(circuit, rows), reference, "every gate of the table")


def exact_where_it_says(subject: BackendSubject) -> None:
    """`shots=None` gives probabilities of sum 1 where `limits.exact`, and is refused elsewhere."""
    circuit = _asymmetric(2)
    if subject.backend.limits.exact:
        table = subject.run(circuit, np.zeros((2, 1)), None)
        assert table.shots is None, "exact probabilities that claim shots"
        total = table.probabilities().sum(axis=1)
        assert np.allclose(total, 1, atol=1e-9), f"probabilities sum to {total}"
        return
    _refused(subject, "exact probabilities", circuit, np.zeros((1, 1)), None)


def shots_are_counted(subject: BackendSubject) -> None:
    """100 shots per row give `Counts.shots == 100` and counts that sum to 100 in each row."""
    counts = subject.run(_asymmetric(2), np.zeros((3, 1)), 100)
    assert counts.shots == 100, f"100 shots were asked, {counts.shots} are claimed"
    assert [sum(row.values()) for row in counts.counts] == [100] * 3, "counts of a row do not add up to its shots"


def seeds_repeat(subject: BackendSubject) -> None:
    """Equal seeds give equal outcomes, different seeds different ones; equal rows of a batch are sampled independently.

    Checked for seeded backends only.
    """
    if not subject.seeded:
        return
    circuit, rows = _asymmetric(3), np.full((4, 2), 3.0)
    first, again, other = (subject.run(circuit, rows, 500, seed).counts for seed in (7, 7, 8))
    assert first == again, "equal seeds gave different outcomes"
    assert first != other, "different seeds gave equal outcomes"
    assert any(first[0] != row for row in first[1:]), "equal rows of one batch have equal outcomes: their shots are not independent"


def batch_equals_single_runs(subject: BackendSubject) -> None:
    """A row of parameters gives the same distribution in a batch as in a run of its own.

    Exact probabilities agree within 1e-9 where a program carries one row. Otherwise each row of a noiseless backend is run by
    itself and compared with the exact distribution, within `SIGMAS` standard deviations.
    """
    circuit = _every_gate()
    rows = subject.parameters(circuit, 3)
    if subject.backend.limits.exact and subject.backend.compile(circuit).per_program == 1:
        together = subject.run(circuit, rows, None).probabilities()
        alone = np.concatenate([subject.run(circuit, row[None], None).probabilities() for row in rows])
        off = np.abs(together - alone).max()
        assert off < 1e-9, f"a batch and single runs differ by {off:.1e}"
    elif not subject.noisy:
        for k, row in enumerate(_noiseless(circuit, rows)):
            _close(subject.run(circuit, rows[k : k + 1]), row[None], f"row {k} alone")


def empty_batch(subject: BackendSubject) -> None:
    """A batch of no rows gives `Counts` of length 0 and expectation values of shape `(0, n_qubits)`."""
    counts = subject.run(_asymmetric(2), np.empty((0, 1)))
    assert len(counts) == 0, f"no rows gave {len(counts)}"
    assert counts.expectations().shape == (0, 2), f"no rows have expectation values of shape {counts.expectations().shape}"


def _refused(subject: BackendSubject, what: str, circuit: Circuit, rows: Any, shots: Any, compiling: bool = False) -> None:
    """An error of ours, with a reason; `compiling`: it must come before `run`."""
    try:
        compiled = subject.backend.compile(circuit)
        assert not compiling, f"{what}: compiled without complaint"
        compiled.run(rows, shots, subject.seed)
    except (BackendError, CircuitError) as error:
        reason = str(error)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__} instead of one of qpeft's errors: {error}") from error
    else:
        raise AssertionError(f"{what}: accepted")
    assert len(reason) > 10, f"{what}: refused without a reason"


def refuses_too_many_qubits(subject: BackendSubject) -> None:
    """`compile` refuses a circuit of `limits.max_qubits + 1` qubits with a BackendError or CircuitError."""
    size = subject.backend.limits.max_qubits + 1
    _refused(subject, f"{size} qubits", Circuit(size, ()), np.empty((1, 0)), 10, compiling=True)


def refuses_bad_shots(subject: BackendSubject) -> None:
    """Shots that are not a whole number from 1 to `limits.max_shots` (if set) raise a BackendError or CircuitError."""
    most = subject.backend.limits.max_shots
    for shots in (0, -1, 1.5, True, "many", *(() if most is None else (most + 1,))):
        _refused(subject, f"shots={shots!r}", _asymmetric(2), np.zeros((1, 1)), shots)


def refuses_bad_parameters(subject: BackendSubject) -> None:
    """Parameters that are not a `(batch, n_params)` array of finite numbers raise a BackendError or CircuitError."""
    bad: Sequence[tuple[str, Any]] = (
        ("one column too many", np.zeros((1, 2))),
        ("a vector", np.zeros(1)),
        ("three axes", np.zeros((1, 1, 1))),
        ("nan", np.full((1, 1), np.nan)),
        ("inf", np.full((1, 1), np.inf)),
        ("text", [["x"]]),
    )
    for what, rows in bad:
        _refused(subject, f"parameters: {what}", _asymmetric(2), rows, 10)


def measures_observables(subject: BackendSubject) -> None:
    """Words of X, Y and Z, and sums of them, through BackendExecutor."""
    circuit = Circuit(2, (Op("ry", (0,), Angle(0)), Op("cx", (0, 1)), Op("rx", (1,), Angle(1))), 1, 2)
    observables = [Observable.pauli(word) for word in ("ZI", "XX", "YX", "ZY")]
    observables.append(Observable(((0.5, ()), (1.0, ((0, "X"),)), (-0.25, ((1, "Y"),)))))
    inputs, angles = torch.tensor([[0.4], [2.0]], dtype=torch.float64), torch.tensor([1.1], dtype=torch.float64)
    found = BackendExecutor(subject.backend, subject.shots, seed=subject.seed).compile(circuit, observables)(inputs, angles)
    want = expectations(circuit, inputs, angles, observables)
    assert found.shape == want.shape, f"shape {tuple(found.shape)} instead of {tuple(want.shape)}"
    if subject.noisy:
        if not subject.backend.limits.exact:
            return
        want = BackendExecutor(subject.backend).compile(circuit, observables)(inputs, angles)
    spread = sum(abs(c) for c, word in observables[-1].terms if word)  # no value of an observable is further from its mean
    off = (found - want).abs().max().item()
    bound = SIGMAS * float(spread) / subject.shots**0.5
    assert off <= bound, f"an expectation value is off by {off:.3f}, more than {bound:.3f}"


def raises_our_errors_alone(subject: BackendSubject) -> None:
    """An observable on a qubit that the circuit does not have raises a QpeftError in BackendExecutor."""
    try:
        BackendExecutor(subject.backend, subject.shots).compile(_asymmetric(2), [Observable.z(5)])
    except QpeftError:
        return
    raise AssertionError("an observable on a qubit that is not there was accepted")


BACKEND_RULES: dict[str, Callable[[BackendSubject], None]] = {
    rule.__name__: rule
    for rule in (
        describes_itself,
        bit_order,
        every_gate,
        exact_where_it_says,
        shots_are_counted,
        seeds_repeat,
        batch_equals_single_runs,
        empty_batch,
        refuses_too_many_qubits,
        refuses_bad_shots,
        refuses_bad_parameters,
        measures_observables,
        raises_our_errors_alone,
    )
}
