"""Bytes, money and time that a user may take; keys that expire; indexes for purging and for filtered lists.

Going back forgets the bounds. It is refused while a user is disabled or a key has expired: both would work again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

Big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INDEXES = (
    ("jobs_of_state", "jobs", ["owner", "state", "seq"]),
    ("jobs_of_device", "jobs", ["owner", "device", "seq"]),
    ("batches_of_owner", "batches", ["owner", "created_at"]),
    ("batches_by_time", "batches", ["created_at"]),
    ("idempotency_by_time", "idempotency", ["created_at"]),
    ("programs_by_use", "programs", ["used_at"]),
)


def upgrade() -> None:
    """Apply this migration."""
    op.add_column("jobs", sa.Column("bytes", Big, nullable=False, server_default="0"))
    op.add_column("owners", sa.Column("stored_bytes", Big, nullable=False, server_default="0"))
    op.add_column("owners", sa.Column("max_stored_bytes", Big, nullable=True))
    op.add_column("owners", sa.Column("max_vendor_shots", Big, nullable=True))
    op.add_column("owners", sa.Column("vendor_shots", Big, nullable=False, server_default="0"))
    op.add_column("owners", sa.Column("disabled_at", sa.Double(), nullable=True))
    op.add_column("api_keys", sa.Column("expires_at", sa.Double(), nullable=True))
    op.add_column("programs", sa.Column("used_at", sa.Double(), nullable=False, server_default="0"))
    op.execute("UPDATE programs SET used_at = (SELECT coalesce(max(created_at), 0) FROM jobs)")
    for name, table, columns in INDEXES:
        op.create_index(name, table, columns)


def downgrade() -> None:
    """Undo this migration."""
    shut = sa.text(
        "SELECT (SELECT count(*) FROM owners WHERE disabled_at IS NOT NULL) + "
        "(SELECT count(*) FROM api_keys WHERE expires_at IS NOT NULL AND revoked_at IS NULL)"
    )
    if n := op.get_bind().execute(shut).scalar_one():
        raise RuntimeError(f"{n} disabled users or keys with an end would work for ever: revoke those keys before going back")
    for name, table, _ in INDEXES:
        op.drop_index(name, table_name=table)
    for table, column in (
        ("programs", "used_at"),
        ("api_keys", "expires_at"),
        ("owners", "disabled_at"),
        ("owners", "vendor_shots"),
        ("owners", "max_vendor_shots"),
        ("owners", "max_stored_bytes"),
        ("owners", "stored_bytes"),
        ("jobs", "bytes"),
    ):
        op.drop_column(table, column)
