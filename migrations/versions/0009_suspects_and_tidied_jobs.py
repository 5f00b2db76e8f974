"""Prompts that workers die over, and what housekeeping has done about ended jobs"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("shard", sa.Column("suspect", sa.BigInteger(), nullable=True))
    op.add_column("job", sa.Column("tidied", sa.SmallInteger(), server_default="0", nullable=False))
    op.create_index("ix_job_tidied_ended_at", "job", ["tidied", "ended_at"])


def downgrade() -> None:
    op.drop_index("ix_job_tidied_ended_at", "job")
    op.drop_column("job", "tidied")
    op.drop_column("shard", "suspect")
