"""qpeft as a provider of qBraid: `load_provider("qpeft")`, found by entry point.

    provider = load_provider("qpeft")                        # simulators and emulated chips on this machine
    provider = load_provider("qpeft", url=URL, key=KEY)      # the devices of a qpeft task service as well
    job = provider.get_device("emulator:wukong-72").run(["OPENQASM 3.0; ..."], shots=1000)
    job.result().data.get_counts()

Programs are OpenQASM 2 or 3 that measure all qubits, qubit k into bit k, or say nothing of measurements. Counts have qubit 0 last,
as everywhere at qBraid. The emulated chips that ship with qpeft have a synthetic calibration; the profile says `synthetic`.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from typing import Any

import numpy as np
from qbraid.programs import ExperimentType, ProgramSpec
from qbraid.runtime import (
    DeviceStatus,
    GateModelResultData,
    JobStatus,
    QuantumDevice,
    QuantumJob,
    QuantumProvider,
    Result,
    TargetProfile,
)

from qpeft.backends.base import Limits
from qpeft.backends.emulator.chip import known_chips
from qpeft.backends.registry import get_backend
from qpeft.backends.vendors.remote import ENV_KEY, ENV_URL, Connection, outcomes, read_lines, sweep_request
from qpeft.circuits.ir import Circuit
from qpeft.circuits.text.qasm import from_qasm
from qpeft.errors import BackendError, CircuitError

LIST = ("simulator", *(f"emulator:{name}" for name in known_chips()))  # of this machine
MEASURE = re.compile(r"(\w+)\[(\d+)\]\s*=\s*measure\s+\w+\[(\d+)\]|measure\s+\w+\[(\d+)\]\s*->\s*\w+\[(\d+)\]")
STATES = {"succeeded": JobStatus.COMPLETED, "failed": JobStatus.FAILED, "cancelled": JobStatus.CANCELLED}
FINISHED: dict[str, tuple[str, list[dict[str, int]]]] = {}  # jobs of this machine, which end when they are submitted


def read_program(text: str) -> Circuit:
    """The circuit of a program; CircuitError where it measures other than qubit k into bit k, for all qubits or none."""
    circuit = from_qasm(text)
    pairs = [(int(m[2] or m[3]), int(m[1] or m[4])) for m in (found.groups() for found in MEASURE.finditer(text))]
    if any(qubit != bit for qubit, bit in pairs):
        raise CircuitError("a measurement of qubit k goes into bit k", value=next(p for p in pairs if p[0] != p[1]))
    if pairs and {qubit for qubit, _ in pairs} != set(range(circuit.n_qubits)):
        raise CircuitError("all qubits are measured, or none is written", value=sorted(q for q, _ in pairs), bound=circuit.n_qubits)
    return circuit


class QpeftProvider(QuantumProvider):  # type: ignore[misc]
    """Devices of this machine, and with `url` and `key` (or QPEFT_SERVICE_URL and QPEFT_SERVICE_KEY) those of a task service."""

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        self.url, self._key = url or os.environ.get(ENV_URL), key or os.environ.get(ENV_KEY)
        self.connection = Connection(self.url, self._key) if self.url and self._key else None

    def get_devices(self, **_: Any) -> list[QpeftDevice]:
        """All devices that can be asked now."""
        here = [self.get_device(name) for name in LIST]
        if self.connection is None:
            return here
        found = self.connection.request("GET", "/v1/devices").json()["devices"]
        there = [_profile(f"service:{row['id']}", _limits(row), bool(row["simulated"])) for row in found if row["max_qubits"]]
        return [*here, *(QpeftDevice(profile, self.connection) for profile in there)]

    def get_device(self, device_id: str) -> QpeftDevice:
        """A device by its id: a backend of this machine, or `service:NAME`."""
        if device_id.startswith("service:"):
            if self.connection is None:
                raise BackendError("no service to ask", value=device_id, hint=f"url and key, or {ENV_URL} and {ENV_KEY}")
            row = self.connection.request("GET", f"/v1/devices/{device_id.removeprefix('service:')}").json()
            return QpeftDevice(_profile(device_id, _limits(row), bool(row["simulated"])), self.connection)
        backend = get_backend(device_id)
        synthetic = None if backend.chip is None else backend.chip.synthetic
        return QpeftDevice(_profile(device_id, backend.limits, backend.simulated, synthetic=synthetic))

    def __hash__(self) -> int:
        return hash((self.url, self._key))


def _limits(row: dict[str, Any]) -> Limits:
    return Limits(row["max_qubits"] or 1, row["max_shots"])


def _profile(device_id: str, limits: Limits, simulated: bool, **more: Any) -> TargetProfile:
    return TargetProfile(
        device_id=device_id,
        simulator=simulated,
        experiment_type=ExperimentType.GATE_MODEL,
        num_qubits=limits.max_qubits,
        program_spec=[ProgramSpec(str, alias="qasm3"), ProgramSpec(str, alias="qasm2")],
        provider_name="qpeft",
        basis_gates=None,
        max_shots=limits.max_shots,
        **more,
    )


class QpeftDevice(QuantumDevice):  # type: ignore[misc]
    """A backend of this machine, or a device of a service."""

    def __init__(self, profile: TargetProfile, connection: Connection | None = None) -> None:
        super().__init__(profile=profile)
        self.connection = connection

    def status(self) -> DeviceStatus:
        """Whether the device is online, as the service reports it; devices of this machine always are."""
        if self.connection is None:
            return DeviceStatus.ONLINE
        row = self.connection.request("GET", f"/v1/devices/{self.id.removeprefix('service:')}").json()
        return DeviceStatus.ONLINE if row["status"] == "online" else DeviceStatus.OFFLINE

    def submit(self, run_input: str | list[str], *_: Any, shots: int = 1000, seed: int | None = None, **__: Any) -> QpeftJob:
        """Submit programs as one job. A job on this machine has ended when this returns.

        Args:
            run_input: one program or a list of them, as OpenQASM text.
            *_: ignored.
            shots: repetitions of each program.
            seed: equal seeds give equal outcomes on simulated devices.
            **__: ignored.
        """
        circuits = [read_program(text) for text in ([run_input] if isinstance(run_input, str) else run_input)]
        if self.connection is None:
            backend, rows = get_backend(self.id), np.empty((1, 0))
            found = [
                backend.compile(circuit).run(rows, shots, None if seed is None else seed + i) for i, circuit in enumerate(circuits)
            ]
            backend.close()
            job = f"local-{uuid.uuid4()}"
            FINISHED[job] = (self.id, [row for counts in found for row in counts.counts])
            return QpeftJob(job, device=self)
        name = self.id.removeprefix("service:")
        contents = [sweep_request(name, circuit.to_dict(), [[]], shots, seed) for circuit in circuits]
        batches = [str(self.connection.submit("/v1/sweeps", content)["id"]) for content in contents]
        return QpeftJob(json.dumps([self.id, *batches]), device=self, connection=self.connection)


class QpeftJob(QuantumJob):  # type: ignore[misc]
    """A job; one at a service is found again by its id with `load_job(id, "qpeft")`."""

    def __init__(self, job_id: str, device: QpeftDevice | None = None, connection: Connection | None = None, **kwargs: Any) -> None:
        super().__init__(job_id, device, **kwargs)
        self.local = not job_id.startswith("[")
        if self.local and job_id not in FINISHED:
            raise BackendError("a job of another process on that machine", value=job_id, hint="jobs of a service can be loaded")
        self.connection = None if self.local else connection or Connection()

    def _batches(self) -> list[str]:
        return [str(batch) for batch in json.loads(self.id)[1:]]

    def status(self) -> JobStatus:
        """State of the first batch that is not completed, else COMPLETED; jobs of this machine always are."""
        if self.connection is None:
            return JobStatus.COMPLETED
        states = []
        for batch in self._batches():
            lines, complete = read_lines(self.connection, batch, 0, 0.0)
            bad = [line["state"] for line in lines if line["state"] != "succeeded"]
            states.append(STATES.get(bad[0], JobStatus.FAILED) if bad else JobStatus.COMPLETED if complete else JobStatus.RUNNING)
        worst = [state for state in states if state != JobStatus.COMPLETED]
        return worst[0] if worst else JobStatus.COMPLETED

    def result(self) -> Result[GateModelResultData]:
        """Counts of each program, qubit 0 last; waits for them."""
        if self.connection is None:
            device, rows = FINISHED[self.id]
        else:
            self.wait_for_final_state(poll_interval=1)
            device, rows = str(json.loads(self.id)[0]), []
            for batch in self._batches():
                lines, _ = read_lines(self.connection, batch, 0, 0.0)
                if failed := [line for line in lines if line["state"] != "succeeded"]:
                    raise BackendError(f"job {failed[0]['id']} {failed[0]['state']}: {failed[0]['reason']}")
                rows += outcomes(lines)
        counts = [{bits[::-1]: count for bits, count in row.items()} for row in rows]
        data = GateModelResultData(measurement_counts=counts[0] if len(counts) == 1 else counts)
        return Result(device_id=device, job_id=self.id, success=True, data=data)

    def cancel(self) -> None:
        """Ask the service to cancel every batch of the job; nothing for a job of this machine, which has ended."""
        if self.connection is not None:
            for batch in self._batches():
                self.connection.request("POST", f"/v1/batches/{batch}/cancel")
