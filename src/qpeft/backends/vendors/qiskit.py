"""Whatever Qiskit reaches: a `BackendV2` (Aer, fake backends, vendors' providers) or a `SamplerV2`.

    get_backend("qiskit:aer")  # Qiskit Aer (extra aer)
    get_backend("qiskit:my_module:thing", allow_import=True)  # a backend or sampler of a module, or a function that returns one
    QiskitBackend(backend_or_sampler, journal="jobs.jsonl", budget=Budget(shots=100_000))

A name with a module imports that module, so it is refused unless the user allows it: with `allow_import=True` in Python,
`--allow-plugins` on the command line or QPEFT_ALLOW_PLUGINS=1 in the environment. A recipe cannot allow it.

Qiskit puts qubit 0 in the lowest bit; outcomes are reversed here. A circuit is translated and transpiled once, with symbolic
parameters, and bound for each row. Jobs on a backend that is not known to be a simulator are kept in a journal (paid.py).
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import math
from typing import Any

import numpy as np

from qpeft import plugins
from qpeft.backends.base import Backend, CompiledCircuit, Counts, FloatArray, Limits, check_circuit, check_run
from qpeft.backends.folding import check_scale
from qpeft.backends.spending.budget import Budget
from qpeft.backends.spending.paid import SECONDS_PER_SHOT, JournalFile, PaidDevice, open_journal
from qpeft.backends.spending.submission import CannotAttachError, JobStatus, VendorClient
from qpeft.circuits.ir import Circuit
from qpeft.circuits.text.qiskit import parameter_place, to_qiskit
from qpeft.errors import BackendError, MissingDependencyError, PluginError


def open_backend(
    name: str,
    *,
    allow_import: bool | None = None,
    journal: JournalFile | None = None,
    budget: Budget | None = None,
    **options: Any,
) -> QiskitBackend:
    """`aer`, or `module:object`; an object that can be called is called with the options first.

    Args:
        name: "aer", or "module:object".
        allow_import: whether the module may be imported; default what the user allowed for the process.
        journal, budget: see `QiskitBackend`.
        **options: arguments of `AerSimulator`, or of the object if it can be called.

    Raises:
        PluginError: the module may not be imported.
        BackendError: there is no such object.
    """
    if name == "aer":
        try:
            from qiskit_aer import AerSimulator
        except ImportError as error:
            raise MissingDependencyError("qiskit-aer", "aer", "the backend qiskit:aer") from error
        return QiskitBackend(AerSimulator(**options), name="qiskit:aer")
    module, colon, attribute = name.partition(":")
    if not colon:
        raise BackendError("a Qiskit backend", value=name, bound="aer, or module:object")
    if not (plugins.allowed() if allow_import is None else allow_import):
        raise PluginError(
            "the backend's name imports code, which runs with your rights",
            value=f"qiskit:{name}",
            hint=f"read {module}, then say --allow-plugins, set {plugins.ALLOW}=1, or in Python allow_import=True",
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BackendError("no such Qiskit backend", value=f"{name}: {error}", bound="module:object") from error
    if isinstance(found, type) or not (hasattr(found, "run") or hasattr(found, "target")):
        found = found(**options)
    return QiskitBackend(found, name=f"qiskit:{name}", journal=journal, budget=budget)


class QiskitBackend(Backend):
    """A Qiskit backend or sampler.

    Args:
        target: `BackendV2` (circuits are transpiled for it) or `BaseSamplerV2`.
        name: how it is called; default `qiskit:<its name>`.
        max_qubits: for samplers that do not say how many they take.
        optimization_level, transpile_seed: of Qiskit's transpiler.
        corrects_readout: the vendor corrects readout errors itself.
        simulated: a classical computer makes the outcomes; default what the type of `target` tells.
        journal: the file in which jobs on a real device are kept (spending/journal.py); a simulator needs none.
        budget: checked, with what the journal says was spent, before anything is sent.
        patience_s: how long a provider may not answer.
    """

    noise_scale = 1

    def __init__(
        self,
        target: Any,
        *,
        name: str = "",
        max_qubits: int | None = None,
        optimization_level: int = 1,
        transpile_seed: int = 0,
        corrects_readout: bool = False,
        simulated: bool | None = None,
        journal: JournalFile | None = None,
        budget: Budget | None = None,
        patience_s: float = 600.0,
    ) -> None:
        try:
            from qiskit.primitives import BackendSamplerV2, BaseSamplerV2
            from qiskit.providers import BackendV2
        except ImportError as error:
            raise MissingDependencyError("qiskit", "qiskit", "a Qiskit backend") from error
        self.target = target
        if isinstance(target, BackendV2):
            self.hardware, self._sampler = target, None
            self._make_sampler = BackendSamplerV2
        elif isinstance(target, BaseSamplerV2):
            self.hardware, self._sampler = getattr(target, "backend", None), target
        else:
            raise BackendError("neither a BackendV2 nor a SamplerV2 of Qiskit", value=type(target).__name__)
        described = getattr(self.hardware, "name", None) or type(target).__name__
        self.name = name or f"qiskit:{described}"
        self.optimization_level, self.transpile_seed = optimization_level, transpile_seed
        self.corrects_readout = corrects_readout
        known = any(word in type(target).__module__ for word in ("qiskit_aer", "fake", "qiskit.primitives.statevector"))
        self.simulated = known if simulated is None else simulated
        qubits = max_qubits or getattr(self.hardware, "num_qubits", None) or 20
        options = getattr(self.hardware, "max_shots", None) or _configured(self.hardware, "max_shots")
        self.limits = Limits(int(qubits), options, getattr(self.hardware, "max_circuits", None))
        self.calibration = f"{described}:{_calibration(self.hardware)}"
        self.device: PaidDevice | None = None
        self.client = QiskitClient(self)
        if not self.simulated:
            self.journal = open_journal(f"{self.name} is not known to be a simulator, so it", journal)
            per_job = self.limits.max_circuits_per_job
            self.device = PaidDevice(
                self.client, self.journal, budget, per_job=per_job, seconds=self.estimate, patience_s=patience_s
            )

    def compile(self, circuit: Circuit) -> CompiledQiskit:
        """Translate a circuit to Qiskit and transpile it, for the hardware where that is known.

        Raises:
            BackendError: too many qubits, or noise is scaled and a gate cannot be undone with the backend's gates.
        """
        check_circuit(self.name, self.limits, circuit)
        return CompiledQiskit(self, circuit)

    def with_noise_scale(self, scale: int) -> QiskitBackend:
        """See `Backend.with_noise_scale`: the gates are folded after transpilation, when a circuit is compiled."""
        check_scale(scale)
        other = copy.copy(self)
        other.noise_scale = scale * self.noise_scale
        other.calibration = f"{self.calibration},noise_scale={scale}"
        return other

    def begin(self, sample: str) -> None:
        """See `Backend.begin`. Does nothing on a simulator."""
        if self.device is not None:
            self.device.sample = sample

    def estimate(self, programs: int, shots: int) -> float:
        """Seconds of chip time: `programs * shots * SECONDS_PER_SHOT`; 0 for a simulator."""
        return 0.0 if self.simulated else programs * shots * SECONDS_PER_SHOT

    def close(self) -> None:
        """Close the journal. A simulator has none; closing twice is allowed."""
        if self.device is not None:
            self.device.close()

    @property
    def operations(self) -> frozenset[str] | None:
        """Names of the gates that the backend runs; None where it takes any."""
        target = getattr(self.hardware, "target", None)
        return None if target is None else frozenset(target.operation_names)

    @property
    def samples(self) -> bool:
        """A sampler was given, not a backend."""
        return self._sampler is not None

    def sampler(self, seed: int | None) -> Any:
        """The sampler to run on: a BackendV2 gets one whose simulator has the seed."""
        if self._sampler is not None:
            return self._sampler
        return self._make_sampler(backend=self.hardware, options={"seed_simulator": seed})


def _configured(hardware: Any, name: str) -> int | None:
    """A figure of the backend's old-style configuration, as Aer has it."""
    value = getattr(getattr(hardware, "_configuration", None), name, None)
    return int(value) if isinstance(value, (int, float)) and value > 0 else None


