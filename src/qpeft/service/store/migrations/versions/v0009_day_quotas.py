"""Daily quotas: what each user submits on each day, and the most that it may be. Going back forgets both."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

Big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Apply this migration."""
    op.add_column("owners", sa.Column("max_day_circuits", Big, nullable=True))
    op.add_column("owners", sa.Column("max_day_shots", Big, nullable=True))
    op.create_table(
        "submitted",
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("owner", sa.String(32), primary_key=True),
        sa.Column("circuits", Big, nullable=False),
        sa.Column("shots", Big, nullable=False),
    )


def downgrade() -> None:
    """Undo this migration."""
    op.drop_table("submitted")
    op.drop_column("owners", "max_day_shots")
    op.drop_column("owners", "max_day_circuits")
