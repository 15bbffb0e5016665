"""The tables. Times are seconds since 1970 (UTC); `params` are little-endian float64, row by row.

`jobs.seq` is the order of arrival. `jobs.changed` grows with every change of a job, in commit order: what a reader has seen
up to some `(changed, seq)` never changes behind it, which is all that a resumable stream of events needs.
Conditions of partial indexes are literals, here and in the queries: SQLite uses such an index only when it can see that the
query's condition implies the index's.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import sqlalchemy as sa

metadata = sa.MetaData()


def storable(text: str, limit: int) -> str:
    """`text` without what a database refuses (NUL, lone surrogates), at most `limit` characters."""
    return text[:limit].replace("\0", "\ufffd").encode(errors="replace").decode()


TERMINAL: Final = ("succeeded", "failed", "cancelled", "expired")
HELD: Final = ("running", "cancelling")
STATES: Final = ("queued", *HELD, *TERMINAL)

QUEUED_SQL: Final = sa.text("state = 'queued'")
HELD_SQL: Final = sa.text("state IN ('running', 'cancelling')")

Big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Real: sa.Double[float] = sa.Double()
Row: TypeAlias = sa.Row[*tuple[Any, ...]]

counters = sa.Table(
    "counters", metadata, sa.Column("name", sa.String(32), primary_key=True), sa.Column("value", Big, nullable=False)
)

owners = sa.Table(
    "owners",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False, unique=True),
    sa.Column("weight", Real, nullable=False),
    sa.Column("max_open_circuits", Big),
    sa.Column("open_circuits", Big, nullable=False),
    sa.Column("created_at", Real, nullable=False),
    sa.Column("stored_bytes", Big, nullable=False, server_default="0"),
    sa.Column("max_stored_bytes", Big),
    sa.Column("max_vendor_shots", Big),
    sa.Column("vendor_shots", Big, nullable=False, server_default="0"),
    sa.Column("disabled_at", Real),
    sa.Column("max_day_circuits", Big),
    sa.Column("max_day_shots", Big),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("prefix", sa.String(16), primary_key=True),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("owner", sa.String(32), nullable=False, index=True),
    sa.Column("scopes", sa.String(64), nullable=False),
    sa.Column("created_at", Real, nullable=False),
    sa.Column("revoked_at", Real),
    sa.Column("expires_at", Real),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("prefix", sa.String(16), nullable=False),
    sa.Column("expires_at", Real, nullable=False),
)

programs = sa.Table(
    "programs",
    metadata,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("format", sa.String(16), nullable=False),
    sa.Column("text", sa.LargeBinary, nullable=False),
    sa.Column("n_qubits", sa.Integer),
    sa.Column("n_params", sa.Integer),
    sa.Column("n_ops", sa.Integer, nullable=False),
    sa.Column("used_at", Real, nullable=False, server_default="0"),
    sa.Index("programs_by_use", "used_at"),
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(32), nullable=False, index=True),
    sa.Column("device", sa.String(128), nullable=False),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("n_jobs", sa.Integer, nullable=False),
    sa.Column("n_circuits", sa.Integer, nullable=False),
    sa.Column("created_at", Real, nullable=False),
    sa.Index("batches_of_owner", "owner", "created_at"),
    sa.Index("batches_by_time", "created_at"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("seq", Big, primary_key=True, autoincrement=False),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("owner", sa.String(32), nullable=False),
    sa.Column("device", sa.String(128), nullable=False),
    sa.Column("lane", sa.SmallInteger, nullable=False),
    sa.Column("batch", sa.String(32)),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("reason", sa.String(1000), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("program", sa.String(64), nullable=False),
    sa.Column("params", sa.LargeBinary, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("shots", sa.Integer),
    sa.Column("seed", Big),
    sa.Column("output", sa.String(16), nullable=False),
    sa.Column("observables", sa.LargeBinary),
    sa.Column("exclusive", sa.Boolean, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("worker", sa.String(32)),
    sa.Column("estimate_s", Real, nullable=False),
    sa.Column("device_s", Real, nullable=False),
    sa.Column("calibration", sa.String(64)),
    sa.Column("created_at", Real, nullable=False),
    sa.Column("started_at", Real),
    sa.Column("finished_at", Real),
    sa.Column("expires_at", Real),
    sa.Column("changed", Big, nullable=False),
    sa.Column("bytes", Big, nullable=False, server_default="0"),
    sa.Column("priority", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Index("jobs_of_state", "owner", "state", "seq"),
    sa.Index("jobs_of_device", "owner", "device", "seq"),
    sa.Index("jobs_queue", "device", "owner", "lane", "priority", "seq", sqlite_where=QUEUED_SQL, postgresql_where=QUEUED_SQL),
    sa.Index("jobs_held", "worker", sqlite_where=HELD_SQL, postgresql_where=HELD_SQL),
    sa.Index("jobs_of_owner", "owner", "seq"),
    sa.Index("jobs_changed", "owner", "changed", "seq"),
    sa.Index(
        "jobs_of_batch",
        "batch",
        "position",
        sqlite_where=sa.text("batch IS NOT NULL"),
        postgresql_where=sa.text("batch IS NOT NULL"),
    ),
    sa.Index(
        "jobs_expiring",
        "expires_at",
        sqlite_where=sa.text("expires_at IS NOT NULL AND state = 'queued'"),
        postgresql_where=sa.text("expires_at IS NOT NULL AND state = 'queued'"),
    ),
)

results = sa.Table(
    "results",
    metadata,
    sa.Column("seq", Big, primary_key=True, autoincrement=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("owner", sa.String(32), primary_key=True),
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("target", sa.String(32), nullable=False),
    sa.Column("created_at", Real, nullable=False),
    sa.Index("idempotency_by_time", "created_at"),
    sqlite_with_rowid=False,
)

flows = sa.Table(
    "flows",
    metadata,
    sa.Column("device", sa.String(128), primary_key=True),
    sa.Column("owner", sa.String(32), primary_key=True),
    sa.Column("lane", sa.SmallInteger, primary_key=True),
    sa.Column("vtime", Real, nullable=False),
    sa.Column("queued", Big, nullable=False),
    sqlite_with_rowid=False,
)

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("id", sa.String(128), primary_key=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(500), nullable=False),
    sa.Column("vtime", Real, nullable=False),
    sa.Column("calibration", sa.String(64)),
    sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("info", sa.LargeBinary),
    sa.Column("restricted", sa.Boolean, nullable=False, server_default=sa.false()),
)

device_users = sa.Table(
    "device_users",
    metadata,
    sa.Column("device", sa.String(128), primary_key=True),
    sa.Column("owner", sa.String(32), primary_key=True),
)

reservations = sa.Table(
    "reservations",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("device", sa.String(128), nullable=False),
    sa.Column("owner", sa.String(32), nullable=False),
    sa.Column("starts_at", Real, nullable=False),
    sa.Column("ends_at", Real, nullable=False),
    sa.Column("note", sa.String(200), nullable=False),
    sa.Index("reservations_by_end", "device", "ends_at"),
)

identities = sa.Table(
    "identities",
    metadata,
    sa.Column("issuer", sa.String(400), primary_key=True),
    sa.Column("subject", sa.String(255), primary_key=True),
    sa.Column("owner", sa.String(32), nullable=False),
)

webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(32), nullable=False, index=True),
    sa.Column("url", sa.String(1000), nullable=False),
    sa.Column("secret", sa.LargeBinary, nullable=False),
    sa.Column("created_at", Real, nullable=False),
    sa.Column("changed", Big, nullable=False),
    sa.Column("seq", Big, nullable=False),
    sa.Column("due_at", Real, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("failing_since", Real),
    sa.Column("disabled_at", Real),
    sa.Column("error", sa.String(500), nullable=False),
)

calibrations = sa.Table(
    "calibrations",
    metadata,
    sa.Column("device", sa.String(128), primary_key=True),
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("created_at", Real, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("owner", sa.String(32), primary_key=True),
    sa.Column("device", sa.String(128), primary_key=True),
    sa.Column("jobs", Big, nullable=False),
    sa.Column("circuits", Big, nullable=False),
    sa.Column("shots", Big, nullable=False),
    sa.Column("device_s", Real, nullable=False),
)

submitted = sa.Table(
    "submitted",
    metadata,
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("owner", sa.String(32), primary_key=True),
    sa.Column("circuits", Big, nullable=False),
    sa.Column("shots", Big, nullable=False),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(32), nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("devices", sa.String(4000), nullable=False),
    sa.Column("beats", Big, nullable=False),
    sa.Column("seen_at", Real, nullable=False),
    sa.Column("lost", sa.Boolean, nullable=False),
    sa.Column("places", sa.Text, nullable=False, server_default=""),
)

vendor_tasks = sa.Table(
    "vendor_tasks",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("device", sa.String(128), nullable=False),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("vendor_job", sa.String(200), nullable=False),
    sa.Column("reason", sa.String(1000), nullable=False),
    sa.Column("circuits", Big, nullable=False),
    sa.Column("shots", Big, nullable=False),
    sa.Column("calibration", sa.String(64)),
    sa.Column("created_at", Real, nullable=False),
    sa.Index("vendor_tasks_by_time", "created_at"),
)

vendor_members = sa.Table(
    "vendor_members",
    metadata,
    sa.Column("seq", Big, primary_key=True, autoincrement=False),
    sa.Column("task", sa.String(32), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Index("vendor_members_of_task", "task"),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("seq", Big, primary_key=True, autoincrement=False),
    sa.Column("at", Real, nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("act", sa.String(64), nullable=False),
    sa.Column("detail", sa.String(1000), nullable=False),
)
