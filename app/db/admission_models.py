"""Tables of admission: rates and their use, servers as workers see them, budgets."""

from typing import Any

from sqlalchemy import JSON, ForeignKey, Integer, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.models import Base


class RateStep(Base):
    """What was granted of a teacher's rates in one step of time (`app.db.rates`): a minute of steps is what is used."""

    __tablename__ = "rate_step"

    teacher_id: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    requests: Mapped[int] = mapped_column(default=0)
    input_tokens: Mapped[int] = mapped_column(default=0)
    output_tokens: Mapped[int] = mapped_column(default=0)


class TeacherPace(Base):
    """What all workers know of how a teacher wants to be treated. Its row is the lock of the teacher's rates."""

    __tablename__ = "teacher_pace"

    teacher_id: Mapped[str] = mapped_column(primary_key=True)
    held_until: Mapped[float | None]  # nothing is asked before then
    factor: Mapped[float] = mapped_column(default=1.0)  # of the rates, at `cut_at`; grows back with time
    cut_at: Mapped[float | None]
    throttled: Mapped[int] = mapped_column(default=0)  # refusals as too much, in all
    announced: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # limits per minute


class ReplicaState(Base):
    """A server of a teacher as one worker sees it."""

    __tablename__ = "replica_state"

    teacher_id: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str] = mapped_column(primary_key=True)  # empty: the driver's own
    worker_id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]  # up | failing | down
    reason: Mapped[str | None] = mapped_column(Text)
    room: Mapped[float]  # samples that may be in flight
    in_flight: Mapped[int] = mapped_column(Integer)
    running: Mapped[int | None] = mapped_column(Integer)  # in the server, of all clients
    waiting: Mapped[int | None] = mapped_column(Integer)
    lease_until: Mapped[float]


class BudgetUse(Base):
    """What a job's calls have used and what is reserved for them, per worker (`app.db.budgets`).

    The row of worker '' holds what workers that are gone have used and lost; it is the lock of the job's budget.
    """

    __tablename__ = "budget_use"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    worker_id: Mapped[str] = mapped_column(primary_key=True)
    used_requests: Mapped[int] = mapped_column(default=0)
    used_tokens: Mapped[int] = mapped_column(default=0)
    used_nanousd: Mapped[int] = mapped_column(default=0)
    held_requests: Mapped[int] = mapped_column(default=0)
    held_tokens: Mapped[int] = mapped_column(default=0)
    held_nanousd: Mapped[int] = mapped_column(default=0)
    lost_requests: Mapped[int] = mapped_column(default=0)
    lost_tokens: Mapped[int] = mapped_column(default=0)
    lost_nanousd: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[float | None]