def _calibration(hardware: Any) -> str:
    """A hash of the target's errors and durations, and of an Aer backend's noise model."""
    parts = [repr(getattr(getattr(hardware, "options", None), "noise_model", None))]
    target = getattr(hardware, "target", None)
    if target is not None:
        parts += [f"{name}{sorted(((q, repr(p)) for q, p in (places or {}).items()), key=repr)}" for name, places in target.items()]
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:16]


class CompiledQiskit(CompiledCircuit):
    """A circuit that was transpiled for its backend, parameters still symbolic."""

    def __init__(self, backend: QiskitBackend, circuit: Circuit) -> None:
        self.backend, self.circuit = backend, circuit
        self.quantum_circuit = to_qiskit(circuit)
        self.quantum_circuit.measure_all()  # qubit k into bit k of register `meas`
        if backend.hardware is not None:
            from qiskit import transpile

            self.quantum_circuit = transpile(
                self.quantum_circuit,
                backend.hardware,
                optimization_level=backend.optimization_level,
                seed_transpiler=backend.transpile_seed,
            )

        if backend.noise_scale != 1:
            self.quantum_circuit = fold(self.quantum_circuit, backend.noise_scale, backend.operations)
        self.key = f"{circuit.id}@{backend.noise_scale}"

    def run(self, params: FloatArray, shots: int | None, seed: int | None = None) -> Counts:
        """See `CompiledCircuit.run`: all rows in one sampler job on a simulator, in paid jobs on a device. `shots` is required.

        `seed` reaches the simulator of a BackendV2; a sampler that was given and a device ignore it.

        Raises:
            BudgetError, JobError: on a device; see `PaidDevice.run`.
        """
        rows = check_run(self.backend.name, self.backend.limits, self.circuit, params, shots)
        n = self.circuit.n_qubits
        if len(rows) == 0:
            return Counts.from_strings(n, [], shots)
        if self.backend.device is None:
            found = read_counts(self.sampler_job(rows, shots, seed).result())
        else:
            client = self.backend.client
            client.compiled[self.key] = self
            head = {"backend": self.backend.name, "circuit": self.key}
            found = self.backend.device.run(head, rows.tolist(), shots)
        return Counts.from_strings(n, [{bits[::-1]: count for bits, count in row.items()} for row in found], shots)

    def sampler_job(self, rows: FloatArray, shots: int | None, seed: int | None = None) -> Any:
        """A sampler's job that runs every row of parameters.

        Args:
            rows: parameters `(batch, n_params)`, radians.
            shots: repetitions of each row; None leaves them to the sampler.
            seed: of the sampler, where it takes one.
        """
        order = [parameter_place(self.circuit, p) for p in self.quantum_circuit.parameters]
        return self.backend.sampler(seed).run([(self.quantum_circuit, rows[:, order])], shots=shots)

    def provider_job(self, rows: FloatArray, shots: int | None) -> Any:
        """A job under the provider's own id: of the sampler that was given, or of the backend's `run`.

        Args:
            rows: parameters `(batch, n_params)`, radians.
            shots: repetitions of each row.
        """
        if self.backend.samples:
            return self.sampler_job(rows, shots)
        names = list(self.quantum_circuit.parameters)
        values = [{p: row[parameter_place(self.circuit, p)] for p in names} for row in rows]
        circuits = [self.quantum_circuit.assign_parameters(row) for row in values]
        return self.backend.hardware.run(circuits, shots=shots)


