"""A job's progress as server-sent events."""

import asyncio
from collections.abc import AsyncIterator

import orjson
from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from app.api.dependencies import Reader, Reading, ResourcesDep
from app.api.jobs import JobId
from app.api.resources import Resources
from app.domain.lifecycle import ENDED
from app.services import jobs
from app.services.job_views import JobView
from app.services.projects import Caller

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

EVERY_SECONDS = 1.0


@router.get(
    "/{job_id}/events",
    summary="Watch a job",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
def watch_job(session: Reading, who: Reader, given: ResourcesDep, job_id: JobId) -> StreamingResponse:
    """Server-sent events: `progress` each second with the job as JSON, `ended` when it has ended, then the stream ends.

    ```sh
    curl -sN "http://127.0.0.1:8321/v1/jobs/$JOB/events" -H "Authorization: Bearer $RETORT_API_KEY"
    ```
    """
    first = jobs.get(session, who.project_id, job_id)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(given, who, first), media_type="text/event-stream", headers=headers)


async def _events(given: Resources, who: Caller, job: JobView) -> AsyncIterator[bytes]:
    number = 0
    while True:
        ended = job.status in ENDED
        yield _event("ended" if ended else "progress", number, job.model_dump_json().encode())
        if ended:
            return
        await asyncio.sleep(EVERY_SECONDS)
        if given.stopping():
            return  # the client asks again, and finds the server that comes after this one
        number += 1
        try:
            job = await run_in_threadpool(_read, given, who.project_id, job.id)
        except SQLAlchemyError:
            detail = "the database does not answer; the stream goes on when it does"
            yield _event("problem", number, orjson.dumps({"detail": detail}))


def _read(given: Resources, project_id: str, job_id: str) -> JobView:
    with Session(given.engine) as session:
        return jobs.get(session, project_id, job_id)


def _event(kind: str, number: int, data: bytes) -> bytes:
    return b"event: %s\nid: %d\ndata: %s\n\n" % (kind.encode(), number, data)
