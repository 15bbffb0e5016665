"""The store with all its operations, driven without HTTP: what the property tests talk to."""

from __future__ import annotations

import numpy as np

from qpeft.service.clock import Clock
from qpeft.service.ids import new_id, new_key
from qpeft.service.scheduling.submission import JobSpec, StoredProgram, SubmissionRequest
from qpeft.service.settings import Settings
from qpeft.service.store import admin, leases, lifecycle
from qpeft.service.store.database import Database
from qpeft.service.store.queries import Queries
from qpeft.service.store.writer import Writer

PROGRAM = StoredProgram("0" * 64, "qpeft.circuit", b"{}", 1, 1, 0)


class Engine:
    def __init__(self, database: Database, clock: Clock, **settings: object) -> None:
        self.settings = Settings(**settings)  # type: ignore[arg-type]
        self.database, self.clock = database, clock
        self.writer, self.queries = Writer(database, clock), Queries(database.reader)
        self.submit_operation = lifecycle.SubmitJobs(self.settings)
        self.hello_operation = leases.RegisterWorkers(self.settings)
        self.lease_operation = leases.LeaseJobs(self.settings)
        self.complete_operation = leases.CompleteJobs(self.settings)
        self.expire_lease_operation = leases.ExpireLease(self.settings)
        self.writer.call_sync(admin.start, ("simulator", "other"))

    def user(self, name: str, **limits: object) -> str:
        _, prefix, digest = new_key()
        arguments = admin.NewKey("test", prefix, digest, name, ("submit", "read"), **limits)  # type: ignore[arg-type]
        return self._value(self.writer.call_sync(admin.create_key, arguments))

    @staticmethod
    def _value(outcome: object) -> object:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def submission(
        self, owner: str, *, kind: str = "job", n: int = 1, rows: int = 1, estimate_s: float = 0.01, device: str = "simulator",
        key: str | None = None, digest: bytes = b"", expires_s: float | None = None,
    ) -> SubmissionRequest:  # fmt: skip
        params = np.zeros((rows, 1)).tobytes()
        target = new_id("j" if kind == "job" else "b")
        items = tuple(
            JobSpec(target if kind == "job" else new_id("j"), PROGRAM.hash, params, rows, 100, None, "counts", None, estimate_s)
            for _ in range(n)
        )
        return SubmissionRequest(target, kind, owner, device, items, (PROGRAM,), key=key, digest=digest, expires_s=expires_s)

    def submit(self, submission: SubmissionRequest) -> lifecycle.Receipt:
        return self._value(self.writer.call_sync(self.submit_operation, submission))  # type: ignore[return-value]

    def hello(self, owner: str, devices: tuple[str, ...] = ("simulator",), name: str | None = None) -> str:
        worker = new_id("w")
        self.writer.call_sync(
            self.hello_operation, leases.Hello(worker, owner, name or worker, devices, takes_over=name is not None)
        )
        return worker

    def lease(self, worker: str, owner: str, holding: tuple[tuple[int, int], ...] = (), max_jobs: int = 64,
              devices: tuple[str, ...] = ("simulator",), interactive: bool = False) -> leases.Lease:  # fmt: skip
        request = leases.LeaseCommand(worker, owner, devices, holding, max_jobs, interactive)
        return self._value(self.writer.call_sync(self.lease_operation, request))  # type: ignore[return-value]

    def complete(self, worker: str, owner: str, endings: list[leases.JobOutcome]) -> list[bool]:
        completion = leases.CompletionCommand(worker, owner, tuple(endings))
        return self._value(self.writer.call_sync(self.complete_operation, completion))  # type: ignore[return-value]

    def lose(self, worker: str) -> int:
        beats = {row.id: row.beats for row in self.queries.alive_workers()}
        return self.writer.call_sync(self.expire_lease_operation, (worker, beats.get(worker, -1)))

    def cancel(self, kind: str, target: str, owner: str) -> int:
        return self._value(self.writer.call_sync(lifecycle.cancel, lifecycle.Target(kind, target, owner)))  # type: ignore[return-value]

    def delete(self, kind: str, target: str, owner: str) -> int:
        return self._value(self.writer.call_sync(lifecycle.delete, lifecycle.Target(kind, target, owner)))  # type: ignore[return-value]

    def close(self) -> None:
        self.writer.close()
        self.database.dispose()
