"""The store with all its operations, driven without HTTP: what the property tests talk to."""

from __future__ import annotations

import numpy as np

from qpeft.service import admin, leases, store
from qpeft.service.clock import Clock
from qpeft.service.database import Database
from qpeft.service.ids import new_id, new_key
from qpeft.service.reads import Reads
from qpeft.service.settings import Settings
from qpeft.service.writer import Writer

PROGRAM = store.Program("0" * 64, "qpeft.circuit", b"{}", 1, 1, 0)


class Engine:
    def __init__(self, database: Database, clock: Clock, **settings: object) -> None:
        self.settings = Settings(**settings)  # type: ignore[arg-type]
        self.database, self.clock = database, clock
        self.writer, self.reads = Writer(database, clock), Reads(database.reader)
        self.submit_operation = store.Submit(self.settings)
        self.hello_operation = leases.Register(self.settings)
        self.lease_operation = leases.LeaseJobs(self.settings)
        self.complete_operation = leases.Complete(self.settings)
        self.lose_operation = leases.Lose(self.settings)
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
        key: str | None = None, digest: bytes = b"", expires_at: float | None = None,
    ) -> store.Submission:  # fmt: skip
        params = np.zeros((rows, 1)).tobytes()
        target = new_id("j" if kind == "job" else "b")
        items = tuple(
            store.Item(target if kind == "job" else new_id("j"), PROGRAM.hash, params, rows, 100, None, "counts", None, estimate_s)
            for _ in range(n)
        )
        return store.Submission(target, kind, owner, device, items, (PROGRAM,), key=key, digest=digest, expires_at=expires_at)

    def submit(self, submission: store.Submission) -> store.Receipt:
        return self._value(self.writer.call_sync(self.submit_operation, submission))  # type: ignore[return-value]

    def hello(self, owner: str, devices: tuple[str, ...] = ("simulator",), name: str | None = None) -> str:
        worker = new_id("w")
        self.writer.call_sync(
            self.hello_operation, leases.Hello(worker, owner, name or worker, devices, takes_over=name is not None)
        )
        return worker

    def lease(self, worker: str, owner: str, holding: tuple[tuple[int, int], ...] = (), max_jobs: int = 64,
              devices: tuple[str, ...] = ("simulator",)) -> leases.Lease:  # fmt: skip
        request = leases.LeaseRequest(worker, owner, devices, holding, max_jobs)
        return self._value(self.writer.call_sync(self.lease_operation, request))  # type: ignore[return-value]

    def complete(self, worker: str, owner: str, endings: list[leases.Ending]) -> list[bool]:
        completion = leases.Completion(worker, owner, tuple(endings))
        return self._value(self.writer.call_sync(self.complete_operation, completion))  # type: ignore[return-value]

    def lose(self, worker: str) -> int:
        beats = {row.id: row.beats for row in self.reads.alive_workers()}
        return self.writer.call_sync(self.lose_operation, (worker, beats.get(worker, -1)))

    def cancel(self, kind: str, target: str, owner: str) -> int:
        return self._value(self.writer.call_sync(store.cancel, store.Target(kind, target, owner)))  # type: ignore[return-value]

    def delete(self, kind: str, target: str, owner: str) -> int:
        return self._value(self.writer.call_sync(store.delete, store.Target(kind, target, owner)))  # type: ignore[return-value]

    def close(self) -> None:
        self.writer.close()
        self.database.dispose()
