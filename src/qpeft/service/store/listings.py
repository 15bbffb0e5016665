"""What the dashboard's lists ask of the store: pages with filters, queues in order, histories. Answers belong to an owner, except
those that are named for administrators."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from qpeft.service.store.queries import ENDED_BADLY, Queries
from qpeft.service.store.schema import (
    HELD,
    QUEUED_SQL,
    TERMINAL,
    Row,
    api_keys,
    audit,
    batches,
    calibrations,
    flows,
    jobs,
    owners,
    programs,
    vendor_tasks,
    workers,
)

CHUNK = 1000
ID_LENGTH = 27


@dataclass(frozen=True)
class JobFilter:
    """Which of an owner's jobs; `text` is part of the name, or the beginning of an id."""

    state: str | None = None
    device: str | None = None
    text: str = ""
    batch: str | None = None


@dataclass(frozen=True)
class BatchFilter:
    """Which of an owner's batches; `state` is one of `BATCH_STATES`, `text` part of the name, or a whole id."""

    state: str | None = None
    device: str | None = None
    text: str = ""


@dataclass(frozen=True)
class QueuedJob:
    """A queued job: its row, how many jobs go before it, and when it is expected to start (s since 1970; None without a worker)."""

    row: Row
    position: int
    expected_start: float | None


@dataclass(frozen=True)
class Occupied:
    """A job that a chip runs now, on these qubits; `user` is the name of its user."""

    row: Row
    user: str
    qubits: tuple[int, ...]


def _is_id(text: str) -> bool:
    """Whether a text is a job's or batch's whole id."""
    return len(text) == ID_LENGTH and text[0] in "jb" and text.isalnum()


def _like(text: str) -> str:
    return "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"


def _batch_in(owner: str, state: str) -> list[sa.ColumnElement[bool]]:
    """Conditions on `batches` that say what `batch_view` says of a batch's state. Each set is read through `jobs_of_state`."""

    def among(*states: str) -> sa.ColumnElement[bool]:
        of_owner = sa.select(jobs.c.batch).where(jobs.c.owner == owner, jobs.c.state.in_(states), jobs.c.batch.is_not(None))
        return batches.c.id.in_(of_owner.distinct())

    if state == "queued":
        return [among("queued"), ~among(*HELD, *TERMINAL)]
    if state == "running":
        return [among("queued", *HELD), among(*HELD, *TERMINAL)]
    worse = ENDED_BADLY[: ENDED_BADLY.index(state)] if state in ENDED_BADLY else ENDED_BADLY
    ended = ~among("queued", *HELD, *worse)
    return [ended, among(state)] if state in ENDED_BADLY else [ended]


