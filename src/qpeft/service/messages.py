"""Bodies of requests and results, as typed structures in JSON; what workers exchange with the service is in workers/messages.py.

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
Device: TypeAlias = Annotated[str, Meta(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
Text: TypeAlias = Annotated[str, Meta(pattern=r"^[^\x00]*$")]
Shots: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Seed: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Priority: TypeAlias = Literal["high", "normal", "low"]
Lifetime: TypeAlias = Annotated[float, Meta(gt=0, le=30 * 86400)]
Term: TypeAlias = tuple[float, list[tuple[Annotated[int, Meta(ge=0, le=4095)], Literal["X", "Y", "Z"]]]]


PRIORITIES: dict[str, int] = {"high": -1, "normal": 0, "low": 1}
"""As they are stored: the lower goes first among one user's jobs."""
CIRCUIT, MEASURED, QASM, ORIGINIR = "qpeft.circuit", "qpeft.measured", "openqasm", "originir"
"""Formats of a stored program."""


class Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request. Unknown fields are refused."""


class CircuitSource(Strict):
    """A circuit in one of three forms: `circuit` (qpeft's JSON), `qasm` or `originir` (text)."""

    circuit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    qasm: Text | None = None
    originir: Text | None = None


class JobRequest(CircuitSource, kw_only=True):
    """One circuit, run once for its `params`; with `shots` null the outcome is exact, on devices that can.

    `observables`, for `output: "expectations"`: each a list of `[coefficient, [[qubit, "X" | "Y" | "Z"], ...]]`; default Z of
    every qubit. `expires_s`: seconds it may wait in the queue. `exclusive`: never on a chip together with others' circuits.
    `priority`: its place among your own waiting jobs; others' are not affected.
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
    priority: Priority = "normal"


class BatchItem(CircuitSource, kw_only=True):
    """One circuit of a batch. Fields that are left out have the batch's values."""

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
    priority: Priority = "normal"


class SweepRequest(CircuitSource, kw_only=True):
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
    priority: Priority = "normal"


class Bounds(Strict):
    """A user's bounds; null leaves one as it is, or the service's own for a new user.

    `weight` is the user's share of a device, 1 by default. `max_vendor_shots` are shots on devices that cost money, ever.
    `max_day_circuits` and `max_day_shots` are what may be submitted on one day (UTC).
    """

    weight: Annotated[float, Meta(gt=0, le=1000)] | None = None
    max_open_circuits: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    max_stored_bytes: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    max_vendor_shots: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    max_day_circuits: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    max_day_shots: Annotated[int, Meta(ge=0, le=2**53)] | None = None


class KeyRequest(Bounds, kw_only=True):
    """A key for a user, who is made when there is none of that name. It is refused after `expires_s` seconds (null: never)."""

    user: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
    scopes: Annotated[list[Literal["submit", "read", "admin", "worker"]], Meta(min_length=1, max_length=4)]
    expires_s: Annotated[float, Meta(gt=0, le=3660 * 86400)] | None = None


class UserRequest(Bounds, kw_only=True):
    """A change of a user. A disabled user's keys and sessions are refused; what he has queued still runs.

    `reset` names bounds that go back to the service's own.
    """

    disabled: bool | None = None
    reset: list[Literal["max_open_circuits", "max_day_circuits", "max_day_shots", "max_stored_bytes", "max_vendor_shots"]] = []


class IdentityRequest(Strict):
    """Who a user is at an OpenID provider: the claims `iss` and `sub` of its tokens."""

    issuer: Annotated[str, Meta(min_length=1, max_length=400, pattern=r"^[\x21-\x7e]*$")]
    subject: Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[\x20-\x7e]*$")]


class KeyRotation(Strict):
    """A key's replacement: the old one still works for `grace_s` seconds."""

    grace_s: Annotated[float, Meta(ge=0, le=90 * 86400)] = 86400.0


class DeviceAccess(Strict):
    """Who may use a device: these users and no others, or everybody (null)."""

    users: (
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]], Meta(max_length=1000)]
        | None
    )


class ReservationRequest(Strict, kw_only=True):
    """A device for one user: from `starts_in_s` seconds from now on, for `duration_s` seconds."""

    user: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
    starts_in_s: Annotated[float, Meta(ge=0, le=366 * 86400)] = 0.0
    duration_s: Annotated[float, Meta(gt=0, le=31 * 86400)]
    note: Name = ""


class WebhookRequest(Strict):
    """An address that is told when your jobs end."""

    url: Annotated[str, Meta(min_length=1, max_length=1000, pattern=r"^[\x21-\x7e]*$")]


class DeviceStatus(Strict):
    """A device's state, and the reason that users see."""

    status: Literal["online", "draining", "maintenance"]
    reason: Name = ""


class CalibrationChoice(Strict):
    """A device's new calibration: a chip file (`qpeft` chip JSON), or the id of one that the device had before."""

    chip: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


class VendorResolution(Strict):
    """An administrator's finding about a vendor task: the vendor's id, or null if the task never arrived."""

    vendor_job: Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] | None


def result_bytes(output: str, rows: int, n_qubits: int, shots: int | None, n_observables: int | None) -> int:
    """Bytes that the result of one job takes at most.

    Args:
        output: "counts", "probabilities" or "expectations".
        rows: rows of parameters of the job.
        n_qubits: qubits whose outcomes are in the result.
        shots: repetitions of each row; None for exact outcomes.
        n_observables: number of observables; None for one per qubit.
    """
    if output == "expectations":
        return 8 * rows * (n_qubits if n_observables is None else n_observables)
    outcomes: int = 2 ** min(n_qubits, 62)
    if output == "probabilities":
        return 8 * rows * outcomes
    return rows * min(outcomes, shots or 1) * (n_qubits + 8)


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
