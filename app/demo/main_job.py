"""What the demo asks for: its prompt set, its job, its datasets. Each is looked for before it is made."""

from collections.abc import Iterator
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from rich.console import Console

from app.cli.exports import await_export, fetch
from app.cli.outcome import CommandFailed, Exit
from app.cli.progress import duration, watch
from app.client import RetortClient, ServiceRefused
from app.db.prompt_sets import EMPTY_SET_HASH
from app.domain.fingerprints import chained
from app.domain.lifecycle import ExportStatus, JobStatus
from app.domain.prompts import parse_line, stored
from app.domain.sampling import Elicitation, IntendedUse, SamplingParameters
from app.recipes import JobSpec
from app.services.export import ExportSpec, ExportView, Selection
from app.services.job_views import JobView
from app.services.prompt_sets import PromptSetView
from workers.embedded import TEACHER, embedded_teacher

NAME = "retort demo"
FORMATS = ("jsonl", "parquet")
USE = IntendedUse(research=True, redistribution=True)


def spec(prompt_set: PromptSetView) -> JobSpec:
    """Small enough for two cores, with everything that the service can record of a token."""
    return JobSpec(
        name=NAME,
        prompt_set=prompt_set.id,
        teachers=(TEACHER,),
        sampling=SamplingParameters(temperature=0.25, top_p=0.95, max_tokens=112, seed=7),
        top_logprobs=20,
        elicit=Elicitation(max_reasoning_tokens=56),
        intended_use=USE,
    )


def bundled() -> bytes:
    return (files("app.demo") / "prompts.jsonl").read_bytes()


def content_hash(lines: bytes) -> str:
    """The hash by which the service knows exactly these prompts: computed here as there."""
    found = EMPTY_SET_HASH
    for line in lines.splitlines():
        found = chained(found, stored(parse_line(line), None).content_hash)
    return found.hex()


def prompt_set(api: RetortClient, console: Console) -> PromptSetView:
    """The bundled prompts as a sealed set: an earlier run's where there is one."""
    lines = bundled()
    wanted = content_hash(lines)
    for found in api.prompt_sets(content_hash=wanted, sealed=True):
        console.print(f"[bold]Prompts[/]   {found.n_prompts} are there already: {found.id}")
        return found
    # By these keys an upload that was cut off goes on where it stopped.
    key = f"demo-{wanted[:32]}"
    made = api.create_prompt_set(NAME, idempotency_key=key)
    added = api.append_prompts(made.id, lambda: BytesIO(lines), f"{key}-rows", seal=True).prompt_set
    console.print(f"[bold]Prompts[/]   {added.n_prompts} of our own, uploaded and sealed: {added.id}")
    return added


def finished_job(api: RetortClient, prompts: PromptSetView, console: Console) -> JobView:
    """The demo's job, once it has ended. Raises `CommandFailed` where it made nothing."""
    ensure_teacher(api)
    job = _job(api, prompts, console)
    if job.status in (JobStatus.PAUSED, JobStatus.PARKED):
        job = api.resume_job(job.id)
    if job.status in (JobStatus.COMPLETED, JobStatus.FAILED) and job.counts.failed:
        console.print(f"          {job.counts.failed} rows failed in an earlier run: they are made again.")
        job = api.retry_job(job.id, []).job
    if job.status != JobStatus.COMPLETED:
        job = watch(api, job.id, console)
    if not job.counts.completed:
        reasons = sorted({str(row.error_detail) for row in api.failures(job.id)})
        raise CommandFailed(f"job {job.id} made nothing: {'; '.join(reasons[:3])}", Exit.FAILED, "job-failed")
    seconds = (
        0.0
        if job.started_at is None or job.ended_at is None
        else (job.ended_at - job.started_at).total_seconds()
    )
    console.print(
        f"          {job.counts.completed} completions, {job.counts.completion_tokens:,} tokens"
        f"{f' in {duration(seconds)}' if seconds else ''}, {job.counts.failed} failed"
    )
    return job


def ensure_teacher(api: RetortClient) -> None:
    """`retort up` registers it where its model is there; a service that was started before that has none yet."""
    try:
        api.teacher(TEACHER)
    except ServiceRefused as error:
        if error.problem.status != 404:
            raise
        api.register_teacher(embedded_teacher())
        api.probe_teacher(TEACHER)


def _job(api: RetortClient, prompts: PromptSetView, console: Console) -> JobView:
    wanted = spec(prompts)
    cancelled = 0
    for job in _same(api, wanted):
        if job.status != JobStatus.CANCELLED:
            told = "nothing is generated twice" if job.status == JobStatus.COMPLETED else "it goes on"
            console.print(f"[bold]Job[/]       {job.id} is there already, {job.status}:\n          {told}")
            return job
        cancelled += 1
    # The key makes it one job, also for two runs at once.
    job = api.submit_job(wanted, idempotency_key=f"demo-{prompts.id}-{cancelled}")
    console.print(
        f"[bold]Job[/]       {job.id}: {job.counts.expected} completions,\n"
        "          with elicited reasoning and the top 20 logprobs of every token"
    )
    return job


def _same(api: RetortClient, wanted: JobSpec) -> Iterator[JobView]:
    """Jobs that asked the same. Another version of the demo may have asked otherwise."""
    for job in api.jobs():
        stage = job.stages[0]
        asked = (stage.sampling, stage.n, stage.top_logprobs, stage.elicit)
        if (
            job.name == NAME
            and job.prompt_set == wanted.prompt_set
            and asked == (wanted.sampling, wanted.n, wanted.top_logprobs, wanted.elicit)
        ):
            yield job


def datasets(api: RetortClient, job: JobView, to: Path, console: Console) -> None:
    """The job's rows in each format, fetched into a folder of its own."""
    label = "Dataset"
    for export_format in FORMATS:
        made = _export(api, job, export_format, console)
        fetch(api, made, to / export_format)
        size = sum(file.n_bytes for file in made.files)
        console.print(
            f"[bold]{label:10}[/]{made.n_rows} rows as {export_format}, {size / 1024:,.0f} KiB: {to / export_format}",
            soft_wrap=True,
        )
        label = ""


def _export(api: RetortClient, job: JobView, export_format: str, console: Console) -> ExportView:
    asked = ExportSpec(
        name=f"{NAME}, {export_format}",
        format=export_format,
        selection=Selection(jobs=(job.id,)),
        intended_use=USE,
    )
    failed = 0
    for found in api.exports():
        if (found.name, found.selection) != (asked.name, asked.selection):
            continue
        if found.status == ExportStatus.COMPLETED and found.n_rows == job.counts.completed:
            return found
        if found.status in (ExportStatus.READY, ExportStatus.RUNNING, ExportStatus.PARKED):
            return await_export(api, found, console)
        failed += 1
    key = f"demo-{job.id}-{export_format}-{job.counts.completed}-{failed}"
    return await_export(api, api.create_export(asked, idempotency_key=key), console)
