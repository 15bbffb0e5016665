"""Runs leased jobs on a backend: many circuits of one template in one call, each job's failure its own."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from qpeft.backends.base import Backend, Counts, FloatArray
from qpeft.circuits.ir import Circuit, Observable
from qpeft.errors import CircuitError, QpeftError
from qpeft.service.messages import Result, Term, pack, result_bytes
from qpeft.service.workers.messages import Calibration, DeviceInfo, FinishedJob, LeasedJob, LeasedProgram
from qpeft.service.workers.programs import circuit_of

if TYPE_CHECKING:
    from qpeft.backends.base import CompiledCircuit
    from qpeft.service.workers.shared_chip import SharedChip

log = logging.getLogger("qpeft.service.worker")
COMPILED = 256  # circuits kept compiled for each device


@dataclass(frozen=True)
class Piece:
    """Jobs that run as one call: of one circuit, shots and output; or (`shared`) of different users, on one chip."""

    jobs: tuple[LeasedJob, ...]
    shared: bool = False

    def rest(self, finished: Sequence[FinishedJob]) -> list[Piece]:
        """Those that did not finish, in smaller pieces: they could not run as one."""
        done = {one.seq for one in finished}
        left = [job for job in self.jobs if job.seq not in done]
        return groups(left) if self.shared else [Piece((job,)) for job in left]


def groups(jobs: Iterable[LeasedJob]) -> list[Piece]:
    """Jobs of one circuit, shots and output together.

    A job with a seed of its own runs alone, or its outcomes would depend on its neighbours.
    """
    found: dict[Any, list[LeasedJob]] = {}
    for job in jobs:
        alone = job.seq if job.seed is not None and job.shots is not None else None
        found.setdefault((job.program, job.shots, job.output, job.observables, job.seed, alone), []).append(job)
    return [Piece(tuple(members)) for members in found.values()]


class Device:
    """One backend of a worker, with its compiled circuits."""

    def __init__(self, name: str, backend: Backend) -> None:
        self.name, self.own, self.backend = name, backend, backend
        self.max_result_bytes = 64 << 20
        self._shared: SharedChip | None = None
        self._compiled: OrderedDict[tuple[str, tuple[int, ...] | None], CompiledCircuit] = OrderedDict()

    def info(self) -> DeviceInfo:
        """Limits, and the model of cost: a chip's own estimate, or what a simulator's kernels take at most."""
        limits, estimate = self.backend.limits, self.backend.estimate
        per_shot = (estimate(1, 2000) - estimate(1, 1000)) / 1000
        chip = per_shot > 0 and not self.backend.simulated
        return DeviceInfo(
            max_qubits=limits.max_qubits,
            max_shots=limits.max_shots,
            exact=limits.exact,
            simulated=self.backend.simulated,
            chip=self.own.chip is not None,
            description=type(self.backend).__name__,
            program_s=max(estimate(1, 1000) - 1000 * per_shot, 0.0) if chip else 2e-5,
            shot_s=per_shot if chip else 1e-8,
            gate_s=0.0 if chip else 2e-9,
        )

    def calibration(self) -> Calibration | None:
        """Calibration, with the chip's data if the backend has them."""
        chip = self.backend.chip
        data = chip.to_json().encode() if chip is not None else msgspec.json.encode({"calibration": self.backend.calibration})
        return Calibration(device=self.name, id=self.backend.calibration[:64], data=data)

    def recalibrate(self, name: str | None, fetch: Callable[[str], bytes]) -> None:
        """Run under another calibration from now on.

        Args:
            name: id of the calibration; None for the worker's own.
            fetch: gives the chip file of an id.
        """
        if name is None or name == self.own.calibration[:64]:
            backend = self.own
        elif name == self.backend.calibration[:64]:
            return
        else:
            from qpeft.backends.emulator.backend import EmulatorBackend
            from qpeft.backends.emulator.chip import Chip

            backend = EmulatorBackend(Chip.from_json(fetch(name)))
        if backend is not self.backend:
            self.backend, self._shared = backend, None
            self._compiled.clear()

    @property
    def shared(self) -> SharedChip | None:
        """The chip as many users' at once; None where circuits cannot be placed together."""
        if self._shared is None and self.backend.packs_circuits:
            from qpeft.service.workers.shared_chip import SharedChip

            self._shared = SharedChip(self.backend)
        return self._shared

    def compiled(self, circuit: Circuit, layout: tuple[int, ...] | None = None) -> CompiledCircuit:
        """The circuit ready to run, kept for the next time; on the chip's qubits `layout`, if they are given."""
        kept = self._compiled.get((circuit.id, layout))
        if kept is None:
            backend = self.backend
            kept = backend.compile(circuit) if layout is None else backend.compile_at(circuit, layout)
            self._compiled[circuit.id, layout] = kept
            if len(self._compiled) > COMPILED:
                self._compiled.popitem(last=False)
        return kept

    def pieces(self, jobs: Sequence[LeasedJob], one_by_one: bool = False) -> list[Piece]:
        """Jobs as they run: those that share a chip together, and those of one circuit together.

        Args:
            jobs: the jobs.
            one_by_one: each by itself.
        """
        if one_by_one:
            return [Piece((job,)) for job in jobs]
        if self.shared is None:
            return groups(jobs)
        from qpeft.service.workers.shared_chip import tenants

        together = [Piece(tuple(group), shared=True) for group in tenants(jobs)]
        done = {job.seq for piece in together for job in piece.jobs}
        return together + groups(job for job in jobs if job.seq not in done)

    def run_piece(self, piece: Piece, programs: Mapping[str, LeasedProgram]) -> list[FinishedJob]:
        """Outcomes of the piece's jobs; empty if the piece has to be split. Errors of a job become outcomes.

        Args:
            piece: jobs that run together.
            programs: the programs by hash.
        """
        return self._run_shared(piece, programs) if piece.shared else self._run_group(piece, programs)

    def places(self, piece: Piece, programs: Mapping[str, LeasedProgram]) -> list[tuple[int, list[int]]]:
        """`(seq, qubits)`: the chip's qubits that each job of the piece is about to occupy; empty where there is no chip.

        Args:
            piece: jobs that run together.
            programs: the programs by hash.
        """
        if self.backend.chip is None:
            return []
        with contextlib.suppress(Exception):  # running it says what is wrong
            if not piece.shared:
                job = piece.jobs[0]
                circuit, _, layout = circuit_of(programs[job.program].format, programs[job.program].text)
                qubits = self.compiled(circuit, None if job.output == "expectations" else layout).qubits
                return [] if qubits is None else [(job.seq, list(qubits))]
            assert self.shared is not None
            ready = list(_together(piece.jobs, programs, self.max_result_bytes))
            found = self.shared.places([one.circuit for one in ready])
            return [(one.job.seq, list(qubits)) for one, qubits in zip(ready, found, strict=True)]
        return []

    def _run_shared(self, piece: Piece, programs: Mapping[str, LeasedProgram]) -> list[FinishedJob]:
        """On one chip at once. Left out are those that have to run alone, to say why they fail or to measure X and Y."""
        shared, shots = self.shared, piece.jobs[0].shots
        assert shared is not None
        assert shots is not None
        start = time.perf_counter()
        try:
            ready = list(_together(piece.jobs, programs, self.max_result_bytes))
            outcomes = shared.run([one.circuit for one in ready], [one.params for one in ready], shots)
            payloads = [pack(one.result(*outcome, len(ready))) for one, outcome in zip(ready, outcomes, strict=True)]
        except Exception as error:
            log.info("circuits that were to share a chip run one by one: %s", error)
            return []
        seconds = self._device_seconds(1, shots, time.perf_counter() - start) / max(len(ready), 1)
        return [self._ended(one.job, seconds, payload, "") for one, payload in zip(ready, payloads, strict=True)]

    def _ended(self, job: LeasedJob, seconds: float, payload: bytes | None, reason: str) -> FinishedJob:
        return FinishedJob(
            seq=job.seq,
            attempt=job.attempt,
            device_s=seconds,
            payload=payload,
            reason=reason[:4000],
            calibration=self.backend.calibration[:64],
        )

    def _run_group(self, piece: Piece, programs: Mapping[str, LeasedProgram]) -> list[FinishedJob]:
        start, reason = time.perf_counter(), ""
        payloads: list[bytes | None]
        try:
            payloads = self._payloads(piece, programs[piece.jobs[0].program])
        except Exception as error:
            if len(piece.jobs) > 1:
                return []
            reason = str(error) if isinstance(error, QpeftError) else f"the device failed: {type(error).__name__}: {error}"
            payloads = [None]
        rows = sum(job.rows for job in piece.jobs)
        seconds = self._device_seconds(rows, piece.jobs[0].shots, time.perf_counter() - start)
        return [
            self._ended(job, seconds * job.rows / rows, payload, reason) for job, payload in zip(piece.jobs, payloads, strict=True)
        ]

    def _device_seconds(self, rows: int, shots: int | None, wall_s: float) -> float:
        return wall_s if self.backend.simulated else self.backend.estimate(rows, shots or 0)

    def _payloads(self, piece: Piece, program: LeasedProgram) -> list[bytes | None]:
        circuit, bits, layout = circuit_of(program.format, program.text)
        first = piece.jobs[0]
        for job in piece.jobs:
            _check_params(job, circuit)
            _check_size(job, circuit, _n_observables(job), self.max_result_bytes)
        params = np.frombuffer(b"".join(job.params for job in piece.jobs), "<f8")
        params = params.reshape(sum(job.rows for job in piece.jobs), circuit.n_params)
        if first.output == "expectations":
            return _split(piece.jobs, "expectations", self._expectations(first, circuit, params), self.compiled(circuit).qubits)
        compiled = self.compiled(circuit, layout)
        counts, qubits = compiled.run(params, first.shots, first.seed), compiled.qubits
        if bits is not None:
            counts = counts.marginal(bits)
            qubits = None if qubits is None else tuple(qubits[q] for q in bits)
        if first.output == "probabilities":
            return _split(piece.jobs, "probabilities", counts.probabilities(), qubits)
        return _split_counts(piece.jobs, counts, qubits)

    def _expectations(self, job: LeasedJob, circuit: Circuit, params: FloatArray) -> FloatArray:
        observables = _observables(job.observables, circuit)
        if _z_only(observables):
            return self.compiled(circuit).run(params, job.shots, job.seed).expectations(observables)
        import torch

        from qpeft.backends.executor import BackendExecutor

        executor = BackendExecutor(self.backend, job.shots, seed=job.seed)
        inputs = Circuit(circuit.n_qubits, circuit.ops, circuit.n_params, circuit.n_params)
        with torch.no_grad():
            run = executor.compile(inputs, observables)
            values = run(torch.from_numpy(params.copy()), torch.empty(0, dtype=torch.float64))
        return np.asarray(values.double().numpy(), dtype=np.float64)


