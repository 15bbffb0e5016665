"""Priorities, who may use a device and when, identities of an OpenID provider, webhooks.

Going back forgets them. It is refused while a device is restricted, since everybody could use it again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

Big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
QUEUED = sa.text("state = 'queued'")


def upgrade() -> None:
    """Apply this migration."""
    op.add_column("jobs", sa.Column("priority", sa.SmallInteger(), nullable=False, server_default="0"))
    op.drop_index("jobs_queue", table_name="jobs")
    columns = ["device", "owner", "lane", "priority", "seq"]
    op.create_index("jobs_queue", "jobs", columns, sqlite_where=QUEUED, postgresql_where=QUEUED)
    op.add_column("devices", sa.Column("restricted", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "device_users",
        sa.Column("device", sa.String(128), primary_key=True),
        sa.Column("owner", sa.String(32), primary_key=True),
    )
    op.create_table(
        "reservations",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("device", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("starts_at", sa.Double(), nullable=False),
        sa.Column("ends_at", sa.Double(), nullable=False),
        sa.Column("note", sa.String(200), nullable=False),
    )
    op.create_index("reservations_by_end", "reservations", ["device", "ends_at"])
    op.create_table(
        "identities",
        sa.Column("issuer", sa.String(400), primary_key=True),
        sa.Column("subject", sa.String(255), primary_key=True),
        sa.Column("owner", sa.String(32), nullable=False),
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(32), nullable=False, index=True),
        sa.Column("url", sa.String(1000), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("changed", Big, nullable=False),
        sa.Column("seq", Big, nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failing_since", sa.Double(), nullable=True),
        sa.Column("disabled_at", sa.Double(), nullable=True),
        sa.Column("error", sa.String(500), nullable=False),
    )


def downgrade() -> None:
    """Undo this migration."""
    shut = sa.text("SELECT count(*) FROM devices WHERE restricted")
    if n := op.get_bind().execute(shut).scalar_one():
        raise RuntimeError(f"{n} restricted devices would be open to everybody: qpeft service access DEVICE --open first")
    waiting = sa.text("SELECT count(*) FROM jobs WHERE state = 'running' AND worker = 'vendor'")
    if n := op.get_bind().execute(waiting).scalar_one():
        raise RuntimeError(f"{n} jobs wait for word about their vendor's tasks: qpeft service vendor-tasks resolve first")
    for name in ("webhooks", "identities", "reservations", "device_users"):
        op.drop_table(name)
    op.drop_column("devices", "restricted")
    op.drop_index("jobs_queue", table_name="jobs")
    op.create_index("jobs_queue", "jobs", ["device", "owner", "lane", "seq"], sqlite_where=QUEUED, postgresql_where=QUEUED)
    op.drop_column("jobs", "priority")
