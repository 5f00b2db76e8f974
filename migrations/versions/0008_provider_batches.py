"""Provider batches: a lane's samples by way of a provider's batch API"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_OPEN = sa.text("status NOT IN ('collected', 'failed', 'cancelled')")


def upgrade() -> None:
    op.create_table(
        "provider_batch",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("teacher", sa.SmallInteger(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("provider_id", sa.String(), nullable=True),
        sa.Column("confirmed", sa.Boolean(), nullable=False),
        sa.Column("rejected", sa.JSON(), nullable=False),
        sa.Column("n_requests", sa.Integer(), nullable=False),
        sa.Column("n_samples", sa.Integer(), nullable=False),
        sa.Column("n_completed", sa.Integer(), nullable=False),
        sa.Column("n_failed", sa.Integer(), nullable=False),
        sa.Column("provider_status", sa.String(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("owner", sa.String(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("next_at", sa.Double(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("submitting_at", sa.Double(), nullable=True),
        sa.Column("submitted_at", sa.Double(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("collected_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_provider_batch_job_id_job")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_provider_batch")),
    )
    op.create_index("ix_provider_batch_job_id_id", "provider_batch", ["job_id", "id"])
    op.create_index(
        "ix_provider_batch_open", "provider_batch", ["next_at"], postgresql_where=_OPEN, sqlite_where=_OPEN
    )
    op.add_column("lane", sa.Column("execution", sa.String(), nullable=False, server_default="calls"))
    op.add_column("shard", sa.Column("provider_batch_id", sa.String(), nullable=True))
    op.add_column("shard", sa.Column("batch_rounds", sa.SmallInteger(), nullable=False, server_default="0"))
    op.create_index(
        "ix_shard_provider_batch_id",
        "shard",
        ["provider_batch_id"],
        postgresql_where=sa.text("provider_batch_id IS NOT NULL"),
        sqlite_where=sa.text("provider_batch_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_shard_provider_batch_id", "shard")
    op.drop_column("shard", "batch_rounds")
    op.drop_column("shard", "provider_batch_id")
    op.drop_column("lane", "execution")
    op.drop_table("provider_batch")