def _check_size(job: LeasedJob, circuit: Circuit, n_observables: int | None, max_bytes: int) -> None:
    """Refuse a result that would not be taken, before it is computed."""
    size = result_bytes(job.output, job.rows, circuit.n_qubits, job.shots, n_observables)
    if size > max_bytes:
        raise CircuitError("the result is too large", value=f"{size} bytes", bound=max_bytes, hint="ask for expectations")


def _together(jobs: Sequence[LeasedJob], programs: Mapping[str, LeasedProgram], max_bytes: int) -> Iterator[PreparedJob]:
    for job in jobs:
        with contextlib.suppress(QpeftError):
            yield prepare(job, programs[job.program], max_bytes)


@dataclass(frozen=True)
class PreparedJob:
    """One job, read and checked, of those that run as part of something larger: a shared chip's program, a vendor's task."""

    job: LeasedJob
    circuit: Circuit
    bits: tuple[int, ...] | None
    observables: list[Observable] | None
    params: FloatArray

    def result(self, counts: Counts, qubits: tuple[int, ...] | None = None, tenants: int = 1) -> Result:
        """The job's result from its counts; `qubits` are the chip's, `tenants` how many circuits shared it."""
        kept = counts
        if self.bits is not None:
            kept, qubits = counts.marginal(self.bits), qubits and tuple(qubits[q] for q in self.bits)
        kind = self.job.output
        if kind == "counts":
            return Result(kind=kind, counts=kept.counts, qubits=qubits, tenants=tenants)
        table = counts.expectations(self.observables) if kind == "expectations" else kept.probabilities()
        data = np.ascontiguousarray(table, dtype="<f8").tobytes()
        return Result(kind=kind, columns=table.shape[1], data=data, qubits=qubits, tenants=tenants)


