"""What was trained on an export, and how many generations lie behind a teacher"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "export_use",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("export_id", sa.String(), nullable=False),
        sa.Column("student", sa.String(), nullable=False),
        sa.Column("revision", sa.String(), nullable=True),
        sa.Column("run", sa.String(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["export_id"], ["export.id"], name=op.f("fk_export_use_export_id_export")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_export_use")),
    )
    op.create_index(op.f("ix_export_use_export_id_id"), "export_use", ["export_id", "id"])
    op.add_column("teacher", sa.Column("trained_on", sa.JSON(none_as_null=True), nullable=True))
    op.add_column(
        "lane", sa.Column("generation_depth", sa.SmallInteger(), server_default="0", nullable=False)
    )


def downgrade() -> None:
    op.drop_column("lane", "generation_depth")
    op.drop_column("teacher", "trained_on")
    op.drop_index(op.f("ix_export_use_export_id_id"), table_name="export_use")
    op.drop_table("export_use")
