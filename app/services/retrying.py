"""Failed completions of a job are made again, by kind of error."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine

from app.db import audit
from app.db.retrying import retry_portion
from app.db.session import session, transaction
from app.domain.lifecycle import JobStatus
from app.errors import IllegalTransition
from app.services import jobs
from app.services.job_views import JobView

_SHARDS_AT_ONCE = 200


class RetryView(BaseModel):
    model_config = ConfigDict(frozen=True)

    n_retried: int = Field(description="Failed completions that will be made again.")
    job: JobView


def retry(engine: Engine, project_id: str, key_id: str, job_id: str, kinds: Sequence[str]) -> RetryView:
    """Ask again for failed rows, all or of these kinds, in short transactions. A job that has ended runs again.

    Killed in between, it has done a part; asked again, it does the rest.
    """
    with session(engine, writes=False) as work:
        if jobs.get(work, project_id, job_id).status == JobStatus.CANCELLED:
            raise IllegalTransition("a cancelled job makes nothing again: submit a new one")
    n_retried, after = 0, None
    while True:
        with transaction(engine) as connection:
            portion = retry_portion(connection, job_id, kinds, after, _SHARDS_AT_ONCE)
            if after is None:
                event = audit.Event("job.retry", job_id, {"kinds": list(kinds)})
                audit.append(connection, project_id, key_id, [event])
        n_retried += portion.n_retried
        after = portion.last
        if after is None:
            break
    with session(engine, writes=False) as work:
        return RetryView(n_retried=n_retried, job=jobs.get(work, project_id, job_id))
