"""Which qubits of a chip running jobs occupy, as its worker told. Going back forgets it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this migration."""
    op.add_column("workers", sa.Column("places", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    """Undo this migration."""
    op.drop_column("workers", "places")
