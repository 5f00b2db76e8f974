"""`retort jobs …`."""

from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.outcome import AsJson, client, counted, out, show, table
from app.cli.progress import rest_of
from app.domain.lifecycle import JobStatus

if TYPE_CHECKING:
    from pydantic import JsonValue

    from app.services.job_views import JobView

app = typer.Typer(no_args_is_help=True)


class Cap(StrEnum):
    """What a budget caps, as the options name it."""

    TOKENS = "tokens"
    REQUESTS = "requests"
    USD = "usd"
    SECONDS = "seconds"


_CAPS = {
    Cap.TOKENS: "max_tokens",
    Cap.REQUESTS: "max_requests",
    Cap.USD: "max_cost_usd",
    Cap.SECONDS: "max_seconds",
}

JobId = Annotated[str, typer.Argument(help="Id of a job.")]
Most = Annotated[int, typer.Option(min=1, help="How many at the most.")]


@app.command("list")
def list_jobs(
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs in this status.")] = None,
    most: Most = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with client() as api:
        found = list(islice(api.jobs(**({} if status is None else {"status": status.value})), most))
    columns = {
        "id": lambda job: job.id,
        "name": lambda job: job.name,
        "status": lambda job: job.status,
        "done": lambda job: f"{job.counts.completed:,}/{job.counts.expected:,}",
        "failed": lambda job: f"{job.counts.failed:,}",
        "teachers": lambda job: ", ".join(lane.name for lane in job.teachers),
        "created": lambda job: f"{job.created_at:%Y-%m-%d %H:%M:%S}",
    }
    show(found, as_json, lambda: table(found, columns, "No jobs yet: `retort submit FILE --teacher NAME`."))


@app.command("show")
def show_job(job: JobId, as_json: AsJson = False) -> None:
    """Read a job: counts, speed, time left, what it waits for."""
    with client() as api:
        found = api.job(job)
    show(found, as_json, lambda: _told(found))


@app.command()
def budget(
    job: JobId,
    tokens: Annotated[int | None, typer.Option(min=1, help="Cap of prompt and answer tokens.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Cap of requests to teachers.")] = None,
    usd: Annotated[float | None, typer.Option(help="Cap of what it may cost.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Cap of time since the job began.")] = None,
    lift: Annotated[list[Cap] | None, typer.Option(help="Lift this cap; may be given several times.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read a job's budget and what of it is used, or change its caps.

    A job that is parked because its budget was reached goes on by itself.
    """
    given = {Cap.TOKENS: tokens, Cap.REQUESTS: requests, Cap.USD: usd, Cap.SECONDS: seconds}
    changes: dict[str, JsonValue] = {_CAPS[cap]: value for cap, value in given.items() if value is not None}
    changes |= {_CAPS[cap]: None for cap in lift or ()}
    with client() as api:
        found = api.change_job(job, budget=changes) if changes else api.job(job)
    show(found, as_json, lambda: _budget_told(found))


@app.command()
def pause(job: JobId, as_json: AsJson = False) -> None:
    """Make no further call; those in flight are finished and kept."""
    with client() as api:
        _now(api.pause_job(job), as_json)


@app.command()
def resume(job: JobId, as_json: AsJson = False) -> None:
    """Go on after a pause, or try a parked job at once."""
    with client() as api:
        _now(api.resume_job(job), as_json)


@app.command()
def cancel(job: JobId, as_json: AsJson = False) -> None:
    """End a job for good. What was made stays, and can be exported."""
    with client() as api:
        _now(api.cancel_job(job), as_json)


@app.command()
def retry(
    job: JobId,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only failures of this kind; may be given several times.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make failed completions again."""
    with client() as api:
        made = api.retry_job(job, kind or [])
    show(
        made,
        as_json,
        lambda: out.print(
            f"{counted(made.n_retried, 'completion')} to make again; {made.job.id} is {made.job.status}."
        ),
    )


@app.command()
def failures(job: JobId, most: Most = 50, as_json: AsJson = False) -> None:
    """List what failed, and why."""
    with client() as api:
        found = list(islice(api.failures(job), most))
    columns = {
        "prompt": lambda row: row.prompt_number,
        "sample": lambda row: row.sample_index,
        "teacher": lambda row: row.teacher_name,
        "kind": lambda row: row.error_kind,
        "attempts": lambda row: row.attempts,
        "reason": lambda row: row.error_detail,
    }
    show(found, as_json, lambda: table(found, columns, "Nothing failed."))


@app.command()
def batches(job: JobId, as_json: AsJson = False) -> None:
    """Read what a job with `--batch` has at its providers, and how far it is."""
    with client() as api:
        found = list(api.batches(job))
    columns = {
        "id": lambda one: one.id,
        "status": lambda one: one.status,
        "requests": lambda one: f"{one.n_completed + one.n_failed:,}/{one.n_requests:,}",
        "failed": lambda one: f"{one.n_failed:,}",
        "at the provider": lambda one: one.provider_id,
        "submitted": lambda one: (
            None if one.submitted_at is None else f"{one.submitted_at:%Y-%m-%d %H:%M:%S}"
        ),
        "waits for": lambda one: one.error,
    }
    show(found, as_json, lambda: table(found, columns, "No batches yet."))


def _budget_told(job: "JobView") -> None:
    if job.budget is None or job.budget_use is None:
        out.print(f"{job.id} has no budget.")
        return
    caps, used = job.budget, job.budget_use
    rows = (
        ("tokens", caps.max_tokens, used.tokens, used.reserved_tokens),
        ("requests", caps.max_requests, used.requests, used.reserved_requests),
        ("USD", caps.max_cost_usd, used.cost_usd, used.reserved_cost_usd),
    )
    for name, cap, gone, held in rows:
        most = "no cap" if cap is None else f"of {cap:,}"
        out.print(f"  {name}: {gone:,.10g} used, {held:,.10g} reserved, {most}", markup=False)
    if caps.max_seconds is not None:
        out.print(f"  time: {caps.max_seconds:,.10g} s from the job's beginning", markup=False)
    out.print(f"{job.id} is {job.status}.")


def _now(job: "JobView", as_json: bool) -> None:
    show(job, as_json, lambda: out.print(f"{job.id} is {job.status}."))


def _told(job: "JobView") -> None:
    counts = job.counts
    out.print(f"[bold]{job.id}[/] ", end="")
    out.print(job.name, markup=False, end="")
    out.print(f": [bold]{job.status}[/]")
    out.print(f"  {counts.completed:,} of {counts.expected:,} completed, {rest_of(job)}", markup=False)
    if job.status_reason:
        out.print(f"  {job.status_reason}", markup=False)
    for stage in job.stages:
        sampling = ", ".join(f"{name} {value}" for name, value in stage.sampling.asked().items())
        elicited = "" if stage.elicit is None else ", reasoning elicited"
        out.print(
            f"  {stage.name}: n {stage.n}, top_logprobs {stage.top_logprobs}, {sampling}{elicited}",
            markup=False,
        )
    for lane in job.teachers:
        parked = f"; parked: {lane.parked.reason}" if lane.parked else ""
        out.print(
            f"  teacher {lane.name} ({lane.model}): {lane.completed:,} done, {lane.failed:,} failed{parked}",
            markup=False,
        )
    out.print(
        f"  {counted(counts.prompt_tokens, 'prompt token')}, {counted(counts.completion_tokens, 'completion token')}, "
        f"{counted(counts.calls, 'call')}, {counts.retries:,} of them retries, {counted(counts.reused, 'row')} reused"
    )
