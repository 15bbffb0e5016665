"""The interface between the library and the backends that run circuits and return outcomes.

A *backend* measures all qubits of a circuit in the Z basis: `backend.compile(circuit).run(params, shots)` returns a `Counts`, one
distribution of outcomes per row of parameters. Observables with X and Y, gradients, caches and budgets are built on that, once for
every backend, in executor.py.

Outcomes are written with qubit 0 leftmost, as everywhere in qpeft: `"10"` is qubit 0 found in 1 and qubit 1 in 0, and its index
is 2. A backend whose vendor uses the opposite order reverses the bits before it returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from qpeft.circuits.ir import Circuit, Observable
from qpeft.errors import BackendError, CircuitError, ResourceError

if TYPE_CHECKING:
    from qpeft.backends.emulator.chip import Chip
    from qpeft.backends.emulator.packing import PackedProgram
    from qpeft.backends.spending.journal import Journal

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

DENSE_QUBITS = 20  # a distribution over more qubits is given by its observed outcomes alone


@dataclass(frozen=True)
class Limits:
    """Limits of a backend; None is no limit.

    Attributes:
        max_qubits: of one circuit.
        max_shots: of one circuit.
        max_circuits_per_job: programs that travel to the chip together.
        exact: `shots=None` gives exact probabilities.
    """

    max_qubits: int
    max_shots: int | None = None
    max_circuits_per_job: int | None = None
    exact: bool = False


@runtime_checkable
class CompiledCircuit(Protocol):
    """A circuit compiled once, run many times. Subclass it to inherit the defaults.

    Attributes:
        circuit: as it was given to `Backend.compile`.
        per_program: circuits in one program of the chip. It is above 1 only if the backend packs circuits.
        qubits: the chip's qubit on which each qubit of the circuit is measured; None where that is not known, or where rows of a
            packed batch are measured on different qubits.
    """

    circuit: Circuit
    per_program: int = 1
    qubits: tuple[int, ...] | None = None

    def run(self, params: FloatArray, shots: int | None, seed: int | None = None) -> Counts:
        """Measure all qubits in the Z basis, once for each row of parameters.

        Args:
            params: `(batch, n_params)` float64, radians; `batch` may be 0.
            shots: repetitions of each row, or None for exact probabilities, where `limits.exact`.
            seed: equal seeds give equal outcomes where the backend is simulated; a chip ignores it.

        Raises:
            CircuitError: params of the wrong shape or not finite.
            BackendError: shots that the backend does not take. Nothing was run.
        """
        ...


@runtime_checkable
class Backend(Protocol):
    """A place where circuits run. Subclass it to inherit the defaults: `name`, `limits` and `compile` are all that a backend must
    have.

    Attributes:
        name: the name that `get_backend` takes.
        limits: checked before anything runs.
        simulated: a classical computer makes the outcomes.
        calibration: names what outcomes depend on besides circuit, parameters and shots: version of a calibration, or its
            hash. Results of different calibrations are never mixed.
        corrects_readout: the outcomes are corrected for readout errors already, so nobody corrects them again.
        packs_circuits: several circuits can share its chip: `compile_packed` works and `chip` is known.
        chip: the chip behind the backend, where its data are known.
        journal: where paid jobs are recorded; its budget holds over all sessions. None where nothing is paid for.
    """

    name: str
    limits: Limits
    simulated: bool = True
    calibration: str = "exact"
    corrects_readout: bool = False
    packs_circuits: bool = False
    chip: Chip | None = None
    journal: Journal | None = None

    def compile(self, circuit: Circuit) -> CompiledCircuit:
        """Compile a circuit; BackendError says why this backend cannot run it."""
        ...

    def estimate(self, programs: int, shots: int) -> float:
        """Seconds of chip time, queue not counted; 0 where no chip is meant.

        Args:
            programs: number of programs.
            shots: repetitions of each program.
        """
        return 0.0

    def with_noise_scale(self, scale: int) -> Backend:
        """The same backend at `scale` times the noise, an odd number: each gate that is about to run is folded (folding.py).

        It shares this one's journal and client; close this one alone. BackendError where something else compiles the circuits.
        """
        raise BackendError(f"{self.name} cannot scale its noise", value=scale, hint="a backend that runs the gates it is given")

    def begin(self, sample: str) -> None:
        """Mark all following runs as part of this sample, such as a training step.

        A backend with a journal keeps samples apart, so that a step that is repeated after a crash finds the results it had.
        """
        return

    def compile_at(self, circuit: Circuit, layout: Sequence[int]) -> CompiledCircuit:
        """Compile a circuit on the chip's qubits `layout[i]`; nothing is moved, and native gates run as they stand.

        Args:
            circuit: the circuit.
            layout: the chip's qubit for each of the circuit's qubits.

        Raises:
            BackendError: the chip has no such qubits or couplers, or the backend chooses the qubits itself.
        """
        raise BackendError(f"{self.name} chooses the qubits itself", hint="an emulated chip, or a circuit that names no qubits")

    def compile_packed(self, program: PackedProgram) -> CompiledCircuit:
        """Compile circuits that share a chip (packing.py); BackendError where the backend runs one circuit at a time."""
        raise BackendError(f"{self.name} runs one circuit at a time")

    def close(self) -> None:
        """Release what the backend holds, such as a vendor's client; most hold nothing. Closing twice is allowed."""
        return


