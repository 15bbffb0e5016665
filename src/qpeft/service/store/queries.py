"""Questions about jobs, batches and their results. All are asked by owner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from qpeft.errors import ServiceError
from qpeft.service.messages import PRIORITIES
from qpeft.service.store.directory import FLOWS_OF_DEVICE, Directory, stamp
from qpeft.service.store.schema import (
    QUEUED_SQL,
    TERMINAL,
    Row,
    batches,
    jobs,
    programs,
    results,
)

ENDED_BADLY: Final = ("failed", "cancelled", "expired")
"""Endings of a batch, the worst first; it succeeded when none of its jobs has one of them."""
BATCH_STATES: Final = ("queued", "running", "succeeded", *ENDED_BADLY)
_PRIORITY_NAMES = {number: name for name, number in PRIORITIES.items()}


def job_view(row: Row, position: int | None = None, expected_start: float | None = None) -> dict[str, Any]:
    """A job as the API shows it.

    Args:
        row: the job's row.
        position: how many jobs are served before it if all users keep their share; None for a job that is not queued.
        expected_start: when it will start then, seconds since 1970.
    """
    return {
        "id": row.id,
        "device": row.device,
        "state": row.state,
        "reason": row.reason,
        "name": row.name,
        "batch": row.batch,
        "index": row.position if row.batch else None,
        "circuits": row.rows,
        "shots": row.shots,
        "output": row.output,
        "lane": "interactive" if row.lane == 0 else "bulk",
        "priority": _PRIORITY_NAMES[row.priority],
        "attempt": row.attempt,
        "queue_position": position,
        "expected_start": stamp(expected_start),
        "estimate_s": row.estimate_s,
        "device_s": row.device_s,
        "calibration": row.calibration,
        "created_at": stamp(row.created_at),
        "started_at": stamp(row.started_at),
        "finished_at": stamp(row.finished_at),
        "expires_at": stamp(row.expires_at),
    }


@dataclass(frozen=True)
class ResultPage:
    """Part of a batch's results: rows of `jobs` with payloads, the place to go on from, and whether nothing follows."""

    rows: list[tuple[Row, bytes | None]]
    following: int
    complete: bool


def _batch_view(row: Row, groups: Sequence[Row]) -> dict[str, Any]:
    states = {state: int(n) for _, state, n, _, _ in groups}
    ended = not any(n for state, n in states.items() if state not in TERMINAL)
    worst = next((state for state in ENDED_BADLY if states.get(state)), "succeeded")
    return {
        "id": row.id,
        "kind": row.kind,
        "device": row.device,
        "state": worst if ended else "queued" if states.get("queued") == row.n_jobs else "running",
        "name": row.name,
        "jobs": row.n_jobs,
        "circuits": row.n_circuits,
        "states": states,
        "finished_circuits": sum(int(circuits) for _, state, _, circuits, _ in groups if state in TERMINAL),
        "device_s": float(sum(seconds for _, _, _, _, seconds in groups)),
        "created_at": stamp(row.created_at),
    }


