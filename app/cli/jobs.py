"""`retort jobs …`."""

from typing import Annotated, Any

import typer

from app.cli.outcome import AsJson, client, out, show, table
from app.demo.progress import rest_of

app = typer.Typer(no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="Id of a job.")]


@app.command("list")
def list_jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs in this status.")] = None,
    most: Annotated[int, typer.Option(min=1, help="How many at the most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with client() as api:
        found = [job for job, _ in zip(api.jobs(status=status), range(most), strict=False)]
    columns = {
        "id": lambda job: job["id"],
        "name": lambda job: job["name"],
        "status": lambda job: job["status"],
        "done": lambda job: f"{job['counts']['completed']}/{job['counts']['expected']}",
        "failed": lambda job: job["counts"]["failed"],
        "teachers": lambda job: ", ".join(lane["name"] for lane in job["teachers"]),
        "created": lambda job: job["created_at"][:19],
    }
    show(found, as_json, lambda: table(found, columns, "No jobs yet: `retort submit FILE --teacher NAME`."))


@app.command("show")
def show_job(job: JobId, as_json: AsJson = False) -> None:
    """Read a job: counts, speed, time left, what it waits for."""
    with client() as api:
        found = api.job(job)
    show(found, as_json, lambda: _told(found))


def _told(job: dict[str, Any]) -> None:
    out.print(f"[bold]{job['id']}[/] {job['name']}: [bold]{job['status']}[/]")
    out.print(rest_of(job))
    if job["status_reason"]:
        out.print(job["status_reason"], markup=False)
    for lane in job["teachers"]:
        parked = f", parked: {lane['parked']['reason']}" if lane["parked"] else ""
        out.print(
            f"  {lane['name']} ({lane['model']}): {lane['completed']} done, {lane['failed']} failed{parked}"
        )
    counts = job["counts"]
    out.print(
        f"  {counts['prompt_tokens']:,} prompt and {counts['completion_tokens']:,} completion tokens in "
        f"{counts['calls']:,} calls ({counts['retries']:,} of them again)"
    )


def _act(verb: str, job: str, as_json: bool, body: dict[str, Any] | None = None) -> None:
    with client() as api:
        found = api.act_on_job(job, verb, body)
    shown = found.get("job", found)
    show(found, as_json, lambda: out.print(f"{shown['id']} is {shown['status']}."))


@app.command()
def pause(job: JobId, as_json: AsJson = False) -> None:
    """Make no further call; those in flight are finished and kept."""
    _act("pause", job, as_json)


@app.command()
def resume(job: JobId, as_json: AsJson = False) -> None:
    """Go on after a pause, or try a parked job at once."""
    _act("resume", job, as_json)


@app.command()
def cancel(job: JobId, as_json: AsJson = False) -> None:
    """End a job for good. What was made stays."""
    _act("cancel", job, as_json)


@app.command()
def retry(
    job: JobId,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only failures of this kind; may be given several times.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make failed completions again."""
    _act("retry", job, as_json, {"kinds": kind or []})


@app.command()
def failures(
    job: JobId,
    most: Annotated[int, typer.Option(min=1, help="How many at the most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List what failed, and why."""
    with client() as api:
        pages = api.pages(f"/v1/jobs/{job}/failures")
        found = [row for row, _ in zip(pages, range(most), strict=False)]
    columns = {
        "prompt": lambda row: row["prompt_number"],
        "sample": lambda row: row["sample_index"],
        "teacher": lambda row: row["teacher_name"],
        "kind": lambda row: row["error_kind"],
        "attempts": lambda row: row["attempts"],
        "detail": lambda row: row["error_detail"],
    }
    show(found, as_json, lambda: table(found, columns, "Nothing failed."))
