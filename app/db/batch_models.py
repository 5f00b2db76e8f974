"""The table of batches at providers. Times are seconds since 1970 by the database's clock."""

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, Integer, SmallInteger, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.models import Base


class ProviderBatch(Base):
    """A batch at a provider: the missing samples of some shards of one lane, submitted together."""

    __tablename__ = "provider_batch"
    __table_args__ = (
        Index("ix_provider_batch_job_id_id", "job_id", "id"),
        Index(
            "ix_provider_batch_open",
            "next_at",
            postgresql_where=text("status NOT IN ('collected', 'failed', 'cancelled')"),
            sqlite_where=text("status NOT IN ('collected', 'failed', 'cancelled')"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"))
    teacher: Mapped[int] = mapped_column(SmallInteger)
    status: Mapped[str]
    provider_id: Mapped[str | None]  # its id at the provider; None: not known (yet)
    confirmed: Mapped[bool] = mapped_column(default=False)  # that the provider's batch is this one
    rejected: Mapped[list[Any]] = mapped_column(JSON)  # batches there that looked like this one and are not
    n_requests: Mapped[int] = mapped_column(Integer, default=0)
    n_samples: Mapped[int] = mapped_column(Integer, default=0)
    n_completed: Mapped[int] = mapped_column(Integer, default=0)  # requests, as the provider tells
    n_failed: Mapped[int] = mapped_column(Integer, default=0)
    provider_status: Mapped[str | None]
    error: Mapped[str | None] = mapped_column(Text)
    owner: Mapped[str | None]
    epoch: Mapped[int] = mapped_column(default=0)  # the fencing token: every later write checks it
    lease_until: Mapped[float | None]
    next_at: Mapped[float]  # looked at then
    tries: Mapped[int] = mapped_column(Integer, default=0)  # steps that failed, one after the other
    created_at: Mapped[float]
    submitting_at: Mapped[float | None]  # first time that it was about to be handed over
    submitted_at: Mapped[float | None]
    ended_at: Mapped[float | None]  # at the provider, as it was seen
    collected_at: Mapped[float | None]
