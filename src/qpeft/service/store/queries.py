"""Every question asked of the store, over the reading connections. All answers that belong to a user are asked for by owner."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from qpeft.errors import ServiceError
from qpeft.service.store.schema import (
    QUEUED_SQL,
    TERMINAL,
    Row,
    api_keys,
    audit,
    batches,
    calibrations,
    devices,
    flows,
    jobs,
    owners,
    programs,
    results,
    sessions,
    usage,
    vendor_members,
    vendor_tasks,
    workers,
)


def stamp(seconds: float | None) -> str | None:
    """RFC 3339 in UTC, milliseconds."""
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_view(row: Row, position: int | None = None, expected_start: float | None = None) -> dict[str, Any]:
    """A job as the API shows it.

    `queue_position` is how many jobs are served before it if all users keep their share, `expected_start` when it will start then.
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
    worst = next((state for state in ("failed", "cancelled", "expired") if states.get(state)), "succeeded")
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


class Queries:
    """Questions, answered on a thread that may block for a moment."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def _all(self, query: sa.Select[Any], values: dict[str, Any] | None = None) -> Sequence[Row]:
        try:
            with self.engine.connect() as connection:
                return connection.execute(query, values or {}).all()
        except sa.exc.DBAPIError as error:
            raise ServiceError(
                "the service cannot read its store now", status=503, code="storage", retry_after_s=5, hint="try again later"
            ) from error

    def _first(self, query: sa.Select[Any], values: dict[str, Any] | None = None) -> Row | None:
        rows = self._all(query, values)
        return rows[0] if rows else None

    def last_written(self) -> float:
        """When the newest job, worker or audit line was written, in seconds since 1970; 0 for an empty database."""
        newest = (
            sa.select(jobs.c.created_at).order_by(jobs.c.seq.desc()).limit(1),
            sa.select(sa.func.max(workers.c.seen_at)),
            sa.select(audit.c.at).order_by(audit.c.seq.desc()).limit(1),
        )
        return max((float(row[0] or 0.0) for query in newest if (row := self._first(query)) is not None), default=0.0)

    def ping(self) -> None:
        """Whether the database answers."""
        self._all(sa.select(sa.literal(1)))

    def key(self, digest: bytes, now: float) -> Row | None:
        """`(prefix, owner, scopes, name)` of a key in use: not revoked, not expired, its user not disabled."""
        return self._first(_KEY, {"digest": digest, "now": now})

    def session(self, digest: bytes, now: float) -> Row | None:
        """`(prefix, owner, scopes, name)` of the key that a session of the dashboard stands for, while both are in use."""
        return self._first(_SESSION, {"digest": digest, "now": now})

    def keys(self) -> Sequence[Row]:
        """Every key with its user's name, the oldest first."""
        columns = (api_keys.c.prefix, api_keys.c.scopes, api_keys.c.created_at, api_keys.c.revoked_at, api_keys.c.expires_at)
        query = sa.select(*columns, owners.c.name)
        return self._all(query.join(owners, owners.c.id == api_keys.c.owner).order_by(api_keys.c.created_at))

    def job(self, owner: str, job: str) -> Row:
        """A job of the user's; ServiceError 404 when there is none."""
        row = self._first(_JOB, {"id": job, "owner": owner})
        if row is None:
            raise ServiceError("no such job", status=404, code="not_found", value=job)
        return row

    def position(self, row: Row) -> int | None:
        """How many jobs go before this queued one: its own flow's earlier ones, and of each other flow at most as many."""
        if row.state != "queued":
            return None
        values = {"device": row.device, "owner": row.owner, "lane": row.lane, "seq": row.seq}
        own = int(self._all(_AHEAD, values)[0][0])
        others = self._all(_FLOWS, {"device": row.device})
        ahead = sum(min(f.queued, own + 1) for f in others if (f.owner, f.lane) != (row.owner, row.lane) and f.lane <= row.lane)
        return own + int(ahead)

    def job_view(self, owner: str, job: str) -> dict[str, Any]:
        """A job of the user's as the API shows it; ServiceError 404 when there is none."""
        row = self.job(owner, job)
        position = self.position(row)
        return job_view(row, position, self.expected_start(row, position))

    def expected_start(self, row: Row, position: int | None) -> float | None:
        """When a queued job is expected to start, in seconds since 1970: the work before it, shared by the device's workers.

        An estimate: from the mean of what is queued on the device, as if nothing came that is served earlier. None for what is not
        queued, and where no worker is.
        """
        workers = sum(row.device in worker.devices.split("\n") for worker in self.alive_workers()) if position is not None else 0
        if position is None or not workers:
            return None
        mean_s = float(self._all(_MEAN_COST, {"device": row.device})[0][0] or 0.0)
        return max(self.last_written(), float(row.created_at)) + position * mean_s / workers

    def users(self) -> Sequence[Row]:
        """Every user, by name."""
        return self._all(sa.select(owners).order_by(owners.c.name))

    def jobs(self, owner: str, *, state: str | None, device: str | None, before: int | None, limit: int) -> Sequence[Row]:
        """Newest first, those with `seq < before`."""
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
        """A batch of the user's; ServiceError 404 when there is none."""
        row = self._first(sa.select(batches).where(batches.c.id == batch, batches.c.owner == owner))
        if row is None:
            raise ServiceError("no such batch", status=404, code="not_found", value=batch)
        return row

    def batch_view(self, owner: str, batch: str) -> dict[str, Any]:
        """A batch with its jobs counted by state; `state` is "queued", "running" or, when all ended, the worst ending."""
        return self._batch_views([self.batch(owner, batch)])[0]

    def batch_jobs(self, batch: str) -> Sequence[Row]:
        """The jobs of a batch in their order; whose it is has been asked before."""
        return self._all(sa.select(jobs).where(jobs.c.batch == batch).order_by(jobs.c.position))

    def batch_programs(self, batch: str) -> list[bytes]:
        """The stored text of each job's program, in their order; whose the batch is has been asked before."""
        query = sa.select(programs.c.text).join(jobs, jobs.c.program == programs.c.hash)
        return [bytes(row.text) for row in self._all(query.where(jobs.c.batch == batch).order_by(jobs.c.position))]

    def batches(self, owner: str, before: str | None, limit: int) -> list[dict[str, Any]]:
        """Batches as `batch_view` shows them, newest first: those made before the batch `before`."""
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
        """The user's jobs changed after `(changed, seq)`, in the order of change."""
        place = sa.tuple_(jobs.c.changed, jobs.c.seq) > sa.tuple_(*after)
        return self._all(sa.select(jobs).where(jobs.c.owner == owner, place).order_by(jobs.c.changed, jobs.c.seq).limit(limit))

    def last_change(self, owner: str) -> tuple[int, int]:
        """`(changed, seq)` of the user's newest change."""
        query = sa.select(jobs.c.changed, jobs.c.seq).where(jobs.c.owner == owner)
        row = self._first(query.order_by(jobs.c.changed.desc(), jobs.c.seq.desc()).limit(1))
        return (0, 0) if row is None else (int(row.changed), int(row.seq))

    def devices(self) -> Sequence[Row]:
        """Every device with the number of jobs queued on it."""
        queued = sa.select(sa.func.coalesce(sa.func.sum(flows.c.queued), 0)).where(flows.c.device == devices.c.id).scalar_subquery()
        return self._all(sa.select(devices, queued.label("queued")).order_by(devices.c.id))

    def calibration(self, device: str, name: str | None = None) -> Row | None:
        """The device's calibration now, or the one called `name`."""
        query = sa.select(calibrations).where(calibrations.c.device == device)
        chosen = query.where(calibrations.c.id == name) if name else query.join(devices, devices.c.calibration == calibrations.c.id)
        return self._first(chosen)

    def calibration_ids(self, device: str) -> list[str]:
        """The names of the device's calibrations, the newest first."""
        query = sa.select(calibrations.c.id).where(calibrations.c.device == device).order_by(calibrations.c.created_at.desc())
        return [row.id for row in self._all(query.limit(1000))]

    def flows(self, device: str) -> Sequence[Row]:
        """Queued jobs of the device, by user and lane."""
        return self._all(_FLOWS, {"device": device})

    def queued_devices(self) -> set[str]:
        """Devices that have something queued."""
        return {row.device for row in self._all(sa.select(flows.c.device).where(flows.c.queued > 0).distinct())}

    def workers(self) -> Sequence[Row]:
        """The last 200 workers, the newest first."""
        return self._all(sa.select(workers).order_by(workers.c.seen_at.desc()).limit(200))

    def alive_workers(self) -> Sequence[Row]:
        """Workers that were not given up."""
        return self._all(
            sa.select(workers.c.id, workers.c.beats, workers.c.devices, workers.c.seen_at).where(workers.c.lost.is_(False))
        )

    def usage(self, owner: str | None, since: str) -> Sequence[Row]:
        """By day and device; of every user when `owner` is None."""
        query = sa.select(usage, owners.c.name).join(owners, owners.c.id == usage.c.owner).where(usage.c.day >= since)
        if owner is not None:
            query = query.where(usage.c.owner == owner)
        return self._all(query.order_by(usage.c.day, owners.c.name, usage.c.device))

    def owner(self, owner: str) -> Row:
        """The user's row."""
        return self._all(sa.select(owners).where(owners.c.id == owner))[0]

    def vendor_tasks(self, state: str | None, limit: int) -> Sequence[Row]:
        """Newest first."""
        query = sa.select(vendor_tasks).order_by(vendor_tasks.c.created_at.desc()).limit(limit)
        return self._all(query if state is None else query.where(vendor_tasks.c.state == state))

    def unresolved_vendor_tasks(self) -> int:
        """How many tasks may or may not have reached their vendor, for longer than a sending takes."""
        return int(self._all(sa.select(sa.func.count()).select_from(vendor_tasks).where(vendor_tasks.c.state == "intent"))[0][0])

    def vendor_task(self, task: str) -> tuple[Row, bool]:
        """A task, and whether one of its jobs is still wanted."""
        row = self._first(sa.select(vendor_tasks).where(vendor_tasks.c.id == task))
        if row is None:
            raise ServiceError("no such task", status=404, code="not_found", value=task)
        members = sa.select(jobs.c.seq).join(vendor_members, vendor_members.c.seq == jobs.c.seq)
        wanted = members.where(vendor_members.c.task == task, jobs.c.state.in_(("queued", "running"))).limit(1)
        return row, bool(self._all(wanted))

    def audit(self, limit: int) -> Sequence[Row]:
        """The last lines of the audit log, the newest first."""
        return self._all(sa.select(audit).order_by(audit.c.seq.desc()).limit(limit))

    def states(self, batch_ids: Sequence[str], job_ids: Sequence[str]) -> Sequence[Row]:
        """`(id, batch, state)` of jobs."""
        query = sa.select(jobs.c.id, jobs.c.batch, jobs.c.state)
        return self._all(query.where(jobs.c.id.in_(job_ids) | jobs.c.batch.in_(batch_ids)))