def prepare(job: LeasedJob, program: LeasedProgram, max_bytes: int) -> PreparedJob:
    """Prepare a job for its device.

    Args:
        job: the job.
        program: its program.
        max_bytes: the most bytes of the result.

    Raises:
        CircuitError: the job cannot run, or needs X or Y measured.
    """
    circuit, bits, layout = circuit_of(program.format, program.text)
    if layout is not None:
        raise CircuitError("a circuit on named qubits runs alone", value=list(layout), hint="an emulated chip's own program")
    _check_params(job, circuit)
    _check_size(job, circuit, _n_observables(job), max_bytes)
    observables = _observables(job.observables, circuit)
    if not _z_only(observables):
        raise CircuitError(
            "only Z is measured here", value="X or Y", hint="turn the qubit in the circuit: H before measuring X, SDG and H for Y"
        )
    return PreparedJob(job, circuit, bits, observables, np.frombuffer(job.params, "<f8").reshape(job.rows, circuit.n_params))


def _check_params(job: LeasedJob, circuit: Circuit) -> None:
    if len(job.params) != 8 * job.rows * circuit.n_params:
        raise CircuitError("wrong number of parameters", value=len(job.params) // (8 * job.rows), bound=circuit.n_params)


def _n_observables(job: LeasedJob) -> int | None:
    return None if job.observables is None else len(msgspec.json.decode(job.observables, type=list[msgspec.Raw]))


def _observables(text: bytes | None, circuit: Circuit) -> list[Observable] | None:
    if text is None:
        return None
    terms = msgspec.json.decode(text, type=list[list[Term]])
    observables = [Observable(tuple((c, tuple((q, p) for q, p in word)) for c, word in term)) for term in terms]
    highest = max((q for observable in observables for _, word in observable.terms for q, _ in word), default=0)
    if highest >= circuit.n_qubits:
        raise CircuitError("an observable names a qubit that is not there", value=highest, bound=f"0..{circuit.n_qubits - 1}")
    return observables


def _z_only(observables: Sequence[Observable] | None) -> bool:
    return observables is None or all(p == "Z" for o in observables for _, word in o.terms for _, p in word)


def _split(jobs: Sequence[LeasedJob], kind: Any, table: FloatArray, qubits: tuple[int, ...] | None) -> list[bytes | None]:
    payloads: list[bytes | None] = []
    first = 0
    table = np.ascontiguousarray(table, dtype="<f8")
    for job in jobs:
        part = table[first : first + job.rows]
        payloads.append(pack(Result(kind=kind, columns=table.shape[1], data=part.tobytes(), qubits=qubits)))
        first += job.rows
    return payloads


def _split_counts(jobs: Sequence[LeasedJob], counts: Counts, qubits: tuple[int, ...] | None) -> list[bytes | None]:
    payloads: list[bytes | None] = []
    rows, first = counts.counts, 0
    for job in jobs:
        payloads.append(pack(Result(kind="counts", counts=rows[first : first + job.rows], qubits=qubits)))
        first += job.rows
    return payloads