def fold(circuit: Any, scale: int, operations: frozenset[str] | None) -> Any:
    """A transpiled circuit folded to `scale` times the noise, in the gates of `operations`. It must not be compiled again."""
    pairs, out = check_scale(scale), circuit.copy_empty_like()
    for item in circuit.data:
        out.append(item)
        if item.operation.name in ("measure", "barrier", "delay", "reset"):
            continue
        for _ in range(pairs):
            for gate in undo(item.operation, operations):
                out.append(gate, item.qubits)
            out.append(item)
    return out


def undo(gate: Any, operations: frozenset[str] | None) -> list[Any]:
    """Gates of `operations` that undo a gate, up to a global phase."""
    from qiskit.circuit.library import RZGate

    inverse = gate.inverse()
    if operations is None or inverse.name in operations:
        return [inverse]
    if gate.name in ("sx", "rx") and "rz" in operations:  # a half turn about Z changes the sign of a rotation about X
        return [RZGate(math.pi), gate, RZGate(math.pi)]
    raise BackendError("the backend has no gates that undo this one", value=gate.name, bound=", ".join(sorted(operations)))


def read_counts(result: Any) -> list[dict[str, int]]:
    """Counts of every row of a job, qubit 0 rightmost."""
    if hasattr(result, "get_counts"):  # of a backend's `run`; else of a sampler
        counts = result.get_counts()
        rows = counts if isinstance(counts, list) else [counts]
        return [{str(word): int(count) for word, count in row.items()} for row in rows]
    bits = result[0].data.meas  # a BitArray of shape (rows,)
    return [{str(word): int(count) for word, count in bits.get_counts(i).items()} for i in range(bits.shape[0])]


