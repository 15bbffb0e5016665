"""Questions about everything but jobs: keys, users, devices, workers, usage, vendors' tasks, webhooks, the audit log.

Answered over the reading connections, on a thread that may block for a moment.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from qpeft.errors import ServiceError
from qpeft.service.store import webhooks as webhook_store
from qpeft.service.store.schema import (
    Row,
    api_keys,
    audit,
    calibrations,
    counters,
    device_users,
    devices,
    flows,
    jobs,
    owners,
    reservations,
    sessions,
    submitted,
    usage,
    vendor_members,
    vendor_tasks,
    webhooks,
    workers,
)


def stamp(seconds: float | None) -> str | None:
    """RFC 3339 in UTC, milliseconds."""
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Directory:
    """Who and what there is.

    Args:
        engine: the reading connections.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def _all(self, query: sa.Select[Any], values: dict[str, Any] | None = None) -> Sequence[Row]:
        try:
            with self.engine.connect() as connection:
                return connection.execute(query, values or {}).all()
        except sa.exc.DataError as error:  # such as NUL in text, for PostgreSQL: nothing stored has it
            raise ServiceError("nothing has such a name", status=404, code="not_found") from error
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

    def clock_seen(self) -> float:
        """The time that the service last believed in, in seconds since 1970; the newest job's where none is written, else 0."""
        noted = self._first(sa.select(counters.c.value).where(counters.c.name == "clock"))
        newest = noted or self._first(sa.select(jobs.c.created_at).order_by(jobs.c.seq.desc()).limit(1))
        return 0.0 if newest is None else float(newest[0])

    def ping(self) -> None:
        """Whether the database answers."""
        self._all(sa.select(sa.literal(1)))

    def key(self, digest: bytes, now: float) -> Row | None:
        """A key in use: not revoked, not expired, its user not disabled.

        Args:
            digest: SHA-256 of the key.
            now: seconds since 1970.

        Returns:
            `(prefix, owner, scopes, name)`, or None.
        """
        return self._first(_KEY, {"digest": digest, "now": now})

    def session(self, digest: bytes, now: float) -> Row | None:
        """The key that a session of the dashboard stands for, while both are in use.

        Args:
            digest: SHA-256 of the session's cookie.
            now: seconds since 1970.

        Returns:
            `(prefix, owner, scopes, name)`, or None.
        """
        return self._first(_SESSION, {"digest": digest, "now": now})

    def keys(self) -> Sequence[Row]:
        """Every key with its user's name, the oldest first."""
        columns = (api_keys.c.prefix, api_keys.c.scopes, api_keys.c.created_at, api_keys.c.revoked_at, api_keys.c.expires_at)
        query = sa.select(*columns, owners.c.name)
        return self._all(query.join(owners, owners.c.id == api_keys.c.owner).order_by(api_keys.c.created_at))

    def users(self) -> Sequence[Row]:
        """Every user, by name."""
        return self._all(sa.select(owners).order_by(owners.c.name))

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
        """What is queued on the device, by user and lane."""
        return self._all(FLOWS_OF_DEVICE, {"device": device})

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
        """Usage by day and device.

        Args:
            owner: id of the user; None for every user.
            since: first day, as `YYYY-MM-DD`.
        """
        query = sa.select(usage, owners.c.name).join(owners, owners.c.id == usage.c.owner).where(usage.c.day >= since)
        if owner is not None:
            query = query.where(usage.c.owner == owner)
        return self._all(query.order_by(usage.c.day, owners.c.name, usage.c.device))

    def submitted(self, owner: str | None, since: str) -> Sequence[Row]:
        """Circuits and shots that were submitted by day, the newest first: what counts against the daily quotas.

        Args:
            owner: id of the user; None for every user.
            since: first day, as `YYYY-MM-DD`.
        """
        query = sa.select(submitted, *(owners.c[name] for name in ("name", "max_day_circuits", "max_day_shots")))
        query = query.join(owners, owners.c.id == submitted.c.owner).where(submitted.c.day >= since)
        if owner is not None:
            query = query.where(submitted.c.owner == owner)
        return self._all(query.order_by(submitted.c.day.desc(), owners.c.name))

    def owner(self, owner: str) -> Row:
        """The user's row."""
        return self._all(sa.select(owners).where(owners.c.id == owner))[0]

    def vendor_tasks(self, state: str | None, limit: int) -> Sequence[Row]:
        """Tasks sent to vendors, newest first.

        Args:
            state: tasks in this state only.
            limit: the most rows.
        """
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

    def keys_of(self, owner: str) -> Sequence[Row]:
        """A user's own keys in use, the oldest first."""
        columns = (api_keys.c.prefix, api_keys.c.scopes, api_keys.c.created_at, api_keys.c.expires_at)
        mine = sa.select(*columns).where(api_keys.c.owner == owner, api_keys.c.revoked_at.is_(None))
        return self._all(mine.order_by(api_keys.c.created_at))

    def access(self, device: str) -> list[str]:
        """Names of the users that are on a device's access list."""
        listed = sa.select(owners.c.name).join(device_users, device_users.c.owner == owners.c.id)
        return [row.name for row in self._all(listed.where(device_users.c.device == device).order_by(owners.c.name))]

    def allowed_devices(self, owner: str) -> set[str]:
        """Restricted devices that the user may use."""
        return {row.device for row in self._all(sa.select(device_users.c.device).where(device_users.c.owner == owner))}

    def reservations(self, device: str | None, since: float) -> Sequence[Row]:
        """Reservations that end after `since`, of one device or of all, with their users' names, the next first."""
        query = sa.select(reservations, owners.c.name).join(owners, owners.c.id == reservations.c.owner)
        query = query.where(reservations.c.ends_at > since).order_by(reservations.c.starts_at)
        return self._all(query if device is None else query.where(reservations.c.device == device))

    def webhooks(self, owner: str) -> Sequence[Row]:
        """A user's webhooks, the oldest first."""
        return self._all(sa.select(webhooks).where(webhooks.c.owner == owner).order_by(webhooks.c.created_at))

    def webhooks_are_due(self, now: float) -> bool:
        """Whether a webhook has something to deliver."""
        return bool(self._all(webhook_store.due(now).limit(1)))

    def audit_since(self, after: int, limit: int) -> Sequence[Row]:
        """Lines of the audit log, the oldest first.

        Args:
            after: lines with a larger `seq` only.
            limit: the most lines.
        """
        return self._all(sa.select(audit).where(audit.c.seq > after).order_by(audit.c.seq).limit(limit))


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
FLOWS_OF_DEVICE = sa.select(flows.c.owner, flows.c.lane, flows.c.queued, flows.c.vtime).where(
    flows.c.device == sa.bindparam("device"), flows.c.queued > 0
)
