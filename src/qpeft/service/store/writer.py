"""The one writer: everything that waits is written in one transaction and acknowledged after its commit (group commit).

An operation is a function `fn(txn, arguments) -> results`, many at once: all waiting calls of one function are one call of it.
A result that is a ServiceError is a refusal of that one argument, which must not have written anything. Any other exception
rolls the whole group back; its operations then run again one at a time, so that one of them cannot take others down.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import sqlalchemy as sa

from qpeft.errors import ServiceError
from qpeft.service.clock import Clock
from qpeft.service.ids import new_id
from qpeft.service.store.changes import announce
from qpeft.service.store.database import Database
from qpeft.service.store.schema import counters

log = logging.getLogger("qpeft.service")
A = TypeVar("A")
R = TypeVar("R")
Operation: TypeAlias = Callable[["Transaction", Sequence[A]], Sequence[R | ServiceError]]
GROUP = 1024  # calls in one transaction
BUSY, GATHER_S = 16, 0.002  # after so many calls at once the next group gathers for a moment: fewer, larger transactions


@dataclass
class Transaction:
    """Context of an operation: connection, time, sequence numbers, and notices to readers after the commit."""

    connection: sa.Connection
    now: float
    tick: int
    changed: set[str] = field(default_factory=set)
    """What readers are told of, by the names of changes.py: ids of jobs and batches, "device:NAME" where work was queued."""

    def ticks(self, n: int = 1) -> int:
        """The first of `n` unused sequence numbers; later transactions get larger ones."""
        first = self.tick
        self.tick += n
        return first


_TICK = sa.select(counters.c.value).where(counters.c.name == "tick")
_SET_TICK = sa.update(counters).where(counters.c.name == "tick").values(value=sa.bindparam("tick"))


@dataclass
class _Call:
    fn: Operation[Any, Any]
    argument: Any
    done: Callable[[Any], None]
    loop: asyncio.AbstractEventLoop | None = None


class Writer:
    """A thread that owns the writing connection. `call` from coroutines, `call_sync` from threads.

    Args:
        database: what is written to.
        clock: the time of what is written, where the database has none of its own.
        notify: called on the writer's thread after each commit with the names that changed (changes.py).
    """

    def __init__(self, database: Database, clock: Clock, notify: Callable[[set[str]], None] | None = None) -> None:
        self.database, self.clock, self.notify = database, clock, notify
        self.name = new_id("p")
        self.groups = self.calls = 0
        self.now = 0.0
        self.commit_s = 0.0
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="qpeft-writer", daemon=True)
        self._thread.start()

    def call(self, fn: Operation[A, R], argument: A) -> asyncio.Future[R]:
        """Run an operation in the next group.

        Args:
            fn: the operation.
            argument: its argument.

        Returns:
            A future of its result, which ends after the commit.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()

        def done(outcome: Any) -> None:
            if not future.done():
                future.set_exception(outcome) if isinstance(outcome, BaseException) else future.set_result(outcome)

        self._put(_Call(fn, argument, done, loop))
        return future

    def call_sync(self, fn: Operation[A, R], argument: A, timeout_s: float = 60.0) -> R:
        """As `call`, from a thread that may block.

        Args:
            fn: the operation.
            argument: its argument.
            timeout_s: seconds to wait for the commit.

        Raises:
            TimeoutError: it was not committed in time.
        """
        future: Future[R] = Future()

        def done(outcome: Any) -> None:
            future.set_exception(outcome) if isinstance(outcome, BaseException) else future.set_result(outcome)

        self._put(_Call(fn, argument, done))
        return future.result(timeout_s)

    def close(self) -> None:
        """Finish what waits, then stop."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join(30)

    def _put(self, call: _Call) -> None:
        if self._closed:
            raise ServiceError("the service is stopping", status=503, code="stopping", retry_after_s=2)
        self._queue.put(call)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            group, last = [first], False
            while len(group) < GROUP:
                try:
                    call = self._queue.get_nowait()
                except queue.Empty:
                    break
                if call is None:
                    last = True
                    break
                group.append(call)
            self._settle(group, self._write(group))
            if last:
                break
            if len(group) >= BUSY:
                time.sleep(GATHER_S)

    def _write(self, group: list[_Call]) -> list[Any]:
        """One outcome for each call. Never raises."""
        try:
            return self._transaction(group)
        except Exception as error:
            if len(group) > 1 and not _unreachable(error):
                return [outcome for call in group for outcome in self._write([call])]
            if not isinstance(error, sa.exc.DBAPIError):
                log.exception("an operation failed")
                failure: BaseException = error
            elif isinstance(error, (sa.exc.DataError, sa.exc.IntegrityError)):
                log.error("the database refuses a value: %s", str(error.orig).strip())
                failure = ServiceError("the database cannot store this value", status=422, code="value")
                failure.__cause__ = error
            else:
                log.error("the database refused to write: %s", str(error.orig).strip())
                failure = ServiceError(
                    "the service cannot store anything now", status=503, code="storage", retry_after_s=5, hint="try again later"
                )
                failure.__cause__ = error
            return [failure] * len(group)

    def _transaction(self, group: list[_Call]) -> list[Any]:
        start = time.perf_counter()
        outcomes: list[Any] = [None] * len(group)
        by_function: dict[Any, list[int]] = {}
        for index, call in enumerate(group):
            by_function.setdefault(call.fn, []).append(index)
        with self.database.writer.connect() as connection:
            self.database.begin(connection)
            self.now = max(self.now, self.database.now(connection, self.clock))
            txn = Transaction(connection, self.now, int(connection.execute(_TICK).scalar_one()))
            before = txn.tick
            for fn, indices in by_function.items():
                for index, outcome in zip(indices, fn(txn, [group[index].argument for index in indices]), strict=True):
                    outcomes[index] = outcome
            if txn.tick != before:
                connection.execute(_SET_TICK, {"tick": txn.tick})
            if txn.changed and not self.database.sqlite:
                announce(connection, self.name, txn.changed)
            connection.commit()
        self.groups += 1
        self.calls += len(group)
        self.commit_s += time.perf_counter() - start
        if txn.changed and self.notify is not None:
            try:
                self.notify(txn.changed)
            except Exception:  # what was committed stays committed: it must not be run again
                log.exception("readers were not told of a commit")
        return outcomes

    def _settle(self, group: list[_Call], outcomes: list[Any]) -> None:
        loops: dict[asyncio.AbstractEventLoop | None, list[tuple[_Call, Any]]] = {}
        for call, outcome in zip(group, outcomes, strict=True):
            loops.setdefault(call.loop, []).append((call, outcome))
        for loop, settled in loops.items():
            if loop is None:
                _finish(settled)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(_finish, settled)


def _finish(settled: list[tuple[_Call, Any]]) -> None:
    for call, outcome in settled:
        call.done(outcome)


def _unreachable(error: Exception) -> bool:
    """True when running calls one by one would only wait for the same failure again."""
    return isinstance(error, sa.exc.DBAPIError) and (error.connection_invalidated or isinstance(error, sa.exc.OperationalError))
