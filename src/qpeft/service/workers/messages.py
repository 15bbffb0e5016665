"""The worker protocol: what workers and the service send each other, as MessagePack."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from qpeft.service.messages import Device, Name, Output, Shots, Strict


class DeviceInfo(Strict):
    """A worker's report on a device: limits, and the model of its cost in device seconds.

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
    """Bound on the number of circuits in one job."""
    lease_s: float | None = None
    """Device seconds to give out in one lease, where that is not the service's `lease_budget_s`."""


class CalibrationRequest(Strict):
    """A worker asks for a calibration that it has to run under."""

    device: Device
    id: Annotated[str, Meta(max_length=64)]


class Calibration(Strict):
    """A device's calibration: its id and its JSON."""

    device: Device
    id: Annotated[str, Meta(max_length=64)]
    data: bytes


class HelloRequest(Strict):
    """A worker's first words. With `takes_over` it stands in for the user's earlier workers of its name, whose jobs go back to
    the queue at once."""

    name: Name
    devices: Annotated[list[Device], Meta(min_length=1, max_length=64)]
    takes_over: bool = False
    info: dict[str, DeviceInfo] = field(default_factory=dict)
    calibrations: list[Calibration] = field(default_factory=list)


class HelloAnswer(Strict):
    """The worker's id from now on, and the bounds that it keeps: seconds of silence, bytes of a result, seconds of a job."""

    worker: str
    lease_s: float
    max_result_bytes: int
    max_job_s: float


class LeaseRequest(Strict, omit_defaults=True):
    """A worker asks for jobs and lists its leased jobs as `(seq, attempt)`; the answer may take `wait_s` seconds.

    With `interactive` it has a long job to run and takes only jobs of the interactive lane in addition.
    """

    worker: Annotated[str, Meta(max_length=32)]
    devices: Annotated[list[Device], Meta(min_length=1, max_length=64)]
    holding: list[tuple[int, int]] = field(default_factory=list)
    max_jobs: Annotated[int, Meta(ge=1, le=4096)] = 256
    wait_s: Annotated[float, Meta(ge=0, le=60)] = 0.0
    interactive: bool = False


class HeartbeatRequest(Strict):
    """A sign of life, with what the worker holds, and the chip's qubits that each running job occupies."""

    worker: Annotated[str, Meta(max_length=32)]
    holding: list[tuple[int, int]] = field(default_factory=list)
    places: Annotated[list[tuple[int, Annotated[list[int], Meta(max_length=4096)]]], Meta(max_length=256)] = field(
        default_factory=list
    )


class LeasedJob(Strict):
    """A job as a worker gets it. `params` is `(rows, n_params)` little-endian float64."""

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
    """Announcement of a task before it is sent to a vendor.

    `members` are `(seq, attempt, rows)` in the order of the programs.
    `task` is a new random name, so a repeated announcement is recognised.
    """

    worker: Annotated[str, Meta(max_length=32)]
    task: Annotated[str, Meta(pattern=r"^t[0-9a-z]{26}$")]
    device: Device
    shots: Shots
    members: Annotated[list[tuple[int, int, int]], Meta(min_length=1, max_length=4096)]
    calibration: Calibration | None = None


class VendorUpdate(Strict):
    """State of a vendor task: "sent" with the vendor's id, "refused" (it cost nothing), or "intent" (unknown) with the reason."""

    task: Annotated[str, Meta(max_length=32)]
    state: Literal["intent", "sent", "refused"]
    vendor_job: Annotated[str, Meta(max_length=200)] = ""
    reason: Annotated[str, Meta(max_length=4000)] = ""


class VendorTaskQuery(Strict):
    """Query for the state of a vendor task."""

    task: Annotated[str, Meta(max_length=32)]


class VendorTask(Strict):
    """`wanted` is False when all its jobs are cancelled."""

    task: str
    state: str
    vendor_job: str
    wanted: bool


class LeasedProgram(Strict):
    """A program in its stored form."""

    format: str
    text: bytes


class LeaseAnswer(Strict):
    """Jobs of one device with their programs; `drop` are held jobs to stop."""

    device: str | None
    jobs: list[LeasedJob]
    programs: dict[str, LeasedProgram]
    drop: list[int]
    vendor: list[VendorMember] = field(default_factory=list)
    calibration: str | None = None
    """Calibration for these jobs; None is the worker's own."""


class FinishedJob(Strict, omit_defaults=True):
    """Outcome of a job: `payload` is its result. Without payload it failed for `reason`, returns to the queue (`released`), or
    waits for an administrator's word about its vendor's task (`parked`). `slow`: it returns to the bulk lane, since it takes longer
    than `device_s`, which is more than an interactive job may."""

    seq: int
    attempt: int
    device_s: Annotated[float, Meta(ge=0, le=1e9)]
    payload: bytes | None = None
    reason: Annotated[str, Meta(max_length=4000)] = ""
    calibration: Annotated[str, Meta(max_length=64)] | None = None
    released: bool = False
    parked: bool = False
    slow: bool = False


class CompleteRequest(Strict):
    """Jobs of one device; `estimate_s` is what they were estimated at, so that the service learns what they cost."""

    worker: Annotated[str, Meta(max_length=32)]
    device: Device
    estimate_s: float
    jobs: list[FinishedJob]
