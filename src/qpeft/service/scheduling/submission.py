"""A checked request with its cost estimate: plain data that the API builds and the store keeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StoredProgram:
    """A program as the database keeps it; `hash` is that of what the user sent."""

    hash: str
    format: str
    text: bytes
    n_qubits: int
    n_params: int
    n_ops: int


@dataclass(frozen=True)
class JobSpec:
    """One job of a submission; `params` is `(rows, n_params)` little-endian float64."""

    id: str
    program: str
    params: bytes
    rows: int
    shots: int | None
    seed: int | None
    output: str
    observables: bytes | None
    estimate_s: float
    name: str = ""


@dataclass(frozen=True)
class SubmissionRequest:
    """One request for circuits. `kind` is "job" (one item, whose id it has), "batch" or "sweep"."""

    id: str
    kind: str
    owner: str
    device: str
    items: tuple[JobSpec, ...]
    programs: tuple[StoredProgram, ...]
    name: str = ""
    exclusive: bool = False
    expires_s: float | None = None
    """Seconds that it may wait in the queue, from when it is stored."""
    key: str | None = None
    digest: bytes = b""
    priority: int = 0
    """Among the user's own jobs: the lower goes first."""

    @property
    def circuits(self) -> int:
        """Rows of all jobs together: what counts against the quota of open circuits."""
        return sum(item.rows for item in self.items)

    @property
    def shots(self) -> int:
        """Shots of all rows of all jobs together: what a vendor charges for."""
        return sum(item.rows * (item.shots or 0) for item in self.items)

    @property
    def bytes(self) -> int:
        """Bytes of parameters: what counts against the quota of stored bytes until results come."""
        return sum(len(item.params) for item in self.items)
