"""Device limits and costs reported by workers. The downgrade loses nothing: workers report them again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this migration."""
    op.add_column("devices", sa.Column("info", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    """Undo this migration."""
    op.drop_column("devices", "info")
