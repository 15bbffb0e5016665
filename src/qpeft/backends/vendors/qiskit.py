"""Whatever Qiskit reaches: a `BackendV2` (Aer, fake backends, vendors' providers) or a `SamplerV2`.

    get_backend("qiskit:aer")                              # Qiskit Aer (extra aer)
    get_backend("qiskit:my_module:make_backend")           # an object of a module, or a function that returns one
    QiskitBackend(backend_or_sampler)

Qiskit puts qubit 0 in the lowest bit; outcomes are turned round here. A circuit is translated and transpiled once, with its
parameters open, and bound for each row.
"""

from __future__ import annotations

import hashlib
import importlib
from typing import Any

from qpeft.backends.base import Backend, CompiledCircuit, Counts, FloatArray, Limits, check_circuit, check_run
from qpeft.circuits.ir import Circuit
from qpeft.errors import BackendError, MissingDependencyError


def open_backend(name: str, **options: Any) -> QiskitBackend:
    """`aer`, or `module:object`; an object that can be called is called with the options first."""
    if name == "aer":
        try:
            from qiskit_aer import AerSimulator
        except ImportError as error:
            raise MissingDependencyError("qiskit-aer", "aer", "the backend qiskit:aer") from error
        return QiskitBackend(AerSimulator(**options), name="qiskit:aer")
    module, colon, attribute = name.partition(":")
    if not colon:
        raise BackendError("a Qiskit backend", value=name, bound="aer, or module:object")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BackendError("no such Qiskit backend", value=f"{name}: {error}", bound="module:object") from error
    if isinstance(found, type) or not (hasattr(found, "run") or hasattr(found, "target")):
        found = found(**options)
    return QiskitBackend(found, name=f"qiskit:{name}")


class QiskitBackend(Backend):
    """A Qiskit backend or sampler.

    Args:
        target: `BackendV2` (circuits are transpiled for it) or `BaseSamplerV2`.
        name: how it is called; default `qiskit:<its name>`.
        max_qubits: for samplers that do not say how many they take.
        optimization_level, transpile_seed: of Qiskit's transpiler.
        corrects_readout: the vendor corrects readout errors itself.
    """

    def __init__(
        self,
        target: Any,
        *,
        name: str = "",
        max_qubits: int | None = None,
        optimization_level: int = 1,
        transpile_seed: int = 0,
        corrects_readout: bool = False,
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
        self.simulated = any(word in type(target).__module__ for word in ("qiskit_aer", "fake", "qiskit.primitives.statevector"))
        qubits = max_qubits or getattr(self.hardware, "num_qubits", None) or 20
        options = getattr(self.hardware, "max_shots", None) or _configured(self.hardware, "max_shots")
        self.limits = Limits(int(qubits), options, getattr(self.hardware, "max_circuits", None))
        self.calibration = f"{described}:{_calibration(self.hardware)}"

    def compile(self, circuit: Circuit) -> CompiledQiskit:
        check_circuit(self.name, self.limits, circuit)
        return CompiledQiskit(self, circuit)

    def estimate(self, programs: int, shots: int) -> float:
        return 0.0 if self.simulated else programs * shots * 100e-6

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
        self.quantum_circuit, self._parameters = to_qiskit(circuit)
        if backend.hardware is not None:
            from qiskit import transpile

            self.quantum_circuit = transpile(
                self.quantum_circuit,
                backend.hardware,
                optimization_level=backend.optimization_level,
                seed_transpiler=backend.transpile_seed,
            )

    def run(self, params: FloatArray, shots: int | None, seed: int | None = None) -> Counts:
        rows = check_run(self.backend.name, self.backend.limits, self.circuit, params, shots)
        n = self.circuit.n_qubits
        if len(rows) == 0:
            return Counts.from_strings(n, [], shots)
        order = [self._parameters[p] for p in self.quantum_circuit.parameters]
        job = self.backend.sampler(seed).run([(self.quantum_circuit, rows[:, order])], shots=shots)
        bits = job.result()[0].data.meas  # a BitArray of shape (rows,)
        counts = [bits.get_counts(i) for i in range(len(rows))]
        return Counts.from_strings(n, [{word[::-1]: count for word, count in row.items()} for row in counts], shots)


def to_qiskit(circuit: Circuit) -> tuple[Any, dict[Any, int]]:
    """A `QuantumCircuit` that measures qubit k into bit k of register `meas`, and which of its parameters is which of ours."""
    from qiskit import QuantumCircuit
    from qiskit.circuit import ParameterVector

    vector = ParameterVector("params", circuit.n_params)
    out = QuantumCircuit(circuit.n_qubits)
    for op in circuit.ops:
        angles = []
        if op.angle is not None:
            index = op.angle.index
            angles = [op.angle.shift if index is None else op.angle.scale * vector[index] + op.angle.shift]
        getattr(out, op.gate)(*angles, *op.qubits)
    out.measure_all()
    return out, {parameter: i for i, parameter in enumerate(vector)}
