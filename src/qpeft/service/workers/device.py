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
from qpeft.service.messages import Result, Term, pack
from qpeft.service.workers.context import WorkerContext, released
from qpeft.service.workers.messages import Calibration, DeviceInfo, FinishedJob, LeaseAnswer, LeasedJob, LeasedProgram
from qpeft.service.workers.programs import circuit_of

if TYPE_CHECKING:
    from qpeft.backends.base import CompiledCircuit
    from qpeft.service.workers.shared_chip import SharedChip

log = logging.getLogger("qpeft.service.worker")
CHUNK = 64  # jobs run between two looks at what was cancelled
COMPILED = 256  # circuits kept compiled for each device
MAX_OUTCOMES = 1 << 22  # numbers in the result of one job, counted before it runs


@dataclass(frozen=True)
class Group:
    """Jobs of one lease that run as one call."""

    program: str
    shots: int | None
    output: str
    observables: bytes | None
    seed: int | None
    jobs: tuple[LeasedJob, ...]


def groups(jobs: Iterable[LeasedJob]) -> list[Group]:
    """Jobs of one circuit, shots and output together; a job with a seed of its own runs alone, or its outcomes would depend on its
    neighbours."""
    found: dict[Any, list[LeasedJob]] = {}
    for job in jobs:
        alone = job.seq if job.seed is not None and job.shots is not None else None
        found.setdefault((job.program, job.shots, job.output, job.observables, job.seed, alone), []).append(job)
    return [
        Group(program, shots, output, observables, seed, tuple(members))
        for (program, shots, output, observables, seed, _), members in found.items()
    ]


class Device:
    """One backend of a worker, with its compiled circuits."""

    def __init__(self, name: str, backend: Backend) -> None:
        self.name, self.own, self.backend = name, backend, backend
        self._shared: SharedChip | None = None
        self._compiled: OrderedDict[str, CompiledCircuit] = OrderedDict()

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
        """What outcomes depend on, with the chip's own data where the backend has any."""
        chip = self.backend.chip
        data = chip.to_json().encode() if chip is not None else msgspec.json.encode({"calibration": self.backend.calibration})
        return Calibration(device=self.name, id=self.backend.calibration[:64], data=data)

    def recalibrate(self, name: str | None, fetch: Callable[[str], bytes]) -> None:
        """Run under the calibration of this id from now on (None: the worker's own); `fetch(id)` gives its chip file."""
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

    def compiled(self, circuit: Circuit) -> CompiledCircuit:
        kept = self._compiled.get(circuit.id)
        if kept is None:
            kept = self._compiled[circuit.id] = self.backend.compile(circuit)
            if len(self._compiled) > COMPILED:
                self._compiled.popitem(last=False)
        return kept

    def run(self, lease: LeaseAnswer, context: WorkerContext) -> Iterator[list[FinishedJob]]:
        """Run a lease in chunks of `CHUNK` jobs, so that what is cancelled meanwhile is left out."""
        self.recalibrate(lease.calibration, lambda name: context.calibration(self.name, name))
        for start in range(0, len(lease.jobs), CHUNK):
            if chunk := context.still_held(lease.jobs[start : start + CHUNK]):
                yield [released(job) for job in chunk] if context.stopping() else self.run_jobs(chunk, lease.programs)

    def run_jobs(self, jobs: Sequence[LeasedJob], programs: Mapping[str, LeasedProgram]) -> list[FinishedJob]:
        """Every job's end, in any order. Never raises for what a job asks."""
        ended = self._run_shared(jobs, programs)
        done = {one.seq for one in ended}
        alone = groups(job for job in jobs if job.seq not in done)
        return ended + [one for group in alone for one in self._run_group(group, programs)]

    def _run_shared(self, jobs: Sequence[LeasedJob], programs: Mapping[str, LeasedProgram]) -> list[FinishedJob]:
        """The ends of jobs that could run together on one chip; what fails here is left to run alone."""
        shared = self.shared
        if shared is None:
            return []
        from qpeft.service.workers.shared_chip import tenants

        ended = []
        for together in tenants(jobs):
            start = time.perf_counter()
            ready = list(_together(together, programs))
            shots = together[0].shots
            assert shots is not None
            try:
                outcomes = shared.run([one.circuit for one in ready], [one.params for one in ready], shots)
                payloads = [pack(one.result(*outcome, len(ready))) for one, outcome in zip(ready, outcomes, strict=True)]
            except Exception as error:
                log.info("circuits that were to share a chip run one by one: %s", error)
                continue
            seconds = self._device_seconds(1, shots, time.perf_counter() - start) / max(len(ready), 1)
            ended += [self._ended(one.job, seconds, payload, "") for one, payload in zip(ready, payloads, strict=True)]
        return ended

    def _ended(self, job: LeasedJob, seconds: float, payload: bytes | None, reason: str) -> FinishedJob:
        return FinishedJob(
            seq=job.seq,
            attempt=job.attempt,
            device_s=seconds,
            payload=payload,
            reason=reason[:4000],
            calibration=self.backend.calibration[:64],
        )

    def _run_group(self, group: Group, programs: Mapping[str, LeasedProgram]) -> list[FinishedJob]:
        start = time.perf_counter()
        try:
            payloads = self._payloads(group, programs[group.program])
        except Exception as error:
            if len(group.jobs) > 1:
                parts = (
                    Group(group.program, group.shots, group.output, group.observables, group.seed, (job,)) for job in group.jobs
                )
                return [ended for part in parts for ended in self._run_group(part, programs)]
            reason = str(error) if isinstance(error, QpeftError) else f"the device failed: {type(error).__name__}: {error}"
            payloads = [None]
        else:
            reason = ""
        rows = sum(job.rows for job in group.jobs)
        seconds = self._device_seconds(rows, group.shots, time.perf_counter() - start)
        return [
            self._ended(job, seconds * job.rows / rows, payload, reason) for job, payload in zip(group.jobs, payloads, strict=True)
        ]

    def _device_seconds(self, rows: int, shots: int | None, wall_s: float) -> float:
        return wall_s if self.backend.simulated else self.backend.estimate(rows, shots or 0)

    def _payloads(self, group: Group, program: LeasedProgram) -> list[bytes | None]:
        circuit, bits = circuit_of(program.format, program.text)
        for job in group.jobs:
            _check_params(job, circuit)
        params = np.frombuffer(b"".join(job.params for job in group.jobs), "<f8")
        params = params.reshape(sum(job.rows for job in group.jobs), circuit.n_params)
        _check_size(group, circuit, max(job.rows for job in group.jobs))
        if group.output == "expectations":
            return _split(group.jobs, "expectations", self._expectations(group, circuit, params), self._qubits(circuit))
        counts = self.compiled(circuit).run(params, group.shots, group.seed)
        qubits = self._qubits(circuit)
        if bits is not None:
            counts = counts.marginal(bits)
            qubits = None if qubits is None else tuple(qubits[q] for q in bits)
        if group.output == "probabilities":
            return _split(group.jobs, "probabilities", counts.probabilities(), qubits)
        return _split_counts(group.jobs, counts, qubits)

    def _qubits(self, circuit: Circuit) -> tuple[int, ...] | None:
        """The chip's qubits that a circuit is measured on, where the backend says so."""
        return self.compiled(circuit).qubits

    def _expectations(self, group: Group, circuit: Circuit, params: FloatArray) -> FloatArray:
        observables = _observables(group.observables, circuit)
        if _z_only(observables):
            return self.compiled(circuit).run(params, group.shots, group.seed).expectations(observables)
        import torch

        from qpeft.backends.executor import BackendExecutor

        executor = BackendExecutor(self.backend, group.shots, seed=group.seed)
        inputs = Circuit(circuit.n_qubits, circuit.ops, circuit.n_params, circuit.n_params)
        with torch.no_grad():
            run = executor.compile(inputs, observables)
            values = run(torch.from_numpy(params.copy()), torch.empty(0, dtype=torch.float64))
        return np.asarray(values.double().numpy(), dtype=np.float64)


