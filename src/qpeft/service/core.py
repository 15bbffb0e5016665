"""The service without HTTP: its parts put together, requests turned into submissions, and its regular chores."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
import numpy as np

from qpeft.errors import ServiceError
from qpeft.service import admin, leases, store, vendor_tasks
from qpeft.service.clock import Clock
from qpeft.service.database import Database
from qpeft.service.devices import DeviceBook
from qpeft.service.hub import Hub
from qpeft.service.ids import new_id
from qpeft.service.programs import Programs
from qpeft.service.reads import Reads
from qpeft.service.schema import Row
from qpeft.service.settings import Settings
from qpeft.service.wire import BatchRequest, JobRequest, SweepRequest
from qpeft.service.writer import Writer

log = logging.getLogger("qpeft.service")
T = TypeVar("T")
CHORES_S = 1.0
GRACE_S = 4.0  # twice a worker's time between two signs of life


class Service:
    """Everything one API process has. `start()` inside its loop, `close()` at the end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = Clock()
        self.database = Database(settings.database_url)
        self.database.migrate()
        self.hub = Hub(None if self.database.sqlite else 0.25)
        self.writer = Writer(self.database, self.clock, self._changed)
        self.reads = Reads(self.database.reader)
        self.programs = Programs(settings)
        self.book = DeviceBook()
        self.submit = store.Submit(settings)
        self.hello = leases.Register(settings)
        self.lease = leases.LeaseJobs(settings, self.book.lease_budget_s)
        self.intend = vendor_tasks.Intend(settings)
        self.complete = leases.Complete(settings)
        self.purge = admin.PurgeOld(self.submit.known)
        self._lose = leases.Lose(settings)
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="qpeft-read")
        self._beats: dict[str, tuple[int, float]] = {}
        self._chores: asyncio.Task[None] | None = None
        self._purged_at = 0.0
        self.stopping = False
        self.writer.call_sync(admin.start, settings.devices)
        self.load_devices()

    def _changed(self, names: set[str]) -> None:
        if "devices" in names:
            self.load_devices()
        self.hub.changed(names)

    def load_devices(self) -> None:
        for row in self.reads.devices():
            self.book.load(row.id, row.info)

    def start(self) -> None:
        self.hub.loop = asyncio.get_running_loop()
        self._chores = asyncio.create_task(self._run_chores())

    async def stop(self) -> None:
        self.stopping = True
        if self._chores is not None:
            self._chores.cancel()
            await asyncio.gather(self._chores, return_exceptions=True)

    def close(self) -> None:
        self.writer.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.database.dispose()

    async def ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """Run a question of reads.py on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, question, *arguments)

    def job(self, owner: str, request: JobRequest, key: str | None, digest: bytes) -> store.Submission:
        program = self.programs.read(request)
        params = _params([request.params], program)
        target = new_id("j")
        item = self._item(request, program, params, 1, request.shots, request.seed, _observables(request, self.settings), target)
        return self._submission(owner, "job", target, request, (item,), (program,), key, digest)

    def batch(self, owner: str, request: BatchRequest, key: str | None, digest: bytes) -> store.Submission:
        self._check_rows(len(request.circuits))
        observables = _observables(request, self.settings)
        programs: dict[str, store.Program] = {}
        items = []
        for number, one in enumerate(request.circuits):
            try:
                program = self.programs.read(one)
                programs[program.hash] = program
                params = _params([one.params], program)
                shots = request.shots if one.shots is None else one.shots
                seed = one.seed if one.seed is not None or request.seed is None else (request.seed + number) % 2**63
                item = self._item(request, program, params, 1, shots, seed, observables, new_id("j"), one.name)
            except ServiceError as error:
                error.args = (f"circuit {number}: {error}",)
                raise
            items.append(item)
        return self._submission(owner, "batch", new_id("b"), request, tuple(items), tuple(programs.values()), key, digest)

    def sweep(self, owner: str, request: SweepRequest, matrix: bytes | None, key: str | None, digest: bytes) -> store.Submission:
        """`matrix` is the binary form's float32 part; None when the parameters are in the request."""
        program = self.programs.read(request)
        rows, params = _matrix(request, matrix, program)
        self._check_rows(rows)
        observables = _observables(request, self.settings)
        # each slice has a seed of its own, so that with a seed the cuts must not depend on what the service has learned
        one_s = self.book.estimate(request.device, program, 1, request.shots, learned=request.seed is None)
        most = self.book.rows(request.device, self.settings.slice_rows)
        size = max(1, min(most, int(self.settings.slice_s / one_s) if one_s > 0 else most))
        width = len(params) // rows
        items = []
        for first in range(0, rows, size):
            part = params[first * width : (first + size) * width]
            seed = None if request.seed is None else (request.seed + first) % 2**63
            n = min(size, rows - first)
            items.append(self._item(request, program, part, n, request.shots, seed, observables, new_id("j")))
        return self._submission(owner, "sweep", new_id("b"), request, tuple(items), (program,), key, digest)

    def _check_rows(self, rows: int) -> None:
        if rows > self.settings.max_rows:
            raise ServiceError(
                "too many circuits in one request",
                status=422,
                code="rows",
                value=rows,
                bound=self.settings.max_rows,
                hint="send several",
            )

    def _item(
        self,
        request: JobRequest | BatchRequest | SweepRequest,
        program: store.Program,
        params: bytes,
        rows: int,
        shots: int | None,
        seed: int | None,
        observables: bytes | None,
        target: str,
        name: str | None = None,
    ) -> store.Item:
        self.book.check(request.device, program, shots, request.output, self.settings.max_shots)
        estimate_s = self.book.estimate(request.device, program, rows, shots)
        chosen = request.name if name is None else name
        return store.Item(target, program.hash, params, rows, shots, seed, request.output, observables, estimate_s, chosen)

    def _submission(
        self,
        owner: str,
        kind: str,
        target: str,
        request: JobRequest | BatchRequest | SweepRequest,
        items: tuple[store.Item, ...],
        programs: tuple[store.Program, ...],
        key: str | None,
        digest: bytes,
    ) -> store.Submission:
        expires_at = None if request.expires_s is None else self.clock.now() + request.expires_s
        return store.Submission(
            target, kind, owner, request.device, items, programs, request.name, request.exclusive, expires_at, key, digest
        )

    async def _run_chores(self) -> None:
        while True:
            try:
                await self._chore()
            except asyncio.CancelledError:
                raise
            except ServiceError as error:
                log.warning("chores: %s", error)
            except Exception:
                log.exception("chores failed")
            await asyncio.sleep(CHORES_S)

    async def _chore(self) -> None:
        """Give up silent workers, end jobs that waited too long, delete what is older than the retention."""
        await self.writer.call(store.expire, None)
        for worker, beats in self._silent(await self.ask(self.reads.alive_workers)):
            n = await self.writer.call(self._lose, (worker, beats))
            log.warning("worker %s was not heard of for %.0f s: %d jobs go back", worker, self.settings.lease_s, n)
        if self.hub.poll_s is not None:
            await self.ask(self.load_devices)
        now = time.monotonic()
        if now - self._purged_at > 60 or self._purged_at == 0:
            self._purged_at = now
            days = 86400.0
            old = self.clock.now() - self.settings.retention_days * days
            keys = self.clock.now() - self.settings.idempotency_days * days
            await self.writer.call(self.purge, admin.Purge(old, keys))

    def _silent(self, alive: Sequence[Row]) -> list[tuple[str, int]]:
        """`(worker, beats)` of those not heard of for `lease_s`.

        Silence is measured by this process's monotonic clock. What was written before it started counts too (a service that is
        restarted again and again must not keep dead workers' jobs for ever), but then the worker still has `GRACE_S` to be heard: a
        clock that was set cannot end a living worker's lease.
        """
        now, wall = time.monotonic(), self.clock.now()
        self._beats = {
            row.id: seen if (seen := self._beats.get(row.id)) and seen[0] == row.beats else (row.beats, now) for row in alive
        }
        silent = []
        for row in alive:
            beats, since = self._beats[row.id]
            long_ago = wall - row.seen_at > self.settings.lease_s
            if now - since > (min(GRACE_S, self.settings.lease_s) if long_ago else self.settings.lease_s):
                silent.append((row.id, beats))
        return silent