class Listings(Queries):
    """Questions of the dashboard, answered on a thread that may block for a moment."""

    def _has(self, column: sa.Column[Any], text: str) -> sa.ColumnElement[bool]:
        """Whether a column has a text, small and capital letters alike. SQLite's LIKE compares so by itself, and twice as fast."""
        like = _like(text)
        sqlite = self.engine.dialect.name == "sqlite"
        return column.like(like, escape="\\") if sqlite else column.ilike(like, escape="\\")

    def job_page(self, owner: str, wanted: JobFilter, before: int | None, after: int | None, limit: int) -> list[Row]:
        """A page of a user's jobs, newest first.

        Args:
            owner: id of the user.
            wanted: filter by state, device, batch, and by text in the name.
            before: jobs with a smaller `seq` only.
            after: the jobs that follow this `seq`; `before` is ignored then.
            limit: the most rows.
        """
        query = sa.select(jobs).where(jobs.c.owner == owner)
        for column, value in ((jobs.c.state, wanted.state), (jobs.c.device, wanted.device), (jobs.c.batch, wanted.batch)):
            if value:
                query = query.where(column == value)
        if wanted.text:
            query = query.where(self._has(jobs.c.name, wanted.text) if not _is_id(wanted.text) else jobs.c.id == wanted.text)
        if after is not None:
            return list(self._all(query.where(jobs.c.seq > after).order_by(jobs.c.seq).limit(limit)))[::-1]
        if before is not None:
            query = query.where(jobs.c.seq < before)
        return list(self._all(query.order_by(jobs.c.seq.desc()).limit(limit)))

    def state_counts(self, owner: str) -> dict[str, int]:
        """How many jobs of the owner are in each state."""
        query = sa.select(jobs.c.state, sa.func.count()).where(jobs.c.owner == owner).group_by(jobs.c.state)
        return {str(state): int(n) for state, n in self._all(query)}

    def waiting(self, owner: str, device: str, now: float, limit: int) -> tuple[list[QueuedJob], int]:
        """A user's queued jobs on a device in the order in which they are served.

        Args:
            owner: id of the user.
            device: name of the device.
            now: seconds since 1970.
            limit: the most jobs.

        Returns:
            The first jobs with their positions and expected starts, and how many jobs there are in all.
        """
        queued = sa.select(jobs).where(jobs.c.device == device, jobs.c.owner == owner, QUEUED_SQL).order_by(jobs.c.seq)
        rows: list[Row] = []
        for lane in (0, 1):  # one at a time, so that an index gives the order and nothing is sorted
            rows += self._all(queued.where(jobs.c.lane == lane).limit(limit - len(rows)))
        if not rows:
            return [], 0
        found = self.flows(device)
        total = sum(int(flow.queued) for flow in found if flow.owner == owner)
        n_workers = sum(device in worker.devices.split("\n") for worker in self.alive_workers())
        some = sa.select(jobs.c.estimate_s).where(jobs.c.device == device, QUEUED_SQL).limit(CHUNK).subquery()
        mean_s = float(self._all(sa.select(sa.func.avg(some.c.estimate_s)))[0][0] or 0.0)
        answer, own = [], {0: 0, 1: 0}
        for row in rows:
            others = (flow for flow in found if (flow.owner, flow.lane) != (owner, row.lane) and flow.lane <= row.lane)
            position = own[row.lane] + sum(min(int(flow.queued), own[row.lane] + 1) for flow in others)
            own[row.lane] += 1
            answer.append(QueuedJob(row, position, now + position * mean_s / n_workers if n_workers else None))
        return answer, total

    def queue_by_user(self, device: str) -> Sequence[Row]:
        """For administrators: `(name, lane, queued)` of everybody who has jobs queued on the device."""
        query = sa.select(owners.c.name, flows.c.lane, flows.c.queued).join(owners, owners.c.id == flows.c.owner)
        return self._all(query.where(flows.c.device == device, flows.c.queued > 0).order_by(flows.c.queued.desc()).limit(CHUNK))

    def occupied(self, device: str) -> list[Occupied]:
        """What runs on a chip now and where, as its workers told. Whose it is must be kept from other users."""
        told = self._all(sa.select(workers.c.id, workers.c.places).where(workers.c.lost.is_(False), workers.c.places != ""))
        places = {int(seq): tuple(qubits) for row in told for seq, qubits in json.loads(row.places)}
        if not places:
            return []
        query = sa.select(jobs, owners.c.name.label("user")).join(owners, owners.c.id == jobs.c.owner)
        running = query.where(jobs.c.seq.in_(list(places)[:CHUNK]), jobs.c.device == device, jobs.c.state == "running")
        return [Occupied(row, row.user, places[row.seq]) for row in self._all(running.order_by(jobs.c.seq))]

    def last_on(self, owner: str, device: str) -> Row | None:
        """The owner's last job that succeeded on a device, of the newest hundred."""
        query = sa.select(jobs).where(jobs.c.owner == owner, jobs.c.device == device).order_by(jobs.c.seq.desc()).limit(100)
        return next((row for row in self._all(query) if row.state == "succeeded"), None)

    def calibration_history(self, device: str, limit: int) -> list[Row]:
        """The device's last calibrations, the newest first.

        Args:
            device: name of the device.
            limit: the most calibrations.
        """
        query = sa.select(calibrations).where(calibrations.c.device == device)
        return list(self._all(query.order_by(calibrations.c.created_at.desc()).limit(limit)))

    def program(self, name: str) -> Row | None:
        """A stored program by its hash; None when it was deleted."""
        return self._first(sa.select(programs).where(programs.c.hash == name))

    def batch_page(
        self, owner: str, wanted: BatchFilter, before: str | None, after: str | None, limit: int
    ) -> list[dict[str, Any]]:
        """A page of a user's batches as `batch_view` shows them, newest first.

        Args:
            owner: id of the user.
            wanted: filter by state, device, and by text in the name.
            before: id of a batch; older ones only.
            after: id of a batch; those that were made right after it.
            limit: the most batches.
        """
        query = sa.select(batches).where(batches.c.owner == owner)
        if text := wanted.text:
            query = query.where(self._has(batches.c.name, text) if not _is_id(text) else batches.c.id == text)
        if wanted.device:
            query = query.where(batches.c.device == wanted.device)
        if wanted.state:
            query = query.where(*_batch_in(owner, wanted.state))
        place = sa.tuple_(batches.c.created_at, batches.c.id)
        newest = (batches.c.created_at.desc(), batches.c.id.desc())
        if (mark := before or after) is not None:
            made = sa.select(batches.c.created_at).where(batches.c.id == mark, batches.c.owner == owner).scalar_subquery()
            there = sa.tuple_(made, mark)
            query = query.where(place < there if before else place > there)
        if after is not None and before is None:
            return self._batch_views(list(self._all(query.order_by(batches.c.created_at, batches.c.id).limit(limit)))[::-1])
        return self._batch_views(self._all(query.order_by(*newest).limit(limit)))

    # -- for administrators ------------------------------------------------------------------------------------------------------

    def log_page(self, text: str, before: int | None, limit: int) -> list[Row]:
        """A page of the audit log, newest lines first.

        Args:
            text: text in actor, act or detail; "" for all.
            before: lines with a smaller `seq` only.
            limit: the most lines.
        """
        query = sa.select(audit)
        if text:
            like = _like(text)
            query = query.where(
                sa.or_(*(column.ilike(like, escape="\\") for column in (audit.c.actor, audit.c.act, audit.c.detail)))
            )
        if before is not None:
            query = query.where(audit.c.seq < before)
        return list(self._all(query.order_by(audit.c.seq.desc()).limit(limit)))

    def key_page(self, text: str, offset: int, limit: int) -> list[Row]:
        """A page of keys with their users' names, newest first.

        Args:
            text: text in the user's name or the prefix; "" for all.
            offset: keys to leave out at the start.
            limit: the most keys.
        """
        columns = (api_keys.c.prefix, api_keys.c.scopes, api_keys.c.created_at, api_keys.c.revoked_at, api_keys.c.expires_at)
        query = sa.select(*columns, owners.c.name).join(owners, owners.c.id == api_keys.c.owner)
        if text:
            like = _like(text)
            query = query.where(sa.or_(owners.c.name.ilike(like, escape="\\"), api_keys.c.prefix.ilike(like, escape="\\")))
        return list(self._all(query.order_by(api_keys.c.created_at.desc(), api_keys.c.prefix).offset(offset).limit(limit)))

    def everything(self, table: str) -> Iterator[dict[str, Any]]:
        """Every row of "keys", "workers", "vendor-tasks" or "audit", for an export, read in pieces."""
        key_columns = [api_keys.c[n] for n in ("prefix", "scopes", "created_at", "revoked_at", "expires_at")]
        query = {
            "keys": sa.select(*key_columns, owners.c.name.label("user")).join(owners, owners.c.id == api_keys.c.owner),
            "workers": sa.select(*(workers.c[n] for n in ("id", "name", "devices", "seen_at", "lost"))),
            "vendor-tasks": sa.select(vendor_tasks),
            "audit": sa.select(audit),
        }[table]
        order = {"keys": api_keys.c.prefix, "workers": workers.c.id, "vendor-tasks": vendor_tasks.c.id, "audit": audit.c.seq}[table]
        last: Any = None
        while rows := self._all((query if last is None else query.where(order > last)).order_by(order).limit(CHUNK)):
            for row in rows:
                yield dict(row._mapping)
            last = getattr(rows[-1], order.name)
