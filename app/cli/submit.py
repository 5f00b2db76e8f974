"""`retort submit` and `retort watch`."""

import gzip
import hashlib
import re
import secrets
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, cast

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from app.cli.intended_use import Commercial, Competing, Redistribution, intended_use
from app.cli.outcome import AsJson, CommandFailed, Exit, client, counted, err, out, show
from app.cli.policy import told as policy_told
from app.cli.progress import watch as follow
from app.domain.lifecycle import ENDED, JobStatus

if TYPE_CHECKING:
    from app.client import RetortClient
    from app.recipes import JobSpec
    from app.services.appends import AppendView
    from app.services.estimates import Forecast, Range
    from app.services.job_views import JobView

_ERRORS_SHOWN = 10
_WORTH_A_BAR = 4 * 1024 * 1024  # bytes

_SAMPLING, _CARE = "How it is asked", "How it is run"


def submit(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="Prompts as JSONL, one object or string a line; .gz is understood; - is standard input."
        ),
    ] = None,
    prompt_set: Annotated[
        str | None, typer.Option(help="A sealed set that is there already, instead of a file.")
    ] = None,
    teacher: Annotated[
        list[str], typer.Option(help="Name of a registered teacher; may be given several times.")
    ] = ["embedded"],  # noqa: B006 - Typer's way to say it
    name: Annotated[str | None, typer.Option(help="Name of set and job. Default: the file's.")] = None,
    n: Annotated[
        int, typer.Option(min=1, help="Samples per prompt and teacher.", rich_help_panel=_SAMPLING)
    ] = 1,
    top_logprobs: Annotated[
        int, typer.Option(min=0, help="Candidates kept per token; 0: none.", rich_help_panel=_SAMPLING)
    ] = 0,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 is greedy. Default: 0.7.", rich_help_panel=_SAMPLING)
    ] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, rich_help_panel=_SAMPLING)] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer. Default: 512.", rich_help_panel=_SAMPLING)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Sample i is asked with seed + i.", rich_help_panel=_SAMPLING)
    ] = None,
    elicit: Annotated[
        bool,
        typer.Option(
            "--elicit",
            help="Draw a reasoning trace from a teacher that gives none.",
            rich_help_panel=_SAMPLING,
        ),
    ] = False,
    max_reasoning_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest elicited trace. Default: 256.", rich_help_panel=_SAMPLING),
    ] = None,
    priority: Annotated[int, typer.Option(help="A higher one goes first.", rich_help_panel=_CARE)] = 0,
    max_in_flight: Annotated[
        int | None, typer.Option(min=1, help="Cap of this job's calls in flight.", rich_help_panel=_CARE)
    ] = None,
    budget_tokens: Annotated[
        int | None, typer.Option(min=1, help="The job parks at so many tokens.", rich_help_panel=_CARE)
    ] = None,
    budget_requests: Annotated[
        int | None, typer.Option(min=1, help="The job parks at so many requests.", rich_help_panel=_CARE)
    ] = None,
    budget_usd: Annotated[
        float | None, typer.Option(help="The job parks at so much money.", rich_help_panel=_CARE)
    ] = None,
    budget_seconds: Annotated[
        float | None,
        typer.Option(help="The job parks so long after its beginning.", rich_help_panel=_CARE),
    ] = None,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Take equal samples from earlier jobs.", rich_help_panel=_CARE)
    ] = False,
    batch: Annotated[
        bool,
        typer.Option(
            "--batch",
            help="Through the provider's batch API: within a day, for about half the price.",
            rich_help_panel=_CARE,
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Take nothing if any row does not parse.", rich_help_panel=_CARE)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Upload and estimate; ask no teacher.", rich_help_panel=_CARE)
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay and show progress.")] = False,
    commercial: Commercial = False,
    competing: Competing = False,
    redistribution: Redistribution = False,
    as_json: AsJson = False,
) -> None:
    """Upload a file of prompts and have teachers answer them.

    Rows that do not parse are told with their line numbers, and the rest goes in (exit code 1, unless nothing was
    wrong). An upload that was cut off, or stopped with Ctrl-C, goes on when the same command is given again. Within a
    day the same file is stored once; each submit is a job of its own.
    """
    from pydantic import ValidationError

    if (file is None) == (prompt_set is None):
        raise CommandFailed("give a FILE of prompts, or --prompt-set with an id", Exit.USAGE, "usage")
    given: dict[str, object] = {
        "name": name or (None if file is None else _name_of(file)),
        "prompt_set": prompt_set or "unknown",
        "teachers": teacher,
        "sampling": {
            key: value
            for key, value in (
                ("temperature", temperature),
                ("top_p", top_p),
                ("max_tokens", max_tokens),
                ("seed", seed),
            )
            if value is not None
        },
        "n": n,
        "top_logprobs": top_logprobs,
        "priority": priority,
        "max_in_flight": max_in_flight,
        "reuse": reuse,
        "execution": "batch" if batch else "calls",
        "intended_use": intended_use(commercial, competing, redistribution),
    }
    if elicit or max_reasoning_tokens is not None:
        given["elicit"] = (
            {} if max_reasoning_tokens is None else {"max_reasoning_tokens": max_reasoning_tokens}
        )
    budget = {
        "max_tokens": budget_tokens,
        "max_requests": budget_requests,
        "max_cost_usd": budget_usd,
        "max_seconds": budget_seconds,
    }
    if any(cap is not None for cap in budget.values()):
        given["budget"] = budget
    from app.recipes import JobSpec

    try:
        spec = JobSpec.model_validate({key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in wrong["loc"])
        raise CommandFailed(f"{where}: {wrong['msg']}", Exit.USAGE, "usage") from None
    with client() as api:
        rejected = 0
        for one in spec.teachers:  # before a large file is sent for nothing
            _check_teacher(api, one)
        if file is not None:
            appended = _uploaded(api, file, spec.name or "prompts", strict)
            rejected = appended.n_rejected
            spec = spec.model_copy(update={"prompt_set": appended.prompt_set.id})
        if dry_run:
            _estimated(api, spec, as_json)
        else:
            _submitted(api, spec, watch, as_json)
    if rejected:
        raise typer.Exit(Exit.FAILED)


def _check_teacher(api: "RetortClient", name: str) -> None:
    from app.client import ServiceRefused

    try:
        api.teacher(name)
    except ServiceRefused as error:
        if error.problem.status != 404:
            raise
        known = ", ".join(teacher.name for teacher in api.teachers()) or "none yet"
        raise CommandFailed(
            f"there is no teacher {name!r} (there are: {known}): `retort teachers add` registers one",
            Exit.NOT_FOUND,
            "not-found",
        ) from None


def _submitted(api: "RetortClient", spec: "JobSpec", watch: bool, as_json: bool) -> None:
    job = api.submit_job(spec, idempotency_key=f"cli-{secrets.token_hex(12)}")
    err.print(f"Job {job.id}: {counted(job.counts.expected, 'completion')} to make.")
    for warning in () if job.policy is None else job.policy.warnings:
        err.print(f"Policy: {warning}", markup=False, style="yellow", soft_wrap=True)
    if watch:
        job = follow(api, job.id, err)
    elif not as_json:
        err.print(f"`retort watch {job.id}` shows its progress.")
    show(job, as_json, lambda: None if watch else out.print(job.id))
    _exit_by(job)


def _estimated(api: "RetortClient", spec: "JobSpec", as_json: bool) -> None:
    found = api.estimate_job(spec)

    def told() -> None:
        made = counted(found.n_completions_at_most, "completion")
        out.print(f"{counted(found.n_prompts, 'prompt')} → up to {made}.")
        if found.max_completion_tokens is not None:
            out.print(f"At most {counted(found.max_completion_tokens, 'completion token')}.")
        for line in () if found.forecast is None else _forecast(found.forecast):
            out.print(f"  {line}", markup=False)
        for warning in found.warnings:
            out.print(f"Warning: {warning}.", markup=False)
        policy_told(found.policy)

    show(found, as_json, told)
    if found.policy.outcome == "block":
        raise typer.Exit(Exit.REFUSED)


def _forecast(found: "Forecast") -> list[str]:
    """A line for each thing that is known."""

    def told(name: str, one: "Range | None", unit: str = "") -> str:
        if one is None:
            return f"{name}: not known"
        likely = "" if one.likely is None else f", likely {one.likely:,.4g}{unit}"
        high = "no bound" if one.high is None else f"{one.high:,.4g}{unit}"
        return f"{name}: {one.low:,.4g}{unit} to {high}{likely}"

    return [
        told("requests", found.requests),
        told("prompt tokens", found.prompt_tokens),
        told("completion tokens", found.completion_tokens),
        told("cost", found.cost_usd, " USD"),
        told("time", found.seconds, " s"),
    ]


def _uploaded(api: "RetortClient", file: Path, name: str, strict: bool) -> "AppendView":
    with _readable(file) as path:
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        key = hashlib.sha256(f"{name}\n{strict}\n{digest}".encode()).hexdigest()[:32]
        made = api.create_prompt_set(name, idempotency_key=f"cli-{key}")
        size = path.stat().st_size

        def opened() -> BinaryIO:
            return cast(BinaryIO, gzip.open(path, "rb")) if file.suffix == ".gz" else path.open("rb")

        with Progress(
            TextColumn("Uploading"),
            BarColumn(bar_width=28),
            DownloadColumn(),
            console=err,
            disable=not err.is_terminal or size < _WORTH_A_BAR,
        ) as bar:
            task = bar.add_task("", total=None if file.suffix == ".gz" else size)
            try:
                answer = api.append_prompts(
                    made.id,
                    opened,
                    f"cli-{key}-rows",
                    seal=True,
                    strict=strict,
                    sent=lambda n_bytes: bar.update(task, completed=n_bytes),
                )
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise CommandFailed(f"{file} is not whole gzip: {error}", Exit.USAGE, "usage") from error
    _told(api, answer, file)
    return answer


@contextmanager
def _readable(file: Path) -> Iterator[Path]:
    """A file that can be read from its beginning more than once. A pipe, standard input too, is kept aside for that."""
    if str(file) != "-" and not file.exists():
        raise CommandFailed(f"there is no file {file}", Exit.USAGE, "usage")
    if file.is_dir():
        raise CommandFailed(f"{file} is a folder: give a file of prompts", Exit.USAGE, "usage")
    if file.is_file():
        yield file
        return
    with tempfile.NamedTemporaryFile(prefix="retort-prompts-") as kept:
        if str(file) == "-":
            shutil.copyfileobj(sys.stdin.buffer, kept)
        else:
            with file.open("rb") as pipe:
                shutil.copyfileobj(pipe, kept)
        kept.flush()
        yield Path(kept.name)


def _name_of(file: Path) -> str:
    """What set and job are called: the file's name without its endings, as text that the service takes."""
    if str(file) == "-":
        return "stdin"
    name = file.name.partition(".")[0].encode("utf-8", "replace").decode()
    return re.sub(r"[\x00-\x1f]+", " ", name)[:200].strip() or "prompts"


def _told(api: "RetortClient", answer: "AppendView", file: Path) -> None:
    for row in answer.errors[:_ERRORS_SHOWN]:
        err.print(f"{file}, line {row.line}: {row.reason}", markup=False, style="yellow", soft_wrap=True)
    set_id = answer.prompt_set.id
    if answer.n_rejected > _ERRORS_SHOWN:
        err.print(f"… and {answer.n_rejected - _ERRORS_SHOWN:,} more: `retort prompt-sets errors {set_id}`")
    if not answer.n_added:
        raise CommandFailed(f"no row of {file} is a prompt", Exit.REFUSED, "no-prompts")
    if answer.n_license_assumed:
        _told_of_licences(api, answer.n_license_assumed)
    rejected = f", {counted(answer.n_rejected, 'row')} rejected" if answer.n_rejected else ""
    err.print(f"Prompt set {set_id}: {counted(answer.n_added, 'prompt')}{rejected}.")


def _told_of_licences(api: "RetortClient", number: int) -> None:
    prompts, default = counted(number, "prompt"), api.project().default_license
    if default is not None:
        err.print(f"{prompts} without a licence: taken for {default}, the project's default.", markup=False)
        return
    err.print(
        f"{prompts} without a licence: NOASSERTION. An export refuses such rows, or leaves them out: give each row a "
        "`license`, or the project a default one first (`retort project default-license`).",
        style="yellow",
        soft_wrap=True,
    )


def watch(job: Annotated[str, typer.Argument(help="Id of a job.")], as_json: AsJson = False) -> None:
    """Show a job's progress until it has ended.

    Ctrl-C leaves the job alone.
    """
    with client() as api:
        ended = follow(api, job, err)
    show(ended, as_json, lambda: None)
    _exit_by(ended)


def _exit_by(job: "JobView") -> None:
    if job.status in ENDED and (job.status != JobStatus.COMPLETED or job.counts.failed):
        err.print(f"`retort jobs failures {job.id}` says what failed, and why.")
        raise typer.Exit(Exit.FAILED)


commands = (submit, watch)
