"""Tables of vendor tasks. The downgrade is refused while paid tasks may be unfinished at a vendor."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

Big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Apply this migration."""
    op.create_table(
        "vendor_tasks",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("device", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("vendor_job", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.String(length=1000), nullable=False),
        sa.Column("circuits", Big, nullable=False),
        sa.Column("shots", Big, nullable=False),
        sa.Column("calibration", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("vendor_tasks_by_time", "vendor_tasks", ["created_at"])
    op.create_table(
        "vendor_members",
        sa.Column("seq", Big, autoincrement=False, nullable=False),
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("vendor_members_of_task", "vendor_members", ["task"])


def downgrade() -> None:
    """Undo this migration."""
    at_vendor = sa.text(
        "SELECT count(*) FROM vendor_members JOIN jobs ON jobs.seq = vendor_members.seq "
        "WHERE jobs.state IN ('queued', 'running', 'cancelling')"
    )
    if n := op.get_bind().execute(at_vendor).scalar_one():
        raise RuntimeError(f"{n} unfinished jobs are with a vendor: let them end, or cancel them, before going back")
    op.drop_table("vendor_members")
    op.drop_table("vendor_tasks")
