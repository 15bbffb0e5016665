"""Any device that qBraid reaches: `get_backend("qbraid:PROVIDER:DEVICE", journal="jobs.jsonl", budget=Budget(shots=100_000))`.

Providers are those of the package qbraid: ionq, ibm, aws, azure, oqc, aqt, qudora, rigetti, quantinuum, origin and `qbraid`.
Keys come from the variables that qBraid reads, such as IONQ_API_KEY or QUDORA_API_TOKEN. Circuits travel as OpenQASM 3 and measure
qubit k into bit k. Tried against a local server with qBraid's own qudora client; against no vendor's service.

qBraid writes counts with qubit 0 last, as most of its providers do; `first_qubit="left"` is for those that do not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from qpeft.backends.base import Backend, CompiledCircuit, Counts, FloatArray, Limits, check_circuit, check_run
from qpeft.backends.spending.budget import Budget
from qpeft.backends.spending.paid import SECONDS_PER_SHOT, JournalFile, PaidDevice, open_journal
from qpeft.backends.spending.submission import JobState, JobStatus, KeyRefusedError, NotSentError, VendorClient
from qpeft.circuits.ir import Circuit
from qpeft.circuits.text.qasm.writer import to_qasm3
from qpeft.errors import BackendError, MissingDependencyError

STATES: Mapping[str, JobState] = {"COMPLETED": "done", "FAILED": "failed", "CANCELLED": "cancelled", "RUNNING": "running"}
OPEN_STATUS = (408, 409, 425, 499)  # of HTTP: a request that was cut off, or that is there already


class QBraidBackend(Backend):
    """One device of one of qBraid's providers.

    Args:
        name: `PROVIDER:DEVICE`, as `qbraid.runtime.load_provider` and `get_device` take them.
        journal: the file in which this piece of work is kept (spending/journal.py).
        budget: checked, with what the journal says was spent, before anything is sent.
        first_qubit: where qubit 0 stands in the provider's counts.
        provider_options: of the provider, such as its key or address.
        run_options: further arguments of the device's `run`.
        poll_s, patience_s, timeout_s: see `JobRunner`.
    """

    simulated = False

    def __init__(
        self,
        name: str,
        *,
        journal: JournalFile | None = None,
        budget: Budget | None = None,
        first_qubit: Literal["left", "right"] = "right",
        provider_options: Mapping[str, Any] | None = None,
        run_options: Mapping[str, Any] | None = None,
        poll_s: float = 1.0,
        patience_s: float = 600.0,
        timeout_s: float = 24 * 3600.0,
    ) -> None:
        provider, colon, device = name.partition(":")
        if not (provider and colon and device):
            raise BackendError("a qBraid device", value=f"qbraid:{name}", bound="qbraid:PROVIDER:DEVICE")
        if first_qubit not in ("left", "right"):
            raise BackendError("where qubit 0 stands in the counts", value=first_qubit, bound="left, right")
        self.name = f"qbraid:{name}"
        if journal is None:
            open_journal(self.name, journal)  # refused before anybody is asked
        try:
            from qbraid.runtime import load_provider
        except ImportError as error:
            raise MissingDependencyError("qbraid", "qbraid", f"the backend {self.name}") from error
        try:
            self.device = load_provider(provider, **dict(provider_options or {})).get_device(device)
        except Exception as error:
            raise BackendError(f"{self.name} cannot be reached", value=str(error), hint="check provider, device and key") from error
        profile = self.device.profile
        self.simulated, self.reverse = bool(self.device.simulator), first_qubit == "right"
        self.limits = Limits(
            int(self.device.num_qubits or 20), profile.get("max_shots"), _count(profile.get("max_programs_per_job")), exact=False
        )
        self.calibration = f"{name}:not told"
        self.journal = open_journal(self.name, journal)
        self.client = QBraidClient(self.device, provider, dict(run_options or {}))
        self.paid = PaidDevice(
            self.client,
            self.journal,
            budget,
            per_job=self.limits.max_circuits_per_job,
            seconds=self.estimate,
            poll_s=poll_s,
            patience_s=patience_s,
            timeout_s=timeout_s,
        )

    def compile(self, circuit: Circuit) -> CompiledQBraid:
        """See `Backend.compile`; nothing is sent yet. Raises BackendError for more than `limits.max_qubits` qubits."""
        check_circuit(self.name, self.limits, circuit)
        return CompiledQBraid(self, circuit)

    def estimate(self, programs: int, shots: int) -> float:
        """Seconds of chip time: `programs * shots * SECONDS_PER_SHOT`, for simulators as well."""
        return programs * shots * SECONDS_PER_SHOT

    def begin(self, sample: str) -> None:
        """See `Backend.begin`."""
        self.paid.sample = sample

    def cancel(self) -> list[str]:
        """Cancel the jobs under way; ids of those that could be."""
        return self.paid.cancel()

    def close(self) -> None:
        """Close the journal; closing twice is allowed."""
        self.paid.close()


def _count(value: Any) -> int | None:
    return int(value) if value else None


class CompiledQBraid(CompiledCircuit):
    """A circuit as OpenQASM 3 programs of a qBraid device."""

    def __init__(self, backend: QBraidBackend, circuit: Circuit) -> None:
        self.backend, self.circuit = backend, circuit

    def run(self, params: FloatArray, shots: int | None, seed: int | None = None) -> Counts:
        """See `CompiledCircuit.run`: one OpenQASM 3 program per row, sent as jobs. `shots` is required, `seed` is ignored.

        Raises:
            BudgetError, JobError: see `PaidDevice.run`.
        """
        backend, n = self.backend, self.circuit.n_qubits
        rows = check_run(backend.name, backend.limits, self.circuit, params, shots)
        programs = [program(self.circuit, row.tolist()) for row in rows]
        found = backend.paid.run({"device": backend.name}, programs, shots)
        counts = [{bits.zfill(n): count for bits, count in row.items()} for row in found]
        if backend.reverse:
            counts = [{bits[::-1]: count for bits, count in row.items()} for row in counts]
        return Counts.from_strings(n, counts, shots)


def program(circuit: Circuit, row: list[float]) -> str:
    """OpenQASM 3 text of a circuit that measures qubit k into bit k.

    Args:
        circuit: the circuit.
        row: its parameters `(n_params,)`, radians.
    """
    return to_qasm3(circuit, row) + f"bit[{circuit.n_qubits}] c;\nc = measure q;\n"


class QBraidClient(VendorClient):
    """A qBraid device as a vendor's client. A device may answer a list of programs with one job or with a list of jobs; the id is
    then a JSON list of theirs."""

    def __init__(self, device: Any, provider: str, run_options: Mapping[str, Any]) -> None:
        self.device, self.provider, self.run_options = device, provider, run_options
        self.jobs: dict[str, Any] = {}

    def submit(self, payload: Any, tag: str) -> str:
        """See `VendorClient.submit`. Returns the job's id, or a JSON list of ids; `tag` is not sent.

        Raises:
            NotSentError: the programs do not fit the device, no connection was made, or HTTP refused the request.
            KeyRefusedError: HTTP status 401 or 403.
        """
        try:
            programs = [self.device.apply_runtime_profile(text) for text in payload["programs"]]
        except Exception as error:
            raise NotSentError(str(error)) from error
        try:
            made = self.device.submit(programs, shots=payload["shots"], **self.run_options)
        except Exception as error:
            raise refusal(error) or error from error
        if not isinstance(made, list):
            self.jobs[str(made.id)] = made
            return str(made.id)
        self.jobs.update({str(job.id): job for job in made})
        return json.dumps([str(job.id) for job in made])

    def poll(self, job: str) -> JobStatus:
        """See `VendorClient.poll`. The result is one mapping of counts per program, bits in the provider's order.

        A submission with several jobs is done when all are, and failed or cancelled as soon as one is.
        """
        found = [self._job(name) for name in _names(job)]
        states = [STATES.get(str(each.status().name), "waiting") for each in found]
        for state in ("failed", "cancelled"):
            if state in states:
                return JobStatus(state, detail=_reason(found[states.index(state)]))
        if set(states) != {"done"}:
            return JobStatus("running" if "running" in states else "waiting")
        counts: list[dict[str, int]] = []
        for each in found:
            told = each.result().data.get_counts()
            counts += told if isinstance(told, list) else [told]
        return JobStatus("done", result=[{str(bits): int(count) for bits, count in row.items()} for row in counts])

    def cancel(self, job: str) -> bool:
        """Ask the provider to cancel every job of the submission. True unless a request raises."""
        for name in _names(job):
            self._job(name).cancel()
        return True

    def _job(self, name: str) -> Any:
        if name not in self.jobs:
            from qbraid.runtime import load_job

            self.jobs[name] = load_job(name, self.provider, device=self.device)
        return self.jobs[name]


def _names(job: str) -> list[str]:
    """The ids of a submission: one, or those of a JSON list."""
    return [str(name) for name in json.loads(job)] if job.startswith("[") else [job]


def _reason(job: Any) -> str:
    """Why a job failed, as far as its record says."""
    try:
        return str(job.metadata().get("status_text") or job.metadata().get("user_error") or "")
    except Exception:
        return ""


def refusal(error: BaseException) -> Exception | None:
    """Meaning of a submission's error, from the HTTP error behind it; None if it is unknown whether the job arrived."""
    seen: BaseException | None = error
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if status in (401, 403):
            return KeyRefusedError(f"status {status}: unauthorised")
        if isinstance(status, int) and 400 <= status < 500 and status not in OPEN_STATUS:
            return NotSentError(str(error))
        if "NewConnectionError" in repr(seen) or "NameResolutionError" in repr(seen):
            return NotSentError(str(error))
        seen = seen.__cause__ or seen.__context__
    return None