class QiskitClient(VendorClient):
    """A Qiskit backend or sampler as a vendor's client. Jobs of an earlier process are found again where the provider has
    `service.job(id)` or `retrieve_job(id)`, as IBM's and most others have."""

    def __init__(self, backend: QiskitBackend) -> None:
        self.backend = backend
        self.compiled: dict[str, CompiledQiskit] = {}
        self.jobs: dict[str, Any] = {}

    def submit(self, payload: Any, tag: str) -> str:
        """See `VendorClient.submit`. Returns the provider's job id; `tag` is not sent."""
        compiled = self.compiled[payload["circuit"]]
        job = compiled.provider_job(np.array(payload["programs"], dtype=np.float64), payload["shots"])
        name = str(job.job_id())
        self.jobs[name] = job
        return name

    def poll(self, job: str) -> JobStatus:
        """See `VendorClient.poll`. The result of a finished job is one mapping of counts per row, qubit 0 rightmost."""
        found = self._job(job)
        status = found.status()
        state = str(getattr(status, "name", status)).upper()
        if state == "DONE":
            return JobStatus("done", result=read_counts(found.result()))
        if state in ("CANCELLED", "ERROR"):
            return JobStatus("cancelled" if state == "CANCELLED" else "failed", detail=_message(found))
        return JobStatus("running" if state == "RUNNING" else "waiting")

    def cancel(self, job: str) -> bool:
        """See `VendorClient.cancel`. A provider that returns None counts as having agreed."""
        answer = self._job(job).cancel()
        return answer is None or bool(answer)

    def _job(self, job: str) -> Any:
        if job not in self.jobs:
            service = getattr(self.backend.hardware, "service", None)
            find = getattr(service, "job", None) or getattr(self.backend.hardware, "retrieve_job", None)
            if find is None:
                raise CannotAttachError("the provider has neither service.job(id) nor retrieve_job(id)")
            self.jobs[job] = find(job)
        return self.jobs[job]


def _message(job: Any) -> str:
    """Why a job ended, as far as the provider says."""
    told = getattr(job, "error_message", None)
    return str(told() if callable(told) else told or "")
