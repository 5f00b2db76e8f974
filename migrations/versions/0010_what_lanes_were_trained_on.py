"""What a job's teacher was trained on, as it was told when the job was submitted"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("lane", sa.Column("trained_on", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("lane", "trained_on")
