"""What calls cost"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("teacher", sa.Column("price", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("lane", sa.Column("price", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("completion", sa.Column("cost_nanousd", sa.BigInteger(), nullable=True))
    for name in ("cost_nanousd", "unpriced"):
        op.add_column("counter", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    for name in ("cost_nanousd", "unpriced"):
        op.drop_column("counter", name)
    op.drop_column("completion", "cost_nanousd")
    op.drop_column("lane", "price")
    op.drop_column("teacher", "price")
