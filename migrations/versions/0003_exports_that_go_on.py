"""Exports that go on: a watermark, progress, files kept one by one"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ACTIVE = "status IN ('ready', 'running', 'parked')"


def upgrade() -> None:
    op.add_column("export", sa.Column("layout", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("export", sa.Column("watermark", sa.Double(), nullable=True))
    op.add_column("export", sa.Column("n_seen", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("export", sa.Column("n_bytes", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("export", sa.Column("rows_per_second", sa.Double(), nullable=True))
    op.drop_index("ix_export_active", table_name="export")
    op.create_index(
        "ix_export_active",
        "export",
        ["status"],
        postgresql_where=sa.text(_ACTIVE),
        sqlite_where=sa.text(_ACTIVE),
    )
    op.add_column("export_file", sa.Column("path", sa.String(), nullable=True))
    op.add_column("export_file", sa.Column("split", sa.String(), nullable=True))
    op.add_column("export_file", sa.Column("place", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("export_file", sa.Column("counts", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    for column in ("counts", "place", "split", "path"):
        op.drop_column("export_file", column)
    op.drop_index("ix_export_active", table_name="export")
    before = sa.text("status IN ('ready', 'running')")
    op.create_index("ix_export_active", "export", ["status"], postgresql_where=before, sqlite_where=before)
    for column in ("rows_per_second", "n_bytes", "n_seen", "watermark", "layout"):
        op.drop_column("export", column)