def check_circuit(name: str, limits: Limits, circuit: Circuit) -> None:
    """Check that a backend takes a circuit of this width.

    Args:
        name: the backend's name, for the message.
        limits: the backend's limits.
        circuit: the circuit to check.

    Raises:
        BackendError: the circuit has more qubits than `limits.max_qubits`.
    """
    if circuit.n_qubits > limits.max_qubits:
        raise BackendError(f"{name}: the circuit has too many qubits", value=circuit.n_qubits, bound=f"at most {limits.max_qubits}")


def check_run(name: str, limits: Limits, circuit: Circuit, params: npt.ArrayLike, shots: int | None) -> FloatArray:
    """Check the arguments of a run.

    Args:
        name: the backend's name, for the message.
        limits: the backend's limits.
        circuit: the circuit to run.
        params: `(batch, n_params)`, radians.
        shots: repetitions of each row, at least 1; None for exact probabilities.

    Returns:
        `params` as a C-ordered float64 array.

    Raises:
        CircuitError: parameters that are no finite numbers or have the wrong shape.
        BackendError: shots that the backend does not take.
    """
    try:
        rows = np.ascontiguousarray(params, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CircuitError("parameters are numbers", value=type(params).__name__) from error
    if rows.ndim != 2 or rows.shape[1] != circuit.n_params:
        raise CircuitError("parameters have the wrong shape", value=rows.shape, bound=f"(batch, {circuit.n_params})")
    if not np.isfinite(rows).all():
        raise CircuitError("parameters must be finite numbers")
    if shots is None:
        if not limits.exact:
            raise BackendError(f"{name} has no exact probabilities", value="shots=None", hint="give a number of shots")
    elif not _is_count(shots):
        raise BackendError(f"{name}: shots is a whole number of at least 1", value=shots)
    elif limits.max_shots is not None and shots > limits.max_shots:
        raise BackendError(f"{name}: too many shots", value=shots, bound=f"at most {limits.max_shots}")
    return rows


def _is_count(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 1)


@dataclass(frozen=True, eq=False)
class Counts:
    """Outcomes of a batch: how often each was seen, or with `shots=None` how probable it is.

    Up to `DENSE_QUBITS` qubits `table (batch, 2^n)` may hold all of them; otherwise `rows` holds for each row of the batch the
    outcomes that occurred, `(bits (k, n), weights (k,))`. Use the constructors `dense`, `sparse` and `from_strings`.
    """

    n_qubits: int
    shots: int | None
    table: FloatArray | None = None
    rows: tuple[tuple[BoolArray, FloatArray], ...] = ()

    @classmethod
    def dense(cls, table: npt.ArrayLike, shots: int | None) -> Counts:
        """From a table of all outcomes.

        Args:
            table: `(batch, 2^n)` counts or probabilities, qubit 0 as the most significant bit of the index.
            shots: repetitions of each row; None if the table holds probabilities.

        Raises:
            CircuitError: the number of columns is no power of two.
        """
        values = np.asarray(table, dtype=np.float64)
        n = values.shape[-1].bit_length() - 1
        if values.ndim != 2 or values.shape[1] != 2**n:
            raise CircuitError("a table of outcomes has 2^n columns", value=values.shape)
        return cls(n, None if shots is None else int(shots), values)

    @classmethod
    def sparse(cls, n_qubits: int, rows: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], shots: int | None) -> Counts:
        """From the outcomes that occurred.

        Args:
            n_qubits: number of qubits.
            rows: `(bits (k, n_qubits), weights (k,))` for each row of the batch, outcomes distinct.
            shots: repetitions of each row; None if the weights are probabilities.
        """
        kept = tuple(
            (np.asarray(bits, dtype=np.bool_).reshape(-1, n_qubits), np.asarray(weights, dtype=np.float64))
            for bits, weights in rows
        )
        return cls(n_qubits, None if shots is None else int(shots), None, kept)

    @classmethod
    def from_strings(cls, n_qubits: int, rows: Sequence[Mapping[str, float]], shots: int | None) -> Counts:
        """From outcomes written as bit strings.

        Args:
            n_qubits: number of qubits.
            rows: for each row of the batch, the count or probability of each bit string, qubit 0 leftmost.
            shots: repetitions of each row; None if the values are probabilities.

        Raises:
            CircuitError: an outcome is no string of `n_qubits` bits.
        """
        made = []
        for row in rows:
            if any(len(bits) != n_qubits or bits.strip("01") for bits in row):
                raise CircuitError(f"an outcome is a string of {n_qubits} bits", value=next(iter(row)))
            made.append(([[bit == "1" for bit in bits] for bits in row], list(row.values())))
        return cls.sparse(n_qubits, made, shots)

    @classmethod
    def concatenate(cls, parts: Sequence[Counts], n_qubits: int, shots: int | None) -> Counts:
        """The rows of all parts in order.

        Args:
            parts: results of one circuit with the same shots.
            n_qubits: number of qubits, which no part tells if there is none.
            shots: repetitions of each row; None for probabilities.
        """
        if parts and all(part.table is not None for part in parts):
            return cls.dense(np.concatenate([part.table for part in parts if part.table is not None]), shots)
        return cls(n_qubits, shots, None, tuple(row for part in parts for row in part))

    def __len__(self) -> int:
        """Number of rows of parameters."""
        return len(self.rows) if self.table is None else len(self.table)

    def __iter__(self) -> Iterator[tuple[BoolArray, FloatArray]]:
        """`(bits (k, n), weights (k,))` of each row, outcomes of weight zero left out."""
        if self.table is None:
            yield from self.rows
            return
        for row in self.table:
            seen = np.flatnonzero(row)
            yield bits_of(seen, self.n_qubits), row[seen]

    def take(self, index: npt.NDArray[np.int64]) -> Counts:
        """The rows with these indices, in that order; repeats are allowed."""
        if self.table is not None:
            return Counts(self.n_qubits, self.shots, self.table[index])
        return Counts(self.n_qubits, self.shots, None, tuple(self.rows[i] for i in index))

    @property
    def counts(self) -> list[dict[str, int]]:
        """How often each outcome was seen, a mapping for each row; BackendError for exact probabilities."""
        if self.shots is None:
            raise BackendError("exact probabilities are no counts", hint="use probabilities()")
        return [
            {"".join("01"[int(b)] for b in bits): round(weight) for bits, weight in zip(outcomes, weights, strict=True)}
            for outcomes, weights in self
        ]

    def probabilities(self) -> FloatArray:
        """`(batch, 2^n)`, rows that sum to 1; ResourceError for more than `DENSE_QUBITS` qubits."""
        n = self.n_qubits
        if n > DENSE_QUBITS and self.table is None:
            raise ResourceError(
                f"a table of {len(self)} distributions over {n} qubits",
                required_bytes=len(self) * 8 * 2**n,
                available_bytes=len(self) * 8 * 2**DENSE_QUBITS,
                hint="use counts, marginal(qubits) or expectations(observables)",
            )
        table = self.table
        if table is None:
            table = np.zeros((len(self), 2**n))
            places = 1 << np.arange(n)[::-1]
            for i, (bits, weights) in enumerate(self.rows):
                np.add.at(table[i], bits @ places, weights)
        total = table.sum(axis=1, keepdims=True)
        out: FloatArray = np.divide(table, total, out=np.zeros_like(table), where=total > 0)
        return out

    def marginal(self, qubits: Sequence[int]) -> Counts:
        """The outcomes of some qubits alone, in the order given."""
        order = list(qubits)
        if len(set(order)) != len(order) or not all(0 <= q < self.n_qubits for q in order):
            raise CircuitError("a marginal names different qubits", value=order, bound=f"0..{self.n_qubits - 1}")
        if self.table is not None:
            grid = self.table.reshape(len(self), *(2,) * self.n_qubits)
            others = tuple(1 + q for q in range(self.n_qubits) if q not in order)
            kept = sorted(order)
            summed = grid.sum(axis=others).transpose(0, *(1 + kept.index(q) for q in order))
            return Counts(len(order), self.shots, summed.reshape(len(self), 2 ** len(order)))
        rows = []
        for bits, weights in self.rows:
            distinct, where = np.unique(bits[:, order], axis=0, return_inverse=True)
            rows.append((distinct, np.bincount(where.reshape(-1), weights, minlength=len(distinct)).astype(np.float64)))
        return Counts(len(order), self.shots, None, tuple(rows))

    def expectations(self, observables: Sequence[Observable] | None = None) -> FloatArray:
        """Mean values of Z-type observables, `(batch, n_observables)`; default `<Z_k>` of every qubit.

        Raises CircuitError for an observable with X or Y, or on a qubit that is not there.
        """
        chosen = [Observable.z(k) for k in range(self.n_qubits)] if observables is None else list(observables)
        values = np.zeros((len(self), len(chosen)))
        if self.table is not None:
            total = self.table.sum(axis=1, keepdims=True)
            np.divide(self.table @ z_table(chosen, self.n_qubits), total, out=values, where=total > 0)
        for i, (bits, weights) in enumerate(self.rows):
            for k, observable in enumerate(chosen):
                values[i, k] = weights @ z_values(observable, bits) / weights.sum()
        return values


