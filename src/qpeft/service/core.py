"""The service without HTTP: its parts put together, and its regular chores."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from qpeft.errors import ServiceError
from qpeft.service import metrics
from qpeft.service.clock import Clock
from qpeft.service.scheduling.admission import Admission
from qpeft.service.scheduling.devices import DeviceCatalog
from qpeft.service.settings import Settings
from qpeft.service.store import admin, leases, lifecycle
from qpeft.service.store.changes import EVERYTHING, LOST_POLL_S, ChangeHub, Listener
from qpeft.service.store.database import SERVER, Database
from qpeft.service.store.queries import Queries
from qpeft.service.store.schema import Row
from qpeft.service.store.writer import Writer
from qpeft.service.vendor import tasks as vendor_tasks
from qpeft.service.webhooks import Deliverer

log = logging.getLogger("qpeft.service")
T = TypeVar("T")
CHORES_S, DAY_S = 1.0, 86400.0
PART_S = 0.01  # of the writer's time for deleting old jobs, at once
GRACE_S = 4.0  # twice a worker's time between two signs of life


class Service:
    """Everything one API process has. `start()` inside its loop, `close()` at the end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = Clock()
        self.database = Database(settings.database_url, SERVER)
        self.database.migrate()
        self.hub = ChangeHub()
        self.writer = Writer(self.database, self.clock, self._changed)
        self.queries = Queries(self.database.reader)
        self.catalog = DeviceCatalog()
        self.admission = Admission(settings, self.catalog)
        self.submit = lifecycle.SubmitJobs(settings)
        self.hello = leases.RegisterWorkers(settings)
        self.lease = leases.LeaseJobs(settings, self.catalog.lease_budget_s)
        self.record_intent = vendor_tasks.RecordIntent(settings)
        self.complete = leases.CompleteJobs(settings)
        self._expire_lease = leases.ExpireLease(settings)
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="qpeft-read")
        self._text_threads = ThreadPoolExecutor(2, thread_name_prefix="qpeft-text")
        self._reading: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._beats: dict[str, tuple[int, float]] = {}
        self._chores: list[asyncio.Task[None]] = []
        self._listener: Listener | None = None
        self._part, self._checkpointed = 64, 0
        self._webhooks = Deliverer(settings, self.queries, self.writer)
        self._looking, self._looked_at, self._measured_at = asyncio.Lock(), 0.0, 0.0
        self._readiness: dict[str, int] | ServiceError = {}
        self._counted = (0, 0)
        self.stopping = self.draining = False
        self._doubted_at: float | None = None
        if self.database.sqlite:  # what is made while the machine's clock is behind must not look old later
            self.clock.not_before(self.queries.clock_seen())
        self.writer.call_sync(admin.start, settings.devices)
        self.load_devices()

    def _hearing(self, connected: bool) -> None:
        """Called by the listener's thread: while it hears nothing, waits look for themselves."""
        self.hub.poll_s = None if connected else LOST_POLL_S

    def _changed(self, names: Set[str]) -> None:
        """Called by the writer's and the listener's threads, which must not wait for a connection of the readers."""
        if "devices" in names or EVERYTHING in names:
            with contextlib.suppress(RuntimeError):  # the service is closing
                self._threads.submit(self.load_devices)
        self.hub.changed(names)

    def load_devices(self) -> None:
        """Reload the workers' reports on their devices."""
        for row in self.queries.devices():
            self.catalog.load(row.id, row.info)

    def start(self) -> None:
        """Begin the chores; called inside the loop."""
        self.hub.loop = asyncio.get_running_loop()
        if not self.database.sqlite:
            self._listener = Listener(self.database.writer, self.writer.name, self._changed, self._hearing)
        self._chores = [
            asyncio.create_task(self._repeat(chore)) for chore in (self._watch, self._purge, self._checkpoint, self._webhooks.run)
        ]

    async def stop(self) -> None:
        """End the chores, and tell everything that waits to end."""
        self.stopping = True
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        await self._webhooks.close()

    def close(self) -> None:
        """Write what waits and close the database."""
        if self._listener is not None:
            self._listener.close()
        self.writer.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._text_threads.shutdown(wait=False, cancel_futures=True)
        self.admission.programs.close()
        self.database.dispose()

    async def ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """Run a question of queries.py on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, question, *arguments)

    async def admit(self, owner: str, build: Callable[..., T], *arguments: Any, text: bool) -> T:
        """Build a submission outside of the event loop.

        Args:
            owner: id of the user.
            build: a method of `Admission`.
            *arguments: its arguments after the owner.
            text: the request has text to read. Such requests have threads of their own, one request per user at a time.
        """
        if not text:
            return await self.ask(build, owner, *arguments)
        lock = self._reading.setdefault(owner, asyncio.Lock())
        async with lock:
            return await asyncio.get_running_loop().run_in_executor(self._text_threads, build, owner, *arguments)

    async def ready(self) -> dict[str, int]:
        """Workers by device, when jobs can be stored and run; ServiceError 503 says what is missing. Looked at once a second."""
        async with self._looking:
            if time.monotonic() - self._looked_at > 1.0:
                self._readiness = await self._look()
                self._looked_at = time.monotonic()
        if isinstance(self._readiness, ServiceError):
            raise self._readiness
        return self._readiness

    async def _look(self) -> dict[str, int] | ServiceError:
        if self.database.sqlite:
            free = shutil.disk_usage(self.settings.data_dir).free
            if free < self.settings.min_free_bytes:
                return ServiceError("the disk is full", status=503, code="disk", value=free, bound=self.settings.min_free_bytes)
        try:
            await self.writer.call(admin.probe, None)
            alive = await self.ask(self.queries.alive_workers)
        except ServiceError as error:
            return error
        workers = {name: sum(name in row.devices.split("\n") for row in alive) for name in self.settings.devices}
        missing = [name for name, count in workers.items() if not count]
        if missing and self.settings.executors:
            return ServiceError("no worker yet", status=503, code="no_workers", value=", ".join(missing), retry_after_s=1)
        return workers

    async def refresh_metrics(self) -> None:
        """Update the gauges, at most once a second, because `/metrics` needs no key."""
        async with self._looking:
            if time.monotonic() - self._measured_at < 1.0:
                return
            self._measured_at = time.monotonic()
            for row in await self.ask(self.queries.devices):
                metrics.QUEUED.labels(row.id).set(row.queued)
            alive = await self.ask(self.queries.alive_workers)
            for name in self.settings.devices:
                metrics.WORKERS.labels(name).set(sum(name in row.devices.split("\n") for row in alive))
            metrics.VENDOR_UNRESOLVED.set(await self.ask(self.queries.unresolved_vendor_tasks))
            groups, calls = self.writer.groups, self.writer.calls
            metrics.COMMITS.inc(groups - self._counted[0])
            metrics.WRITES.inc(calls - self._counted[1])
            self._counted = groups, calls

    async def _repeat(self, chore: Callable[[], Awaitable[float]]) -> None:
        """Run `chore` for ever; it returns the seconds to its next run."""
        while True:
            pause_s = CHORES_S
            try:
                pause_s = await chore()
            except ServiceError as error:
                log.warning("%s: %s", chore.__name__.strip("_"), error)
            except Exception:
                log.exception("%s failed", chore.__name__.strip("_"))
            await asyncio.sleep(pause_s)

    async def _watch(self) -> float:
        """Give up silent workers and end jobs that waited too long."""
        await self.writer.call(lifecycle.expire, None)
        for worker, beats in self._silent(await self.ask(self.queries.alive_workers)):
            n = await self.writer.call(self._expire_lease, (worker, beats))
            log.warning("worker %s was not heard of for %.0f s: %d jobs go back", worker, self.settings.lease_s, n)
        if not self.database.sqlite:
            await self.ask(self.load_devices)
        return CHORES_S

    async def _purge(self) -> float:
        """Delete a part of what is older than the retention; returns seconds to the next part.

        A part takes about `PART_S` seconds, which others wait for, and there is a pause as long.
        """
        if (doubt := await self._doubtful_clock()) is not None:
            log.error("nothing is deleted: %s", doubt)
            return 600.0
        start, wall = time.monotonic(), self.writer.now
        old, keys = (wall - days * DAY_S for days in (self.settings.retention_days, self.settings.idempotency_days))
        purged = await self.writer.call(admin.purge, admin.Purge(old, keys, self._part))
        took_s = time.monotonic() - start
        self._part = min(max(int(self._part * PART_S / max(took_s, 1e-3)), self._part // 2, 16), 2 * self._part, 2000)
        return max(took_s, 0.01) if purged else 60.0

    async def _checkpoint(self) -> float:
        """Move SQLite's log into its file on another thread, so that a commit seldom has to."""
        if self.database.sqlite and self.writer.groups != self._checkpointed:
            self._checkpointed = self.writer.groups
            await self.ask(self.database.checkpoint)
        return CHORES_S

    async def _doubtful_clock(self) -> str | None:
        """Why the time cannot be trusted with deleting: it is far from the time that was seen last, or was set since the start.

        The time that was seen last is in the database. A time more than two days from it is believed after a day in one process.
        """
        now, seen = time.time() if self.database.sqlite else self.writer.now, await self.ask(self.queries.clock_seen)
        if seen and abs(now - seen) > 2 * DAY_S:
            self._doubted_at = time.monotonic() if self._doubted_at is None else self._doubted_at
            if time.monotonic() - self._doubted_at < DAY_S:
                return f"the clock is {(now - seen) / DAY_S:.1f} days from when the service last ran; deleting starts in a day"
        self._doubted_at = None
        if abs(now - seen) > CHORES_S:
            await self.writer.call(admin.note_clock, now)
        if abs(time.time() - self.clock.now()) > 3600:
            return "the machine's clock was set by more than an hour since this process started; restart it"
        return None

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
