"""What travels over HTTP, as typed structures: JSON for users, MessagePack for workers.

Programs travel as qpeft's own circuit JSON or as OpenQASM 2/3 or OriginIR text. Never as pickle or anything that runs.
A binary sweep (`application/octet-stream`) is: length of the head (uint32, little-endian), the head (a SweepRequest in JSON with
`rows` instead of `params`), then the matrix `(rows, n_params)` as little-endian float32.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

Output: TypeAlias = Literal["counts", "probabilities", "expectations"]
Name: TypeAlias = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Device: TypeAlias = Annotated[str, Meta(max_length=128)]
Shots: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Seed: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Lifetime: TypeAlias = Annotated[float, Meta(gt=0, le=30 * 86400)]
Term: TypeAlias = tuple[float, list[tuple[Annotated[int, Meta(ge=0, le=4095)], Literal["X", "Y", "Z"]]]]


class Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request: a field nobody knows is a mistake, said at once."""


class Source(Strict):
    """A circuit in one of three forms: `circuit` (qpeft's JSON), `qasm` or `originir` (text)."""

    circuit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    qasm: str | None = None
    originir: str | None = None


class JobRequest(Source, kw_only=True):
    """One circuit, run once for its `params`; with `shots` null the outcome is exact, on devices that can.

    `observables`, for `output: "expectations"`: each a list of `[coefficient, [[qubit, "X" | "Y" | "Z"], ...]]`; default Z of
    every qubit. `expires_s`: seconds it may wait in the queue. `exclusive`: never on a chip together with others' circuits.
    """

    device: Device
    params: list[float] = []
    shots: Shots | None = None
    seed: Seed | None = None
    output: Output = "counts"
    observables: list[list[Term]] | None = None
    name: Name = ""
    exclusive: bool = False
    expires_s: Lifetime | None = None


class BatchItem(Source, kw_only=True):
    """One circuit of a batch; what it leaves out is the batch's."""

    params: list[float] = []
    shots: Shots | None = None
    seed: Seed | None = None
    name: Name = ""


class BatchRequest(Strict):
    """Many circuits, each a job of its own."""

    device: Device
    circuits: Annotated[list[BatchItem], Meta(min_length=1)]
    shots: Shots | None = None
    seed: Seed | None = None
    output: Output = "counts"
    observables: list[list[Term]] | None = None
    name: Name = ""
    exclusive: bool = False
    expires_s: Lifetime | None = None


class SweepRequest(Source, kw_only=True):
    """One circuit and a matrix of parameters, a row for each run."""

    device: Device
    params: list[list[float]] | None = None
    rows: Annotated[int, Meta(ge=1)] | None = None
    shots: Shots | None = None
    seed: Seed | None = None
    output: Output = "expectations"
    observables: list[list[Term]] | None = None
    name: Name = ""
    exclusive: bool = False
    expires_s: Lifetime | None = None


class KeyRequest(Strict):
    """A key for a user (made when there is none of that name). `weight` is the user's share of a device, 1 by default."""

    user: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
    scopes: Annotated[list[Literal["submit", "read", "admin", "worker"]], Meta(min_length=1, max_length=4)]
    weight: Annotated[float, Meta(gt=0, le=1000)] | None = None
    max_open_circuits: Annotated[int, Meta(ge=0, le=2**53)] | None = None


class DeviceStatus(Strict):
    status: Literal["online", "draining", "maintenance"]
    reason: Name = ""


class DeviceInfo(Strict):
    """What a worker tells of a device: its limits, and the model of its cost in device seconds.

    Cost of a program run with s shots on n qubits and g gates: `program_s + s * shot_s + g * base^n * gate_s`, for each row.
    """

    max_qubits: int
    max_shots: int | None = None
    exact: bool = False
    simulated: bool = True
    chip: bool = False
    """Its calibration is a chip file, which an administrator may set."""
    description: str = ""
    program_s: float = 0.0
    shot_s: float = 0.0
    gate_s: float = 0.0
    base: float = 2.0
    max_rows: int | None = None
    """Circuits that one job may hold."""
    lease_s: float | None = None
    """Device seconds to give out in one lease, where that is not the service's `lease_budget_s`."""


class CalibrationChoice(Strict):
    """A device's new calibration: a chip file (`qpeft` chip JSON), or the id of one that the device had before."""

    chip: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


class CalibrationRequest(Strict):
    device: Device
    id: Annotated[str, Meta(max_length=64)]


class Calibration(Strict):
    device: Device
    id: Annotated[str, Meta(max_length=64)]
    data: bytes