_IN_USE = (
    api_keys.c.revoked_at.is_(None),
    sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > sa.bindparam("now")),
    owners.c.disabled_at.is_(None),
)
_KEY = (
    sa.select(api_keys.c.prefix, api_keys.c.owner, api_keys.c.scopes, owners.c.name)
    .join(owners, owners.c.id == api_keys.c.owner)
    .where(api_keys.c.digest == sa.bindparam("digest"), *_IN_USE)
)
_SESSION = (
    sa.select(api_keys.c.prefix, api_keys.c.owner, api_keys.c.scopes, owners.c.name)
    .join(sessions, sessions.c.prefix == api_keys.c.prefix)
    .join(owners, owners.c.id == api_keys.c.owner)
    .where(sessions.c.digest == sa.bindparam("digest"), sessions.c.expires_at > sa.bindparam("now"), *_IN_USE)
)
_JOB = sa.select(jobs).where(jobs.c.id == sa.bindparam("id"), jobs.c.owner == sa.bindparam("owner"))
_RESULT = sa.select(results.c.payload).where(results.c.seq == sa.bindparam("seq"))
_FLOWS = sa.select(flows.c.owner, flows.c.lane, flows.c.queued, flows.c.vtime).where(
    flows.c.device == sa.bindparam("device"), flows.c.queued > 0
)
_EARLIER = (
    sa.select(jobs.c.seq)
    .where(
        *(jobs.c[name] == sa.bindparam(name) for name in ("device", "owner", "lane")), QUEUED_SQL, jobs.c.seq < sa.bindparam("seq")
    )
    .limit(100_000)
    .subquery()
)
_SOME_QUEUED = sa.select(jobs.c.estimate_s).where(jobs.c.device == sa.bindparam("device"), QUEUED_SQL).limit(1000).subquery()
_MEAN_COST = sa.select(sa.func.avg(_SOME_QUEUED.c.estimate_s))
_AHEAD = sa.select(sa.func.count()).select_from(_EARLIER)
