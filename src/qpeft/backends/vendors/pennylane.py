"""Any PennyLane device as a backend: `get_backend("pennylane:default.qubit")`, or a device object.

PennyLane writes wire 0 leftmost, as we do. A circuit is run as one tape for each row, all rows in one batch. PennyLane waits for
results itself and gives jobs no names, so a job that a crash cut off stays ambiguous: its journal says what was sent and paid.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from qpeft.backends.base import Backend, CompiledCircuit, Counts, FloatArray, Limits, check_circuit, check_run
from qpeft.backends.folding import check_scale
from qpeft.backends.spending.budget import Budget
from qpeft.backends.spending.paid import SECONDS_PER_SHOT, JournalFile, PaidDevice, open_journal
from qpeft.backends.spending.submission import CannotAttachError, JobStatus, VendorClient
from qpeft.circuits.ir import Circuit
from qpeft.circuits.text.pennylane import operators
from qpeft.errors import BackendError, MissingDependencyError

ANALYTIC = ("default.qubit", "default.mixed", "lightning.qubit", "lightning.kokkos", "lightning.gpu", "reference.qubit")
QUBITS = {"default.mixed": 10}  # where 20 do not fit


class PennyLaneBackend(Backend):
    """A PennyLane device.

    Args:
        device: its name for `qml.device`, made anew for each circuit's width, or a device object.
        exact: whether `shots=None` gives exact probabilities; known for PennyLane's own devices, False for others.
        max_qubits, max_shots: for devices that do not say.
        journal: the file in which jobs on a real device are kept (spending/journal.py); PennyLane's simulators need none.
        budget: checked, with what the journal says was spent, before anything is sent.
        simulated: a classical computer makes the outcomes; default whether it is one of PennyLane's own simulators.
        options: further arguments of `qml.device`, by name.
    """

    def __init__(
        self,
        device: Any,
        *,
        exact: bool | None = None,
        max_qubits: int | None = None,
        max_shots: int | None = None,
        journal: JournalFile | None = None,
        budget: Budget | None = None,
        simulated: bool | None = None,
        **options: Any,
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
        self.simulated = described in ANALYTIC if simulated is None else simulated
        self.limits = Limits(
            max_qubits or (len(wires) if wires else QUBITS.get(described, 20)),
            max_shots,
            exact=described in ANALYTIC if exact is None else exact,
        )
        self.calibration = f"{described}:{sorted(options.items())!r}"
        self.client = PennyLaneClient(self)
        self.device: PaidDevice | None = None
        if not self.simulated:
            self.journal = open_journal(f"{self.name} is not known to be a simulator, so it", journal)
            self.device = PaidDevice(self.client, self.journal, budget, per_job=None, seconds=self.estimate)

    def with_noise_scale(self, scale: int) -> Backend:
        """This backend itself where it is one of PennyLane's own simulators, given by name.

        Raises:
            BackendError: another device, or a `scale` that is not 1, 3, 5, ...
        """
        check_scale(scale)
        return self if self.simulated and self._given in ANALYTIC else super().with_noise_scale(scale)

    def begin(self, sample: str) -> None:
        """See `Backend.begin`. Does nothing on a simulator."""
        if self.device is not None:
            self.device.sample = sample

    def close(self) -> None:
        """Close the journal. A simulator has none; closing twice is allowed."""
        if self.device is not None:
            self.device.close()

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
        """See `Backend.compile`. Raises BackendError for more than `limits.max_qubits` qubits."""
        check_circuit(self.name, self.limits, circuit)
        return CompiledPennyLane(self, circuit)

    def estimate(self, programs: int, shots: int) -> float:
        """Seconds of chip time: `programs * shots * SECONDS_PER_SHOT`; 0 for a simulator."""
        return 0.0 if self.simulated else programs * shots * SECONDS_PER_SHOT

    def results(self, circuit: Circuit, rows: FloatArray, shots: int | None, seed: int | None) -> list[Any]:
        """Run a circuit, one tape per row.

        Args:
            circuit: the circuit.
            rows: parameters `(batch, n_params)`, radians.
            shots: repetitions of each row; None for exact probabilities.
            seed: of PennyLane's own simulators, where given by name.

        Returns:
            One result per row, fit for JSON: a list of `2^n` probabilities, or counts by bit string, qubit 0 leftmost.
        """
        qml = self._qml
        if not len(rows):
            return []
        wires = range(circuit.n_qubits)
        measured = qml.probs(wires=wires) if shots is None else qml.sample(wires=wires)
        tapes = [qml.tape.QuantumScript(operators(circuit, row.tolist()), [measured], shots=shots) for row in rows]
        device = self._device(circuit.n_qubits, seed)
        found = [np.asarray(result) for result in qml.execute(tapes, device, diff_method=None)]
        if shots is None:
            return [result.tolist() for result in found]
        samples = [result.reshape(shots, circuit.n_qubits).astype(np.int64).tolist() for result in found]
        return [dict(Counter("".join(map(str, bits)) for bits in row)) for row in samples]


class PennyLaneClient(VendorClient):
    """A PennyLane device as a vendor's client: `submit` returns when the results are there."""

    def __init__(self, backend: PennyLaneBackend) -> None:
        self.backend = backend
        self.circuits: dict[str, Circuit] = {}
        self.results: dict[str, list[Any]] = {}

    def submit(self, payload: Any, tag: str) -> str:
        """See `VendorClient.submit`: run the programs and wait for their results. The tag is the job's id."""
        rows = np.array(payload["programs"], dtype=np.float64)
        self.results[tag] = self.backend.results(self.circuits[payload["circuit"]], rows, payload["shots"], None)
        return tag

    def poll(self, job: str) -> JobStatus:
        """The results of `submit`, once per job. Raises CannotAttachError for a job that this process did not run."""
        if job not in self.results:
            raise CannotAttachError("PennyLane gives jobs no names")
        return JobStatus("done", result=self.results.pop(job))

    def cancel(self, job: str) -> bool:
        """Always False: a job has ended when `submit` returns."""
        return False


class CompiledPennyLane(CompiledCircuit):
    """A circuit that runs as one tape for each row."""

    def __init__(self, backend: PennyLaneBackend, circuit: Circuit) -> None:
        self.backend, self.circuit = backend, circuit

    def run(self, params: FloatArray, shots: int | None, seed: int | None = None) -> Counts:
        """See `CompiledCircuit.run`: one tape per row. `seed` reaches PennyLane's own simulators only, where given by name.

        Raises:
            BudgetError, JobError: on a device that is paid for; see `PaidDevice.run`.
        """
        rows = check_run(self.backend.name, self.backend.limits, self.circuit, params, shots)
        n = self.circuit.n_qubits
        device = self.backend.device
        if device is not None:
            self.backend.client.circuits[self.circuit.id] = self.circuit
            head = {"device": self.backend.name, "calibration": self.backend.calibration, "circuit": self.circuit.id}
            results = device.run(head, rows.tolist(), shots) if len(rows) else []
        else:
            results = self.backend.results(self.circuit, rows, shots, seed)
        if shots is None:
            return Counts.dense(np.array(results, dtype=np.float64).reshape(len(rows), 2**n), None)
        return Counts.from_strings(n, results, shots)
