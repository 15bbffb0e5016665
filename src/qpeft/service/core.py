"""The service without HTTP: its parts put together, and its regular chores."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from qpeft.errors import ServiceError
from qpeft.service.clock import Clock
from qpeft.service.scheduling.admission import Admission
from qpeft.service.scheduling.devices import DeviceCatalog
from qpeft.service.settings import Settings
from qpeft.service.store import admin, leases, lifecycle
from qpeft.service.store.changes import ChangeHub
from qpeft.service.store.database import Database
from qpeft.service.store.queries import Queries
from qpeft.service.store.schema import Row
from qpeft.service.store.writer import Writer
from qpeft.service.vendor import tasks as vendor_tasks

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
        self.hub = ChangeHub(None if self.database.sqlite else 0.25)
        self.writer = Writer(self.database, self.clock, self._changed)
        self.queries = Queries(self.database.reader)
        self.catalog = DeviceCatalog()
        self.admission = Admission(settings, self.catalog, self.clock)
        self.submit = lifecycle.SubmitJobs(settings)
        self.hello = leases.RegisterWorkers(settings)
        self.lease = leases.LeaseJobs(settings, self.catalog.lease_budget_s)
        self.record_intent = vendor_tasks.RecordIntent(settings)
        self.complete = leases.CompleteJobs(settings)
        self.purge = admin.PurgeOld(self.submit.known)
        self._expire_lease = leases.ExpireLease(settings)
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
        for row in self.queries.devices():
            self.catalog.load(row.id, row.info)

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
        """Run a question of queries.py on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, question, *arguments)

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
        await self.writer.call(lifecycle.expire, None)
        for worker, beats in self._silent(await self.ask(self.queries.alive_workers)):
            n = await self.writer.call(self._expire_lease, (worker, beats))
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
