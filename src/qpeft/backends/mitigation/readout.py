"""Readout correction around a backend.

    backend = get_backend("emulator:wukong-72", layout=layout)  # fixed, so that calibration and circuits use the same qubits
    corrected = MitigatedBackend(backend, ReadoutCorrection.measure(backend, 4, shots=10_000, seed=0))

A group of qubits that was in state j is read as i with probability `A[i, j]`, its *confusion matrix*. Groups are single qubits by
default (two calibration circuits in all), or subsets of k qubits whose errors go together (`2^k` circuits). The matrix of the
register is the product over groups. For few qubits its inverse is applied, group by group, and the result moved to the nearest
distribution without negative entries (least squares). For many, the equations are solved on the outcomes that were seen alone,
each column scaled to what stays among them, without ever writing the matrix down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qpeft.backends.base import Backend, BoolArray, CompiledCircuit, Counts, FloatArray, Limits
from qpeft.circuits.ir import Circuit, Op
from qpeft.errors import BackendError

DENSE = 12  # qubits up to which the whole distribution is corrected
MAX_GROUP = 6
CHUNK = 512  # rows of the matrix made at a time where outcomes are sparse
TOLERANCE, MAX_STEPS = 1e-10, 1000


@dataclass(frozen=True, eq=False)
class ReadoutCorrection:
    """Confusion matrices of disjoint groups of qubits that cover the register.

    Attributes:
        groups: qubits of each group; the first is the most significant bit of its matrix's indices.
        matrices: `(2^k, 2^k)` each, `A[read, prepared]`, columns sum to 1.
        place: the chip's qubits that were calibrated, where the backend names them; () where it does not.
        shots: spent on the calibration.
    """

    groups: tuple[tuple[int, ...], ...]
    matrices: tuple[FloatArray, ...]
    place: tuple[int, ...] = ()
    shots: int = 0

    def __post_init__(self) -> None:
        if sorted(q for group in self.groups for q in group) != list(range(self.n_qubits)):
            raise BackendError("groups hold every qubit once", value=self.groups)
        for group, matrix in zip(self.groups, self.matrices, strict=True):
            if matrix.shape != (2 ** len(group),) * 2 or not np.allclose(matrix.sum(axis=0), 1) or (matrix < 0).any():
                raise BackendError("a confusion matrix has columns that are distributions", value=group)
            if np.linalg.cond(matrix) > 1e6:
                raise BackendError("readout tells nothing of these qubits", value=group, hint="leave them out of the circuit")

    @property
    def n_qubits(self) -> int:
        """Number of qubits in all groups together."""
        return sum(map(len, self.groups))

    @classmethod
    def measure(
        cls, backend: Backend, n_qubits: int, shots: int, *, groups: Sequence[Sequence[int]] | None = None, seed: int | None = None
    ) -> ReadoutCorrection:
        """Measure the confusion matrices of a backend: every state of every group is prepared, all groups at once.

        Args:
            backend: measures the same qubits of the chip here and later, so its layout must be fixed.
            n_qubits: number of qubits.
            shots: repetitions of each of the `2^k` circuits, k being the size of the largest group.
            groups: qubits of each group; default one group per qubit.
            seed: equal seeds give equal outcomes on simulated backends.

        Raises:
            BackendError: a group of more than `MAX_GROUP` qubits; circuits that went to different qubits; a backend that corrects
                readout errors already.
        """
        refuse_twice(backend)
        chosen = tuple(tuple(g) for g in groups) if groups is not None else tuple((q,) for q in range(n_qubits))
        largest = max(map(len, chosen))
        if largest > MAX_GROUP:
            raise BackendError("a group is too large to calibrate", value=largest, bound=f"at most {MAX_GROUP} qubits")
        seen = [np.zeros((2 ** len(group),) * 2) for group in chosen]
        place: tuple[int, ...] = ()
        for pattern in range(2**largest):
            prepared = [pattern % 2 ** len(group) for group in chosen]
            flipped = [q for group, state in zip(chosen, prepared, strict=True) for q in _ones(group, state)]
            compiled = backend.compile(Circuit(n_qubits, tuple(Op("x", (q,)) for q in flipped)))
            here = _place(compiled)
            if pattern and here != place:
                raise BackendError(
                    "calibration circuits went to different qubits of the chip",
                    value=(place, here),
                    hint="fix the backend's layout",
                )
            place = here
            counts = compiled.run(np.empty((1, 0)), shots, None if seed is None else seed + pattern)
            for group, state, matrix in zip(chosen, prepared, seen, strict=True):
                matrix[:, state] += counts.marginal(group).probabilities()[0]
        return cls(chosen, tuple(m / m.sum(axis=0) for m in seen), place, shots * 2**largest)

    def correct(self, counts: Counts) -> Counts:
        """The counts without readout errors, as weights that are no whole numbers; none is negative."""
        if counts.n_qubits != self.n_qubits:
            raise BackendError("the correction is for another register", value=counts.n_qubits, bound=self.n_qubits)
        total = 1.0 if counts.shots is None else float(counts.shots)
        if counts.n_qubits <= DENSE:
            return Counts.dense(total * nearest_distribution(self._invert(counts.probabilities())), counts.shots)
        rows = []
        for bits, weights in counts:
            solved = nearest_distribution(self._solve(bits, weights / weights.sum())[None])[0]
            rows.append((bits, total * solved))
        return Counts.sparse(counts.n_qubits, rows, counts.shots)

    def _invert(self, table: FloatArray) -> FloatArray:
        grid = table.reshape(len(table), *(2,) * self.n_qubits)
        for group, matrix in zip(self.groups, self.matrices, strict=True):
            axes = [1 + q for q in group]
            front = np.moveaxis(grid, axes, range(1, 1 + len(axes)))
            flat = np.linalg.inv(matrix) @ front.reshape(len(table), len(matrix), -1)
            grid = np.moveaxis(flat.reshape(front.shape), range(1, 1 + len(axes)), axes)
        return grid.reshape(table.shape)

    def _solve(self, bits: BoolArray, seen: FloatArray) -> FloatArray:
        """`x` with `A x = seen` on the outcomes `bits (k, n)`, columns of A scaled to sum 1 on them: Richardson steps with A's
        diagonal, which dominates as long as readout is right more often than not."""
        numbers = [bits[:, list(group)] @ (1 << np.arange(len(group))[::-1]) for group in self.groups]

        def block(rows: slice) -> FloatArray:
            made = np.ones((len(numbers[0][rows]), len(bits)))
            for number, matrix in zip(numbers, self.matrices, strict=True):
                made *= matrix[number[rows]][:, number]
            return made

        parts = [slice(start, start + CHUNK) for start in range(0, len(bits), CHUNK)]
        kept: FloatArray = sum((block(part).sum(axis=0) for part in parts), np.zeros(len(bits)))
        diagonal = np.ones(len(bits))
        for number, matrix in zip(numbers, self.matrices, strict=True):
            diagonal *= np.diag(matrix)[number]
        diagonal /= kept
        x: FloatArray = seen.copy()
        for _ in range(MAX_STEPS):
            residual = seen - np.concatenate([block(part) @ (x / kept) for part in parts])
            x += residual / diagonal
            if np.abs(residual).sum() < TOLERANCE:
                return x
        raise BackendError("readout is too poor to be undone", value=f"least diagonal {diagonal.min():.3f}", hint="better qubits")


def _ones(group: Sequence[int], state: int) -> list[int]:
    """The qubits of a group that are 1 in a state of it."""
    return [q for position, q in enumerate(reversed(group)) if state >> position & 1]


def _place(compiled: CompiledCircuit) -> tuple[int, ...]:
    """The chip's qubits that a circuit's qubits are measured on, () where the backend does not say; BackendError if packed."""
    if compiled.per_program > 1:
        raise BackendError("rows of a packed batch are measured on different qubits", hint="readout correction without pack")
    return compiled.qubits or ()


def refuse_twice(backend: Backend) -> None:
    """Readout is corrected by the vendor or here, never by both."""
    if backend.corrects_readout:
        raise BackendError(f"{backend.name} corrects readout itself", hint="one of the two corrections")


def nearest_distribution(table: FloatArray) -> FloatArray:
    """Each row moved to the nearest point, in least squares, of those that are not negative and sum to 1."""
    descending = -np.sort(-table, axis=1)
    excess = (np.cumsum(descending, axis=1) - 1) / np.arange(1, table.shape[1] + 1)
    kept = (descending > excess).sum(axis=1)
    shift = excess[np.arange(len(table)), np.maximum(kept, 1) - 1]
    out: FloatArray = np.maximum(table - shift[:, None], 0.0)
    return out


class MitigatedBackend(Backend):
    """A backend whose outcomes are corrected for readout."""

    corrects_readout = True

    def __init__(self, backend: Backend, correction: ReadoutCorrection) -> None:
        refuse_twice(backend)
        self.backend, self.correction = backend, correction
        self.name, self.simulated = f"{backend.name}+readout", backend.simulated
        self.chip, self.journal = backend.chip, backend.journal
        limits = backend.limits
        self.limits = Limits(
            min(limits.max_qubits, correction.n_qubits), limits.max_shots, limits.max_circuits_per_job, limits.exact
        )
        matrices = "|".join(
            f"{group}{matrix.tolist()}" for group, matrix in zip(correction.groups, correction.matrices, strict=True)
        )
        self.calibration = f"{backend.calibration}+{matrices}"

    def compile(self, circuit: Circuit) -> CompiledMitigated:
        """See `Backend.compile`.

        Raises:
            BackendError: the circuit has another number of qubits than the correction, is measured on other qubits of the chip than
                were calibrated, or cannot run on the inner backend.
        """
        if circuit.n_qubits != self.correction.n_qubits:
            raise BackendError("the correction is for another register", value=circuit.n_qubits, bound=self.correction.n_qubits)
        return CompiledMitigated(self, self.backend.compile(circuit))

    def estimate(self, programs: int, shots: int) -> float:
        """See `Backend.estimate`: that of the inner backend, calibration not counted."""
        return self.backend.estimate(programs, shots)

    def with_noise_scale(self, scale: int) -> MitigatedBackend:
        """The inner backend at `scale` times its noise, with the same readout correction."""
        return MitigatedBackend(self.backend.with_noise_scale(scale), self.correction)

    def begin(self, sample: str) -> None:
        """See `Backend.begin`; passed on to the inner backend."""
        self.backend.begin(sample)

    def close(self) -> None:
        """Close the inner backend."""
        self.backend.close()


class CompiledMitigated(CompiledCircuit):
    """A circuit whose outcomes are corrected for readout."""

    def __init__(self, backend: MitigatedBackend, inner: CompiledCircuit) -> None:
        self.backend, self.inner = backend, inner
        self.circuit, self.qubits = inner.circuit, inner.qubits
        if (place := _place(inner)) != backend.correction.place:
            raise BackendError(
                "the circuit is read on other qubits of the chip than were calibrated",
                value=place,
                bound=backend.correction.place,
                hint="fix the backend's layout before you calibrate",
            )

    def run(self, params: FloatArray, shots: int | None, seed: int | None = None) -> Counts:
        """See `CompiledCircuit.run`: outcomes of the inner backend after `ReadoutCorrection.correct`, weights of type float64.

        Raises:
            BackendError: the readout errors are too large to be corrected (more than `DENSE` qubits).
        """
        return self.backend.correction.correct(self.inner.run(params, shots, seed))