def bits_of(index: npt.NDArray[np.int64], n_qubits: int) -> BoolArray:
    """Outcomes from their indices.

    Args:
        index: `(...)`, qubit 0 as the most significant bit.
        n_qubits: number of qubits.

    Returns:
        `(..., n_qubits)`.
    """
    return np.asarray((index[..., None] >> np.arange(n_qubits)[::-1]) & 1, dtype=np.bool_)


def z_table(observables: Sequence[Observable], n_qubits: int) -> FloatArray:
    """Values of Z-type observables on every outcome, `(2^n, n_observables)`.

    Args:
        observables: of Z and identity alone.
        n_qubits: number of qubits.
    """
    bits = bits_of(np.arange(2**n_qubits), n_qubits)
    return np.stack([z_values(observable, bits) for observable in observables], axis=1)


def z_values(observable: Observable, bits: BoolArray) -> FloatArray:
    """Values of a Z-type observable on outcomes `bits (k, n)`: `sum_t c_t prod_q (-1)^bit_q`, `(k,)`."""
    values = np.zeros(len(bits))
    for coefficient, string in observable.terms:
        if any(pauli != "Z" for _, pauli in string):
            raise CircuitError("outcomes in the Z basis give observables of Z alone", value=string, hint="use BackendExecutor")
        qubits = [qubit for qubit, _ in string]
        if qubits and qubits[-1] >= bits.shape[1]:
            raise CircuitError("an observable names a qubit that is not there", value=qubits[-1], bound=f"0..{bits.shape[1] - 1}")
        values += coefficient * (1.0 - 2.0 * (bits[:, qubits].sum(axis=1) % 2))
    return values


def sample(probabilities: FloatArray, shots: int, seed: int | None) -> Counts:
    """Draw outcomes from probabilities (multinomial).

    Args:
        probabilities: `(batch, 2^n)`; negative ones count as 0, and each row is scaled to sum to 1.
        shots: outcomes of each row.
        seed: equal seeds give equal counts; None draws fresh ones.
    """
    rows = np.clip(probabilities, 0.0, None)
    rows = rows / rows.sum(axis=1, keepdims=True)
    return Counts.dense(np.random.default_rng(seed).multinomial(shots, rows).reshape(rows.shape), shots)