def _check_size(group: Group, circuit: Circuit, rows: int) -> None:
    """Refuse a result that would not fit into an answer, before it is computed."""
    if group.output == "probabilities":
        columns = 2 ** min(circuit.n_qubits, 62)
    elif group.output == "counts":
        columns = min(2 ** min(circuit.n_qubits, 62), group.shots or 1)
    else:
        columns = circuit.n_qubits
    if rows * columns > MAX_OUTCOMES:
        raise CircuitError(
            "the result is too large", value=rows * columns, bound=f"{MAX_OUTCOMES} numbers", hint="ask for expectations"
        )


@dataclass(frozen=True)
class Prepared:
    """One job, read and checked, of those that run as part of something larger: a shared chip's program, a vendor's task."""

    job: LeasedJob
    circuit: Circuit
    bits: tuple[int, ...] | None
    observables: list[Observable] | None
    params: FloatArray

    def result(self, counts: Counts, qubits: tuple[int, ...] | None = None, tenants: int = 1) -> Result:
        kept = counts
        if self.bits is not None:
            kept, qubits = counts.marginal(self.bits), qubits and tuple(qubits[q] for q in self.bits)
        kind = self.job.output
        if kind == "counts":
            return Result(kind=kind, counts=kept.counts, qubits=qubits, tenants=tenants)
        table = counts.expectations(self.observables) if kind == "expectations" else kept.probabilities()
        data = np.ascontiguousarray(table, dtype="<f8").tobytes()
        return Result(kind=kind, columns=table.shape[1], data=data, qubits=qubits, tenants=tenants)


def prepare(job: LeasedJob, program: LeasedProgram) -> Prepared:
    """Raises CircuitError for what cannot run, or needs X and Y measured."""
    circuit, bits = circuit_of(program.format, program.text)
    _check_params(job, circuit)
    _check_size(Group(job.program, job.shots, job.output, job.observables, None, (job,)), circuit, job.rows)
    observables = _observables(job.observables, circuit)
    if not _z_only(observables):
        raise CircuitError(
            "only Z is measured here", value="X or Y", hint="turn the qubit in the circuit: H before measuring X, SDG and H for Y"
        )
    return Prepared(job, circuit, bits, observables, np.frombuffer(job.params, "<f8").reshape(job.rows, circuit.n_params))


def _together(jobs: Sequence[LeasedJob], programs: Mapping[str, LeasedProgram]) -> Iterator[Prepared]:
    """Those that can; what must run alone, to say why it fails or to measure X and Y, is left out."""
    for job in jobs:
        with contextlib.suppress(QpeftError):
            yield prepare(job, programs[job.program])


def _check_params(job: LeasedJob, circuit: Circuit) -> None:
    if len(job.params) != 8 * job.rows * circuit.n_params:
        raise CircuitError("wrong number of parameters", value=len(job.params) // (8 * job.rows), bound=circuit.n_params)


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
