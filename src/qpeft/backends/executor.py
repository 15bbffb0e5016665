"""Any backend as an Executor: what adapters call, on top of what backends give.

Backends measure in the Z basis. Here, once for all of them: observables with X and Y by a change of basis per group of words that
commute qubit by qubit; rows that are equal run once; results that a cache holds do not run; every run is charged to a ledger
before it starts; and gradients come from more runs (gradients.py), for inputs and angles alike.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qpeft.backends.base import Backend, CompiledCircuit, Counts, FloatArray
from qpeft.backends.gradients import SPSA_STEP, Unrolled, parameter_shift, shift_rule, spsa
from qpeft.backends.spending.budget import Cost, Ledger, cost_of
from qpeft.backends.spending.cache import ResultCache
from qpeft.circuits.executor import Expectations, as_rows, check_arguments, working_dtype
from qpeft.circuits.ir import Circuit, Observable, Op, PauliString, commuting_groups
from qpeft.circuits.simulator.simulate import expectations
from qpeft.errors import BackendError, CircuitError
from qpeft.progress import Count

logger = logging.getLogger(__name__)

Gradient = Literal["parameter-shift", "spsa", "adjoint"]

CHUNK = 4096  # rows of one run: what is charged, cached and shown at a time
BLOCK_BYTES = 1 << 28  # of the shifted rows of a gradient that are made at a time
LONG = 256  # rows that make progress worth showing


class BackendExecutor:
    """Runs circuits on a backend, differentiable to first order.

    Args:
        backend: from `get_backend`.
        shots: of every circuit; None for exact probabilities, where the backend has them.
        gradient: "parameter-shift" is exact in the exact limit and unbiased with shots, at 2 or 4 circuits for each row and gate.
            "spsa" is two circuits per row, noisy, biased by the square of its step. "adjoint" runs forward on the backend and takes
            the noiseless simulator's gradient.
        seed: makes simulated shots and SPSA's directions repeat; None draws fresh ones.
        cache: results to reuse and to add to.
        ledger: what is spent, with its budget; executors may share one.
        progress: show the count of circuits of long runs.
    """

    has_state = False

    def __init__(
        self,
        backend: Backend,
        shots: int | None = None,
        *,
        gradient: Gradient = "parameter-shift",
        seed: int | None = None,
        cache: ResultCache | None = None,
        ledger: Ledger | None = None,
        progress: bool = False,
        spsa_step: float = SPSA_STEP,
        spsa_directions: int = 1,
    ) -> None:
        if gradient not in get_args(Gradient):
            raise BackendError("unknown gradient method", value=gradient, bound=", ".join(get_args(Gradient)))
        if shots is None and not backend.limits.exact:
            raise BackendError(f"{backend.name} has no exact probabilities", value="shots=None", hint="give a number of shots")
        if shots is not None and backend.limits.max_shots is not None and shots > backend.limits.max_shots:
            raise BackendError(f"{backend.name}: too many shots", value=shots, bound=f"at most {backend.limits.max_shots}")
        if not spsa_step > 0 or spsa_directions < 1:
            raise BackendError("SPSA needs a step above 0 and a direction", value=(spsa_step, spsa_directions))
        self.backend, self.shots, self.gradient = backend, shots, gradient
        self.cache, self.ledger, self.progress = cache, ledger or Ledger(), progress
        self.spsa_step, self.spsa_directions = spsa_step, spsa_directions
        self._prepared: dict[tuple[Circuit, tuple[Observable, ...] | None], CompiledExpectations] = {}
        self._seed, self._sample = seed, ""
        self._seeds = None if seed is None else np.random.SeedSequence(seed)

    def compile(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> Expectations:
        """See `Executor.compile`. BackendError, and nothing run, for a circuit that the backend cannot run."""
        prepared = self.prepare(circuit, observables)
        return lambda inputs, angles: _expectations(prepared, inputs, angles)

    def prepare(self, circuit: Circuit, observables: Sequence[Observable] | None = None) -> CompiledExpectations:
        """Compile for the backend. Equal requests compile once.

        Args:
            circuit: the circuit.
            observables: default `<Z_k>` for each qubit k.

        Returns:
            The compiled circuits. Its `cost(rows)` is the cost of a forward pass.

        Raises:
            CircuitError: no observable, or an observable on a qubit that the circuit does not have.
            BackendError: the backend cannot run the circuit.
        """
        key = (circuit, None if observables is None else tuple(observables))
        if key not in self._prepared:
            self._prepared[key] = CompiledExpectations(self, circuit, observables)
        return self._prepared[key]

    def with_backend(self, backend: Backend) -> BackendExecutor:
        """The same executor on another backend, such as one at a larger noise scale: same ledger and cache, its own seeds."""
        seed = self._seed
        if seed is not None and backend is not self.backend:
            other = int.from_bytes(hashlib.sha256(backend.calibration.encode()).digest()[:4], "big")
            seed = int(np.random.SeedSequence([seed, other]).generate_state(1)[0])
        return BackendExecutor(
            backend,
            self.shots,
            gradient=self.gradient,
            seed=seed,
            cache=self.cache,
            ledger=self.ledger,
            progress=self.progress,
            spsa_step=self.spsa_step,
            spsa_directions=self.spsa_directions,
        )

    def begin(self, *sample: int) -> None:
        """Draw from here on the sample of these numbers, such as the step of a training. Its seeds are the same whatever ran
        before, and cache and journal keep it apart from other samples of the same circuits: a step that is begun again after a
        crash finds what it had."""
        self._sample = ":".join(map(str, sample))
        self._seeds = None if self._seed is None else np.random.SeedSequence([self._seed, *sample])
        self.backend.begin(self._sample)

    def next_seed(self) -> int | None:
        """The seed of the next run: the k-th run of an executor has the same in every process."""
        return None if self._seeds is None else int(self._seeds.spawn(1)[0].generate_state(1)[0])

    def run(self, compiled: CompiledCircuit, rows: FloatArray) -> Counts:
        """Outcomes of different rows: from the cache, else charged and run, a chunk at a time. A chunk has the same seed whether
        those before it ran or were cached.

        Args:
            compiled: a circuit compiled for the backend.
            rows: different parameters `(rows, n_params)`, radians.
        """
        n, parts = compiled.circuit.n_qubits, []
        waiting = np.ones(len(rows), dtype=np.bool_)
        known: list[Counts | None] | None = None
        if self.cache is not None:
            known = self.cache.load(self._keys(compiled, rows), n, self.shots)
            waiting = np.array([counts is None for counts in known], dtype=np.bool_)
            self.ledger.cached += len(rows) - int(waiting.sum())
        self.ledger.budget.check(self.ledger.spent, self._cost(compiled, waiting))
        for start in self._chunks(len(rows)):
            seed = self.next_seed()
            chunk = start + np.flatnonzero(waiting[start : start + CHUNK])
            if not len(chunk):
                continue
            self.ledger.charge(cost_of(self.backend, compiled, len(chunk), self.shots))
            parts.append(compiled.run(np.ascontiguousarray(rows[chunk]), self.shots, seed))
            if self.cache is not None:
                # keys made anew: a chip may have been calibrated since
                self.cache.store(self._keys(compiled, rows[chunk]), parts[-1])
        fresh = Counts.concatenate(parts, n, self.shots)
        if known is None:
            return fresh
        order, remaining = [], iter(fresh)
        for counts in known:
            order.append(next(remaining) if counts is None else counts.rows[0])
        return Counts(n, self.shots, None, tuple(order))

    def _keys(self, compiled: CompiledCircuit, rows: FloatArray) -> list[bytes]:
        assert self.cache is not None
        return self.cache.keys(self.backend, compiled.circuit.id + self._sample, rows, self.shots)

    def _cost(self, compiled: CompiledCircuit, waiting: npt_bool) -> Cost:
        """Of the rows that wait, chunk by chunk."""
        counts = [int(waiting[start : start + CHUNK].sum()) for start in range(0, len(waiting), CHUNK)]
        return sum((cost_of(self.backend, compiled, count, self.shots) for count in counts), Cost())

    def _chunks(self, rows: int) -> Iterator[int]:
        with Count(f"circuits on {self.backend.name}", rows, shown=self.progress and rows > LONG) as count:
            for start in range(0, rows, CHUNK):
                yield start
                count.add(min(CHUNK, rows - start))


class CompiledExpectations:
    """A circuit and observables on an executor: one compiled circuit for each change of basis."""

    def __init__(self, executor: BackendExecutor, circuit: Circuit, observables: Sequence[Observable] | None) -> None:
        self.executor, self.circuit = executor, circuit
        chosen = [Observable.z(k) for k in range(circuit.n_qubits)] if observables is None else list(observables)
        if not chosen:
            raise CircuitError("at least one observable is needed")
        for observable in chosen:
            for _, word in observable.terms:
                if word and word[-1][0] >= circuit.n_qubits:
                    raise CircuitError(
                        "an observable names a qubit that is not there", value=word[-1][0], bound=circuit.n_qubits - 1
                    )
        self.observables = tuple(chosen)
        self.unrolled = Unrolled.of(circuit)
        self.groups = [
            (executor.backend.compile(_measured_in(self.unrolled.circuit, basis)), words)
            for basis, words in commuting_groups(self.observables)
        ]

    def cost(self, rows: int) -> Cost:
        """Cost of a forward pass of `rows` different rows, without gradients."""
        whole, rest = divmod(rows, CHUNK)
        backend, shots = self.executor.backend, self.executor.shots
        chunks = ((whole, CHUNK), (1, rest))
        return sum((cost_of(backend, compiled, n, shots) * times for compiled, _ in self.groups for times, n in chunks), Cost())

    def gradient_rows(self, rows: int, *, inputs: bool = False, angles: bool = True) -> int:
        """How many different rows the gradient of `rows` different rows runs, for the angles, the inputs or both."""
        executor, n_inputs = self.executor, self.circuit.n_inputs
        wanted = [inputs if index < n_inputs else angles for index in range(self.circuit.n_params)]
        if executor.gradient == "adjoint" or not any(wanted):
            return 0
        if executor.gradient == "spsa":
            return 2 * executor.spsa_directions * rows
        return self._shifted_rows(rows, wanted)

    def evaluate(self, gate_angles: FloatArray) -> FloatArray:
        """`(rows, n_observables)`; equal rows run once."""
        rows, where = np.unique(gate_angles, axis=0, return_inverse=True)
        self.executor.ledger.deduplicated += (len(gate_angles) - len(rows)) * len(self.groups)
        values = np.zeros((len(rows), len(self.observables)))
        means: dict[PauliString, FloatArray] = {}
        for compiled, words in self.groups:
            counts = self.executor.run(compiled, rows)
            turned = [Observable(((1.0, tuple((q, "Z") for q, _ in word)),)) for word in words]
            means |= dict(zip(words, counts.expectations(turned).T, strict=True))
        for k, observable in enumerate(self.observables):
            for coefficient, word in observable.terms:
                values[:, k] += coefficient * (means[word] if word else 1.0)
        return values[where.reshape(-1)]

    def gradient(self, params: FloatArray, grad: FloatArray, wanted: npt_bool) -> FloatArray:
        """Gradient of `sum_k grad[b, k] z_k(params[b])` by the executor's gradient method.

        Args:
            params: `(rows, n_params)`, inputs first, radians.
            grad: `(rows, n_observables)`.
            wanted: `(n_params,)`, which parameters to differentiate; the others get 0.

        Returns:
            `(rows, n_params)`, each row's gradient. With SPSA the angles' gradient, summed over rows, is in row 0.
        """
        executor, n_inputs = self.executor, self.circuit.n_inputs
        if executor.gradient == "parameter-shift":
            return self._shift(params, grad, wanted)
        shared = np.arange(self.circuit.n_params) >= n_inputs
        random = np.random.default_rng(executor.next_seed())
        signs = [random.choice((-1.0, 1.0), size=params.shape) for _ in range(executor.spsa_directions)]
        return spsa(self.evaluate, self.unrolled, params, grad, wanted, shared, signs, executor.spsa_step)

    def _shift(self, params: FloatArray, grad: FloatArray, wanted: npt_bool) -> FloatArray:
        """Parameter shift in blocks of bounded memory, after the budget was asked for all of it. Equal rows come together, so that
        a block runs them once."""
        executor = self.executor
        if executor.cache is None and executor.backend.journal is None:  # else much of it may be paid for
            executor.ledger.budget.check(
                executor.ledger.spent, self.cost(self._shifted_rows(len(np.unique(params, axis=0)), wanted))
            )
        order = np.lexsort(params.T) if params.size else np.arange(len(params))
        block = max(1, BLOCK_BYTES // (8 * max(len(self.unrolled.gates), 1) * CHUNK)) * CHUNK
        out = np.zeros_like(params)
        out[order] = parameter_shift(self.evaluate, self.unrolled, params[order], grad[order], wanted, block)
        return out

    def _shifted_rows(self, rows: int, wanted: Sequence[bool] | npt_bool) -> int:
        """How many rows parameter shift runs for `rows` different rows."""
        gates = zip(self.unrolled.gates, self.unrolled.index, self.unrolled.scale, strict=True)
        return rows * sum(2 * len(shift_rule(gate)) for gate, index, scale in gates if wanted[index] and scale)


npt_bool = np.ndarray[Any, np.dtype[np.bool_]]


def _measured_in(circuit: Circuit, basis: dict[int, str]) -> Circuit:
    """The circuit with a Z measurement turned into one of `basis`: H for X, S-dagger and H for Y."""
    turns = {"X": ("h",), "Y": ("sdg", "h"), "Z": ()}
    ops = tuple(Op(gate, (qubit,)) for qubit, pauli in sorted(basis.items()) for gate in turns[pauli])
    return Circuit(circuit.n_qubits, circuit.ops + ops, circuit.n_inputs, circuit.n_params)


def _expectations(prepared: CompiledExpectations, inputs: Tensor, angles: Tensor) -> Tensor:
    check_arguments(prepared.circuit, inputs, angles)
    dtype = working_dtype(inputs, angles)
    out: Tensor = _Expectations.apply(as_rows(inputs), angles, prepared, dtype)  # type: ignore[no-untyped-call]
    return out.reshape(*inputs.shape[:-1], len(prepared.observables))


class _Expectations(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, angles: Tensor, prepared: CompiledExpectations, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(inputs, angles)
        ctx.prepared = prepared
        values = prepared.evaluate(prepared.unrolled.gate_angles(_rows(inputs, angles)))
        return torch.as_tensor(values, dtype=dtype, device=inputs.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        inputs, angles = ctx.saved_tensors
        prepared: CompiledExpectations = ctx.prepared
        need_inputs, need_angles = ctx.needs_input_grad[:2]
        circuit = prepared.circuit
        if prepared.executor.gradient == "adjoint":
            by_inputs, by_angles = _adjoint(prepared, inputs, angles, grad)
        else:
            wanted = np.where(np.arange(circuit.n_params) < circuit.n_inputs, need_inputs, need_angles)
            found = prepared.gradient(_rows(inputs, angles), grad.detach().double().cpu().numpy(), wanted)
            by_inputs = torch.as_tensor(found[:, : circuit.n_inputs], dtype=inputs.dtype, device=inputs.device)
            by_angles = torch.as_tensor(found[:, circuit.n_inputs :].sum(axis=0), dtype=angles.dtype, device=angles.device)
        return by_inputs if need_inputs else None, by_angles if need_angles else None, None, None


def _rows(inputs: Tensor, angles: Tensor) -> FloatArray:
    """Parameters `(rows, n_params)` as float64."""
    both = torch.cat([inputs.detach().double(), angles.detach().to(inputs.device).double().expand(len(inputs), -1)], dim=1)
    rows: FloatArray = both.cpu().numpy()
    return rows


def _adjoint(prepared: CompiledExpectations, inputs: Tensor, angles: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients on the noiseless simulator; zero for an argument that no value depends on."""
    with torch.enable_grad():
        inputs, angles = inputs.detach().requires_grad_(), angles.detach().requires_grad_()
        values = expectations(prepared.circuit, inputs, angles, prepared.observables)
        grads = torch.autograd.grad(values, (inputs, angles), grad.to(values.dtype), allow_unused=True, materialize_grads=True)
    return grads[0], grads[1]
