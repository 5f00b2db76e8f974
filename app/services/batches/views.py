"""Batches of a job at its providers, as they are read."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from app.db import jobs as job_rows
from app.db import provider_batches
from app.db.batch_models import ProviderBatch
from app.domain.lifecycle import BATCH_OVER, ProviderBatchStatus
from app.errors import NotFound
from app.services.job_views import moment


class ProviderBatchView(BaseModel):
    """A batch at a provider: missing samples of a job, submitted together."""

    model_config = ConfigDict(frozen=True)

    id: str
    teacher: int = Field(description="Position in the job's `teachers`.")
    status: ProviderBatchStatus
    provider_id: str | None = Field(
        description="Its id at the provider; null: the provider does not have it."
    )
    provider_status: str | None = Field(description="In the provider's own words.")
    n_requests: int
    n_samples: int
    n_completed: int = Field(description="Requests, as the provider tells.")
    n_failed: int
    error: str | None = Field(description="Why it failed, or what its next step waits for.")
    created_at: datetime
    submitted_at: datetime | None
    ended_at: datetime | None = Field(description="When the provider was seen to have ended.")
    collected_at: datetime | None = Field(description="When its results were recorded.")
    next_look_at: datetime | None = Field(description="Null: it is over.")


def page(
    session: Session, project_id: str, job_id: str, after: str | None, limit: int
) -> list[ProviderBatchView]:
    """In order of planning."""
    if job_rows.get(session, project_id, job_id) is None:
        raise NotFound(f"there is no job {job_id!r} in this project")
    return [_view(row) for row in provider_batches.page(session, job_id, after, limit)]


def _view(row: ProviderBatch) -> ProviderBatchView:
    status = ProviderBatchStatus(row.status)
    return ProviderBatchView(
        id=row.id,
        teacher=row.teacher,
        status=status,
        provider_id=row.provider_id,
        provider_status=row.provider_status,
        n_requests=row.n_requests,
        n_samples=row.n_samples,
        n_completed=row.n_completed,
        n_failed=row.n_failed,
        error=row.error,
        created_at=moment(row.created_at),
        submitted_at=_moment(row.submitted_at),
        ended_at=_moment(row.ended_at),
        collected_at=_moment(row.collected_at),
        next_look_at=None if status in BATCH_OVER else moment(row.next_at),
    )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else moment(seconds)
