"""Admission: rates, replicas, budgets"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_RATES = ("max_requests_per_minute", "max_input_tokens_per_minute", "max_output_tokens_per_minute")


def _counts(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger(), nullable=False) for name in names]


def upgrade() -> None:
    for name in _RATES:
        op.add_column("teacher", sa.Column(name, sa.BigInteger(), nullable=True))
    op.add_column("teacher", sa.Column("replicas", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("slot_grant", sa.Column("wanted", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "rate_step",
        sa.Column("teacher_id", sa.String(), nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        *_counts("requests", "input_tokens", "output_tokens"),
        sa.PrimaryKeyConstraint("teacher_id", "step", name=op.f("pk_rate_step")),
    )
    op.create_table(
        "teacher_pace",
        sa.Column("teacher_id", sa.String(), nullable=False),
        sa.Column("held_until", sa.Double(), nullable=True),
        sa.Column("factor", sa.Double(), nullable=False),
        sa.Column("cut_at", sa.Double(), nullable=True),
        *_counts("throttled"),
        sa.Column("announced", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("teacher_id", name=op.f("pk_teacher_pace")),
    )
    op.create_table(
        "replica_state",
        sa.Column("teacher_id", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("room", sa.Double(), nullable=False),
        sa.Column("in_flight", sa.Integer(), nullable=False),
        sa.Column("running", sa.Integer(), nullable=True),
        sa.Column("waiting", sa.Integer(), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("teacher_id", "url", "worker_id", name=op.f("pk_replica_state")),
    )
    op.create_table(
        "budget_use",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=False),
        *_counts(
            *(
                f"{kind}_{what}"
                for kind in ("used", "held", "lost")
                for what in ("requests", "tokens", "nanousd")
            )
        ),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_budget_use_job_id_job")),
        sa.PrimaryKeyConstraint("job_id", "worker_id", name=op.f("pk_budget_use")),
    )


def downgrade() -> None:
    for table in ("budget_use", "replica_state", "teacher_pace", "rate_step"):
        op.drop_table(table)
    op.drop_column("slot_grant", "wanted")
    op.drop_column("teacher", "replicas")
    for name in reversed(_RATES):
        op.drop_column("teacher", name)