class Queries(Directory):
    """Every question of one API process: those about jobs here, all others in directory.py."""

    def job(self, owner: str, job: str) -> Row:
        """A job of a user.

        Args:
            owner: id of the user.
            job: id of the job.

        Raises:
            ServiceError: 404, there is no such job.
        """
        row = self._first(_JOB, {"id": job, "owner": owner})
        if row is None:
            raise ServiceError("no such job", status=404, code="not_found", value=job)
        return row

    def position(self, row: Row) -> int | None:
        """How many jobs go before this queued one: its own flow's earlier ones, and of each other flow at most as many."""
        if row.state != "queued":
            return None
        values = {"device": row.device, "owner": row.owner, "lane": row.lane, "seq": row.seq, "priority": row.priority}
        own = int(self._all(_AHEAD, values)[0][0])
        others = self._all(FLOWS_OF_DEVICE, {"device": row.device})
        ahead = sum(min(f.queued, own + 1) for f in others if (f.owner, f.lane) != (row.owner, row.lane) and f.lane <= row.lane)
        return own + int(ahead)

    def job_view(self, owner: str, job: str) -> dict[str, Any]:
        """A job of a user as the API shows it.

        Args:
            owner: id of the user.
            job: id of the job.

        Raises:
            ServiceError: 404, there is no such job.
        """
        row = self.job(owner, job)
        position = self.position(row)
        return job_view(row, position, self.expected_start(row, position))

    def expected_start(self, row: Row, position: int | None) -> float | None:
        """When a queued job is expected to start.

        The estimate shares the work before the job among the device's workers. It takes the mean cost of what is queued on the
        device, and assumes that nothing comes that is served earlier.

        Args:
            row: the job's row.
            position: number of jobs before it; None for a job that is not queued.

        Returns:
            Seconds since 1970; None for a job that is not queued, and where no worker is.
        """
        workers = sum(row.device in worker.devices.split("\n") for worker in self.alive_workers()) if position is not None else 0
        if position is None or not workers:
            return None
        mean_s = float(self._all(_MEAN_COST, {"device": row.device})[0][0] or 0.0)
        now = max(self.last_written(), float(row.created_at))
        taken = [one for one in self.reservations(row.device, now) if one.starts_at <= now and one.owner != row.owner]
        return max([now, *(float(one.ends_at) for one in taken)]) + position * mean_s / workers

    def jobs(self, owner: str, *, state: str | None, device: str | None, before: int | None, limit: int) -> Sequence[Row]:
        """A user's jobs, newest first.

        Args:
            owner: id of the user.
            state: jobs in this state only.
            device: jobs on this device only.
            before: jobs with a smaller `seq` only.
            limit: the most rows.
        """
        query = sa.select(jobs).where(jobs.c.owner == owner).order_by(jobs.c.seq.desc()).limit(limit)
        for column, value in ((jobs.c.state, state), (jobs.c.device, device)):
            if value is not None:
                query = query.where(column == value)
        return self._all(query if before is None else query.where(jobs.c.seq < before))

    def result(self, row: Row) -> bytes:
        """The payload of a job's result; ServiceError 409 when there is none, with the reason."""
        if row.state not in TERMINAL:
            raise ServiceError("no result yet", status=409, code="not_terminal", value=row.state, hint="wait for it: ?wait=30")
        found = self._first(_RESULT, {"seq": row.seq}) if row.state == "succeeded" else None
        if found is None:
            raise ServiceError(f"the job has no result: {row.reason}", status=409, code=row.state, value=row.state)
        return bytes(found.payload)

    def batch(self, owner: str, batch: str) -> Row:
        """A batch of a user.

        Args:
            owner: id of the user.
            batch: id of the batch.

        Raises:
            ServiceError: 404, there is no such batch.
        """
        row = self._first(sa.select(batches).where(batches.c.id == batch, batches.c.owner == owner))
        if row is None:
            raise ServiceError("no such batch", status=404, code="not_found", value=batch)
        return row

    def batch_view(self, owner: str, batch: str) -> dict[str, Any]:
        """A batch with its jobs counted by state; `state` is "queued", "running" or, when all ended, the worst ending.

        Args:
            owner: id of the user.
            batch: id of the batch.

        Raises:
            ServiceError: 404, there is no such batch.
        """
        return self._batch_views([self.batch(owner, batch)])[0]

    def batch_jobs(self, batch: str) -> Sequence[Row]:
        """The jobs of a batch in their order; whose it is has been asked before."""
        return self._all(sa.select(jobs).where(jobs.c.batch == batch).order_by(jobs.c.position))

    def batch_programs(self, batch: str) -> list[bytes]:
        """The stored text of each job's program, in their order; whose the batch is has been asked before."""
        query = sa.select(programs.c.text).join(jobs, jobs.c.program == programs.c.hash)
        return [bytes(row.text) for row in self._all(query.where(jobs.c.batch == batch).order_by(jobs.c.position))]

    def batches(self, owner: str, before: str | None, limit: int) -> list[dict[str, Any]]:
        """A user's batches as `batch_view` shows them, newest first.

        Args:
            owner: id of the user.
            before: id of a batch; those made before it only.
            limit: the most batches.
        """
        query = sa.select(batches).where(batches.c.owner == owner)
        if before is not None:
            made = sa.select(batches.c.created_at).where(batches.c.id == before, batches.c.owner == owner).scalar_subquery()
            query = query.where(sa.tuple_(batches.c.created_at, batches.c.id) < sa.tuple_(made, before))
        return self._batch_views(self._all(query.order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(limit)))

    def _batch_views(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        count = sa.select(jobs.c.batch, jobs.c.state, sa.func.count(), sa.func.sum(jobs.c.rows), sa.func.sum(jobs.c.device_s))
        of_page = count.where(jobs.c.batch.in_([row.id for row in rows])).group_by(jobs.c.batch, jobs.c.state)
        groups: dict[str, list[Row]] = {row.id: [] for row in rows}
        for group in self._all(of_page) if rows else ():
            groups[group.batch].append(group)
        return [_batch_view(row, groups[row.id]) for row in rows]

    def batch_results(self, batch: str, position: int, limit: int, max_bytes: int) -> ResultPage:
        """Jobs of a batch with their results, in order from `position` on, up to the first that has not ended.

        Args:
            batch: the batch's id; whose it is has been asked before.
            position: the first job's place in the batch. Places may be missing: old jobs are deleted.
            limit: jobs at most.
            max_bytes: payload bytes at most, but always one job.
        """
        size = sa.func.coalesce(sa.func.length(results.c.payload), 0).label("payload_bytes")
        query = sa.select(jobs, size).join(results, results.c.seq == jobs.c.seq, isouter=True)
        found = self._all(query.where(jobs.c.batch == batch, jobs.c.position >= position).order_by(jobs.c.position).limit(limit))
        rows: list[Row] = []
        total = 0
        for row in found:
            total += row.payload_bytes
            if row.state not in TERMINAL or (rows and total > max_bytes):
                break
            rows.append(row)
        stored = sa.select(results.c.seq, results.c.payload).where(results.c.seq.in_([row.seq for row in rows]))
        payloads = {row.seq: bytes(row.payload) for row in self._all(stored)} if rows else {}
        complete = len(rows) == len(found) and len(found) < limit
        following = rows[-1].position + 1 if rows else position
        return ResultPage([(row, payloads.get(row.seq)) for row in rows], following, complete)

    def changes(self, owner: str, after: tuple[int, int], limit: int) -> Sequence[Row]:
        """A user's jobs in the order of their last change.

        Args:
            owner: id of the user.
            after: `(changed, seq)`; jobs changed after it only.
            limit: the most rows.
        """
        place = sa.tuple_(jobs.c.changed, jobs.c.seq) > sa.tuple_(*after)
        return self._all(sa.select(jobs).where(jobs.c.owner == owner, place).order_by(jobs.c.changed, jobs.c.seq).limit(limit))

    def last_change(self, owner: str) -> tuple[int, int]:
        """`(changed, seq)` of the user's newest change."""
        query = sa.select(jobs.c.changed, jobs.c.seq).where(jobs.c.owner == owner)
        row = self._first(query.order_by(jobs.c.changed.desc(), jobs.c.seq.desc()).limit(1))
        return (0, 0) if row is None else (int(row.changed), int(row.seq))

    def states(self, batch_ids: Sequence[str], job_ids: Sequence[str]) -> Sequence[Row]:
        """The states of jobs.

        Args:
            batch_ids: batches, for all of their jobs.
            job_ids: single jobs.

        Returns:
            `(id, batch, state)` of each job.
        """
        query = sa.select(jobs.c.id, jobs.c.batch, jobs.c.state)
        return self._all(query.where(jobs.c.id.in_(job_ids) | jobs.c.batch.in_(batch_ids)))


_JOB = sa.select(jobs).where(jobs.c.id == sa.bindparam("id"), jobs.c.owner == sa.bindparam("owner"))
_RESULT = sa.select(results.c.payload).where(results.c.seq == sa.bindparam("seq"))
_EARLIER = (
    sa.select(jobs.c.seq)
    .where(
        *(jobs.c[name] == sa.bindparam(name) for name in ("device", "owner", "lane")),
        QUEUED_SQL,
        sa.tuple_(jobs.c.priority, jobs.c.seq) < sa.tuple_(sa.bindparam("priority"), sa.bindparam("seq")),
    )
    .limit(100_000)
    .subquery()
)
_SOME_QUEUED = sa.select(jobs.c.estimate_s).where(jobs.c.device == sa.bindparam("device"), QUEUED_SQL).limit(1000).subquery()
_MEAN_COST = sa.select(sa.func.avg(_SOME_QUEUED.c.estimate_s))
_AHEAD = sa.select(sa.func.count()).select_from(_EARLIER)
