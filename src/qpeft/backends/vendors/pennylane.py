"""Any PennyLane device as a backend: `get_backend("pennylane:default.qubit")`, or a device object.

PennyLane writes wire 0 leftmost, as we do. A circuit is run as one tape for each row, all rows in one batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qpeft.backends.base import Backend, CompiledCircuit, Counts, FloatArray, Limits, check_circuit, check_run
from qpeft.circuits.ir import Circuit
from qpeft.errors import BackendError, MissingDependencyError

ANALYTIC = ("default.qubit", "default.mixed", "lightning.qubit", "lightning.kokkos", "lightning.gpu", "reference.qubit")
QUBITS = {"default.mixed": 10}  # where 20 do not fit

_FIXED = {
    "id": "Identity", "x": "PauliX", "y": "PauliY", "z": "PauliZ", "h": "Hadamard", "s": "S", "t": "T", "sx": "SX", "cx": "CNOT",
    "cy": "CY", "cz": "CZ", "ch": "CH", "swap": "SWAP",
}  # fmt: skip
_INVERSE = {"sdg": "S", "tdg": "T", "sxdg": "SX"}
_TURNING = {
    "rx": "RX", "ry": "RY", "rz": "RZ", "p": "PhaseShift", "crx": "CRX", "cry": "CRY", "crz": "CRZ", "cp": "ControlledPhaseShift",
    "rxx": "IsingXX", "ryy": "IsingYY", "rzz": "IsingZZ",
}  # fmt: skip


class PennyLaneBackend(Backend):
    """A PennyLane device.

    Args:
        device: its name for `qml.device`, made anew for each circuit's width, or a device object.
        exact: whether `shots=None` gives exact probabilities; known for PennyLane's own devices, False for others.
        max_qubits, max_shots: for devices that do not say.
        options: further arguments of `qml.device`, by name.
    """

    def __init__(
        self, device: Any, *, exact: bool | None = None, max_qubits: int | None = None, max_shots: int | None = None, **options: Any
    ) -> None:
        try:
            import pennylane as qml
        except ImportError as error:
            raise MissingDependencyError("pennylane", "pennylane", f"the backend pennylane:{device}") from error
        self._qml, self._given, self._options = qml, device, options
        described = device if isinstance(device, str) else device.name
        self.name = f"pennylane:{described}"
        if isinstance(device, str):
            self._device(1, None)  # an unknown name is refused now
        wires = None if isinstance(device, str) else device.wires
        self.simulated = described in ANALYTIC
        self.limits = Limits(
            max_qubits or (len(wires) if wires else QUBITS.get(described, 20)),
            max_shots,
            exact=self.simulated if exact is None else exact,
        )
        self.calibration = f"{described}:{sorted(options.items())!r}"

    def _device(self, n_qubits: int, seed: int | None) -> Any:
        if not isinstance(self._given, str):
            return self._given
        options = dict(self._options)
        if seed is not None and self._given in ANALYTIC:
            options["seed"] = seed
        try:
            return self._qml.device(self._given, wires=n_qubits, **options)
        except (self._qml.exceptions.DeviceError, TypeError) as error:
            raise BackendError("PennyLane does not give this device", value=f"{self._given}: {error}") from error

    def compile(self, circuit: Circuit) -> CompiledPennyLane:
        check_circuit(self.name, self.limits, circuit)
        return CompiledPennyLane(self, circuit)

    def estimate(self, programs: int, shots: int) -> float:
        return 0.0 if self.simulated else programs * shots * 100e-6

    def execute(self, circuit: Circuit, rows: FloatArray, shots: int | None, seed: int | None) -> list[Any]:
        """One result for each row: probabilities `(2^n,)`, or samples `(shots, n)`."""
        qml = self._qml
        wires = range(circuit.n_qubits)
        measured = qml.probs(wires=wires) if shots is None else qml.sample(wires=wires)
        tapes = [qml.tape.QuantumScript(self._gates(circuit, row), [measured], shots=shots) for row in rows]
        device = self._device(circuit.n_qubits, seed)
        return list(qml.execute(tapes, device, diff_method=None))

    def _gates(self, circuit: Circuit, row: FloatArray) -> list[Any]:
        values, gates = row.tolist(), []
        for op in circuit.ops:
            if op.angle is not None:
                gates.append(getattr(self._qml, _TURNING[op.gate])(op.angle.value(values), wires=op.qubits))
            elif op.gate in _FIXED:
                gates.append(getattr(self._qml, _FIXED[op.gate])(wires=op.qubits))
            else:
                gates.append(self._qml.adjoint(getattr(self._qml, _INVERSE[op.gate])(wires=op.qubits)))
        return gates


class CompiledPennyLane(CompiledCircuit):
    """A circuit that runs as one tape for each row."""

    def __init__(self, backend: PennyLaneBackend, circuit: Circuit) -> None:
        self.backend, self.circuit = backend, circuit

    def run(self, params: FloatArray, shots: int | None, seed: int | None = None) -> Counts:
        rows = check_run(self.backend.name, self.backend.limits, self.circuit, params, shots)
        n = self.circuit.n_qubits
        results = self.backend.execute(self.circuit, rows, shots, seed) if len(rows) else []
        if shots is None:
            return Counts.dense(np.array(results, dtype=np.float64).reshape(len(rows), 2**n), None)
        counted = []
        for samples in results:
            bits, seen = np.unique(np.asarray(samples).reshape(shots, n).astype(np.bool_), axis=0, return_counts=True)
            counted.append((bits, seen))
        return Counts.sparse(n, counted, shots)