class HelloRequest(Strict):
    """A worker's first words. With `takes_over` it stands in for the user's earlier workers of its name, whose jobs go back to
    the queue at once."""

    name: Name
    devices: Annotated[list[Device], Meta(min_length=1, max_length=64)]
    takes_over: bool = False
    info: dict[str, DeviceInfo] = {}
    calibrations: list[Calibration] = []


class LeaseRequest(Strict):
    worker: Annotated[str, Meta(max_length=32)]
    devices: Annotated[list[Device], Meta(min_length=1, max_length=64)]
    holding: list[tuple[int, int]] = []
    max_jobs: Annotated[int, Meta(ge=1, le=4096)] = 256
    wait_s: Annotated[float, Meta(ge=0, le=60)] = 0.0


class HeartbeatRequest(Strict):
    worker: Annotated[str, Meta(max_length=32)]
    holding: list[tuple[int, int]] = []


class LeasedJob(Strict):
    seq: int
    attempt: int
    owner: str
    program: str
    params: bytes
    rows: int
    shots: int | None
    seed: int | None
    output: Output
    observables: bytes | None
    exclusive: bool
    estimate_s: float


class VendorMember(Strict):
    """A leased job that is part of a vendor's task already; `position` is its first program there."""

    seq: int
    task: str
    position: int


class VendorIntent(Strict):
    """What a worker is about to send to a vendor: `members` are `(seq, attempt, rows)` in the order of the programs. `task` is a
    new random name, so that the same intent may be told again."""

    worker: Annotated[str, Meta(max_length=32)]
    task: Annotated[str, Meta(pattern=r"^t[0-9a-z]{26}$")]
    device: Device
    shots: Shots
    members: Annotated[list[tuple[int, int, int]], Meta(min_length=1, max_length=4096)]
    calibration: Calibration | None = None


class VendorNews(Strict):
    """What became of it: `state` "sent" with the vendor's id, "refused" (it cost nothing), or still "intent", with the reason."""

    task: Annotated[str, Meta(max_length=32)]
    state: Literal["intent", "sent", "refused"]
    vendor_job: Annotated[str, Meta(max_length=200)] = ""
    reason: Annotated[str, Meta(max_length=4000)] = ""


class VendorLook(Strict):
    task: Annotated[str, Meta(max_length=32)]


class VendorTask(Strict):
    """`wanted` is False when all its jobs are cancelled."""

    task: str
    state: str
    vendor_job: str
    wanted: bool


class VendorResolution(Strict):
    """What an administrator found out at the vendor's: its id of the task, or null when it never arrived."""

    vendor_job: Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] | None


class LeasedProgram(Strict):
    format: str
    text: bytes


class LeaseAnswer(Strict):
    device: str | None
    jobs: list[LeasedJob]
    programs: dict[str, LeasedProgram]
    drop: list[int]
    vendor: list[VendorMember] = []
    calibration: str | None = None
    """What to run these jobs under; None is the worker's own."""


class EndedJob(Strict):
    seq: int
    attempt: int
    device_s: Annotated[float, Meta(ge=0, le=1e9)]
    payload: bytes | None = None
    reason: Annotated[str, Meta(max_length=4000)] = ""
    calibration: Annotated[str, Meta(max_length=64)] | None = None
    released: bool = False


class CompleteRequest(Strict):
    """Jobs of one device; `estimate_s` is what they were estimated at, so that the service learns what they cost."""

    worker: Annotated[str, Meta(max_length=32)]
    device: Device
    estimate_s: float
    jobs: list[EndedJob]


class Result(Strict):
    """A stored result: `counts` one mapping a row (outcome, qubit 0 leftmost), or `data` float64 `(rows, columns)`.

    `qubits`: on a chip, where each qubit of the circuit was measured. `tenants`: how many circuits shared the chip with it.
    """

    kind: Output
    counts: list[dict[str, int]] | None = None
    columns: int = 0
    data: bytes = b""
    qubits: tuple[int, ...] | None = None
    tenants: int = 1

    def public(self) -> dict[str, Any]:
        """`{"counts": [...]}` or `{"expectations" | "probabilities": [[...], ...]}`."""
        chip = {} if self.qubits is None else {"qubits": self.qubits, "tenants": self.tenants}
        if self.counts is not None:
            return {"counts": self.counts, **chip}
        values = memoryview(self.data).cast("d").tolist()
        rows = [values[i : i + self.columns] for i in range(0, len(values), self.columns)] if self.columns else []
        return {self.kind: rows, **chip}


pack = msgspec.msgpack.Encoder().encode
unpack_result = msgspec.msgpack.Decoder(Result).decode
