"""Routes of jobs."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.dependencies import Reader, Reading, ResourcesDep, Writer, Writing, after_commit, note
from app.api.once import WriterOnce, json_answer
from app.api.paging import Cursor, Limit, Page, int_places, page_of, text_place
from app.db.audit import Event
from app.domain.lifecycle import JobStatus, ShardStatus
from app.recipes import JobSpec
from app.services import jobs, retrying
from app.services.batches import views as batch_views
from app.services.batches.views import ProviderBatchView
from app.services.budgets import JobChanges
from app.services.job_views import JobEstimate, JobView, ShardView
from app.services.retrying import RetryView

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

JobId = Annotated[str, Path(max_length=64, description="Id of a job, `job_…`.")]

_EXAMPLES: Any = {
    "with logprobs": {
        "value": {
            "prompt_set": "ps_01",
            "teachers": ["small"],
            "sampling": {"temperature": 0.7, "max_tokens": 256, "seed": 1},
            "n": 1,
            "top_logprobs": 20,
            "intended_use": {"research": True},
        }
    },
    "with an elicited reasoning trace": {
        "value": {
            "prompt_set": "ps_01",
            "teachers": ["small"],
            "n": 4,
            "elicit": {"max_reasoning_tokens": 256},
            "priority": 5,
            "max_in_flight": 32,
        }
    },
    "with a budget": {
        "value": {
            "prompt_set": "ps_01",
            "teachers": ["small"],
            "sampling": {"max_tokens": 512},
            "budget": {"max_tokens": 1_000_000, "max_requests": 2_000, "max_seconds": 86_400},
        }
    },
}


@router.post(
    "",
    status_code=201,
    response_model=JobView,
    responses={200: {"model": JobEstimate, "description": "With `dry_run`: what the job would be"}},
    summary="Submit a job",
)
def submit_job(
    once: WriterOnce,
    given: ResourcesDep,
    body: Annotated[JobSpec, Body(openapi_examples=_EXAMPLES)],
    dry_run: Annotated[bool, Query(description="Check and count only; nothing is stored.")] = False,
) -> Response:
    """A prompt set × teachers × sampling parameters × n × top_logprobs. Workers begin at once.

    The prompt set must be sealed, or `follow` be true. A prompt's own parameters go before the job's.

    The intended use is judged by the terms of the teachers and the licences of the prompts. A use that they forbid is
    refused (403, `policy-refusal`) with the clause, the teachers and prompts at fault, and how to go on; warnings are
    in `policy`. A `dry_run` tells all of this and refuses nothing.

    ```sh
    curl -s http://127.0.0.1:8321/v1/jobs -H "Authorization: Bearer $RETORT_API_KEY" \\
      -H 'Content-Type: application/json' -H 'Idempotency-Key: my-first-job' \\
      -d '{"prompt_set": "'$SET'", "teachers": ["small"], "top_logprobs": 20}'
    ```
    """
    who, session = once.caller, once.session
    if dry_run:
        found = jobs.estimate(session, who.project_id, body, given.shard_size, given.policy_rules)
        return json_answer(200, found.model_dump_json().encode())
    for teacher in (*body.teachers, None):
        after_commit(session, partial(given.wake, teacher))
    return once.answer(
        201,
        lambda: jobs.submit(session, who.project_id, who.key_id, body, given.shard_size, given.policy_rules),
        audit=_submitted,
    )


def _submitted(job: JobView) -> Event:
    return Event(
        "job.submit",
        job.id,
        {
            "prompt_set": job.prompt_set,
            "teachers": [lane.name for lane in job.teachers],
            "intended_use": job.intended_use.model_dump(),
            "decision": None if job.policy is None else job.policy.decision,
        },
    )


@router.get("", response_model=Page[JobView], summary="List jobs")
def list_jobs(
    session: Reading,
    who: Reader,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this status.")] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Page[JobView]:
    """Newest first, with their counts."""
    found = jobs.page(session, who.project_id, status, text_place("jobs", cursor), limit + 1)
    return page_of("jobs", found, limit, lambda job: [job.id])


@router.get("/{job_id}", response_model=JobView, summary="Read a job")
def read_job(session: Reading, who: Reader, job_id: JobId) -> JobView:
    """Counts, throughput, time left with its 95 % interval, and what it waits for. Costs the same at any size."""
    return jobs.get(session, who.project_id, job_id)


@router.patch("/{job_id}", response_model=JobView, summary="Change a job")
def change_job(
    session: Writing,
    who: Writer,
    given: ResourcesDep,
    job_id: JobId,
    body: Annotated[
        JobChanges,
        Body(
            openapi_examples={
                "a higher cap": {"value": {"budget": {"max_tokens": 2_000_000}}},
                "no cap of cost any more": {"value": {"budget": {"max_cost_usd": None}}},
            }
        ),
    ],
) -> JobView:
    """Its budget: a cap that is given takes the place of the old one, null lifts it.

    A job that is `parked` because its budget was reached goes on by itself. What is under way is never taken back: a
    cap that is lower than what was used parks the job. A first cap of requests, tokens or cost is refused (409) while
    calls are under way that nobody counted: pause the job first.

    ```sh
    curl -s -X PATCH "http://127.0.0.1:8321/v1/jobs/$JOB" -H "Authorization: Bearer $RETORT_API_KEY" \\
      -H 'Content-Type: application/json' -d '{"budget": {"max_tokens": 2000000}}'
    ```
    """
    after_commit(session, lambda: given.wake(None))
    note(session, who, Event("job.change", job_id, body.model_dump(mode="json", exclude_unset=True)))
    return jobs.change(session, who.project_id, job_id, body)


@router.post("/{job_id}/pause", response_model=JobView, summary="Pause a job")
def pause_job(session: Writing, who: Writer, job_id: JobId) -> JobView:
    """No further call is made; those in flight are finished and kept."""
    note(session, who, Event("job.pause", job_id))
    return jobs.pause(session, who.project_id, job_id)


@router.post("/{job_id}/resume", response_model=JobView, summary="Resume a job")
def resume_job(session: Writing, who: Writer, given: ResourcesDep, job_id: JobId) -> JobView:
    """After a pause. A parked job goes on by itself when its reason is gone; this lets it try at once."""
    after_commit(session, lambda: given.wake(None))
    note(session, who, Event("job.resume", job_id))
    return jobs.resume(session, who.project_id, job_id)


@router.post("/{job_id}/cancel", response_model=JobView, summary="Cancel a job")
def cancel_job(session: Writing, who: Writer, given: ResourcesDep, job_id: JobId) -> JobView:
    """Calls in flight are dropped. What was recorded stays, and can be read and exported. It cannot be undone."""
    after_commit(session, lambda: given.wake(None))
    note(session, who, Event("job.cancel", job_id))
    return jobs.cancel(session, who.project_id, job_id)


class RetryRequest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: tuple[str, ...] = Field(
        (), max_length=50, description="Kinds of error, as in `error_kind`; none: all."
    )


_ALL_KINDS = RetryRequest()


@router.post("/{job_id}/retry", response_model=RetryView, summary="Retry a job's failed rows")
def retry_job(
    who: Writer,
    given: ResourcesDep,
    job_id: JobId,
    body: Annotated[
        RetryRequest, Body(openapi_examples={"by kind": {"value": {"kinds": ["teacher-transient"]}}})
    ] = _ALL_KINDS,
) -> RetryView:
    """Failed completions are made again; a job that has ended runs again. Completed ones are never touched.

    ```sh
    curl -s "http://127.0.0.1:8321/v1/jobs/$JOB/retry" -H "Authorization: Bearer $RETORT_API_KEY" \\
      -H 'Content-Type: application/json' -d '{"kinds": ["teacher-transient"]}'
    ```
    """
    made = retrying.retry(given.engine, who.project_id, who.key_id, job_id, body.kinds)
    given.wake(None)
    return made


@router.get(
    "/{job_id}/batches", response_model=Page[ProviderBatchView], summary="Read a job's provider batches"
)
def read_batches(
    session: Reading, who: Reader, job_id: JobId, limit: Limit = 50, cursor: Cursor = None
) -> Page[ProviderBatchView]:
    """Of a job with `execution: batch`: what lies at the providers, how far it is, and why where it waits.

    ```sh
    curl -s "http://127.0.0.1:8321/v1/jobs/$JOB/batches" -H "Authorization: Bearer $RETORT_API_KEY"
    ```
    """
    after = text_place("batches", cursor)
    found = batch_views.page(session, who.project_id, job_id, after, limit + 1)
    return page_of("batches", found, limit, lambda batch: [batch.id])


@router.get("/{job_id}/shards", response_model=Page[ShardView], summary="Read a job's shards")
def read_shards(
    session: Reading,
    who: Reader,
    job_id: JobId,
    status: Annotated[ShardStatus | None, Query(description="Only shards in this status.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[ShardView]:
    """Who held each shard, from when to when, and how it ended: for a person who asks why."""
    place = int_places("shards", cursor, 3)
    after = None if place is None else (place[0], place[1], place[2])
    found = jobs.shard_page(session, who.project_id, job_id, status, after, limit + 1)
    return page_of("shards", found, limit, lambda shard: [shard.stage, shard.teacher, shard.first_prompt])
