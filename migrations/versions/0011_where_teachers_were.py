"""Host names of the addresses that a teacher had before"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("teacher", sa.Column("past_hosts", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("teacher", "past_hosts")