def body_digest(path: str, body: bytes) -> bytes:
    return hashlib.sha256(path.encode() + b"\0" + body).digest()


def _params(rows: Sequence[Sequence[float]], program: store.Program) -> bytes:
    """`(rows, n_params)` as bytes; refuses wrong lengths and numbers that are not finite."""
    for row in rows:
        if program.n_params is not None and len(row) != program.n_params:
            raise ServiceError("wrong number of parameters", status=422, code="params", value=len(row), bound=program.n_params)
        if not all(map(math.isfinite, row)):
            raise ServiceError("parameters must be finite numbers", status=422, code="params")
    return b"".join(struct.pack(f"<{len(row)}d", *row) for row in rows)


def _matrix(request: SweepRequest, matrix: bytes | None, program: store.Program) -> tuple[int, bytes]:
    if matrix is None:
        if not request.params or request.rows is not None:
            raise ServiceError("a sweep has a matrix of parameters", status=422, code="params", bound="params: [[...], ...]")
        if len({len(row) for row in request.params}) != 1:
            raise ServiceError("rows of different lengths", status=422, code="params")
        return len(request.params), _params(request.params, program)
    if request.params is not None or request.rows is None:
        raise ServiceError("a binary sweep names its rows", status=422, code="params", bound="rows: N, no params")
    width, rest = divmod(len(matrix), 4 * request.rows)
    if rest or program.n_params not in (None, width):
        expected = f"rows x n_params x 4 = {request.rows} x {program.n_params} x 4 bytes"
        raise ServiceError("the matrix has the wrong size", status=422, code="params", value=len(matrix), bound=expected)
    values = np.frombuffer(matrix, "<f4").astype("<f8")
    if not np.isfinite(values).all():
        raise ServiceError("parameters must be finite numbers", status=422, code="params")
    return request.rows, values.tobytes()


def _observables(request: JobRequest | BatchRequest | SweepRequest, settings: Settings) -> bytes | None:
    if request.observables is None:
        return None
    if request.output != "expectations":
        raise ServiceError("observables go with expectations", status=422, code="observables", value=request.output)
    terms = sum(len(observable) for observable in request.observables)
    if not request.observables or terms > settings.max_observables:
        bound = f"1..{settings.max_observables}"
        raise ServiceError("too few or too many terms in observables", status=422, code="observables", value=terms, bound=bound)
    for observable in request.observables:
        for coefficient, word in observable:
            if not math.isfinite(coefficient) or len({qubit for qubit, _ in word}) != len(word):
                raise ServiceError("a Pauli word names each qubit once, with a finite coefficient", status=422, code="observables")
    return msgspec.json.encode(request.observables)
