"""`retort lineage …`."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.outcome import AsJson, CommandFailed, Exit, client, out, show, table

if TYPE_CHECKING:
    from app.services.lineage import ExportHit, RowLineage

app = typer.Typer(no_args_is_help=True)


@app.command()
def row(
    row_id: Annotated[
        str, typer.Argument(help="As in an export: job/stage/prompt number/teacher/sample index.")
    ],
    as_json: AsJson = False,
) -> None:
    """Trace a row of an export back to all that it came from."""
    with client() as api:
        found = api.lineage_of_row(row_id)
    show(found, as_json, lambda: _told(found))


def _told(found: "RowLineage") -> None:
    prompt, teacher, job, attempt = found.prompt, found.teacher, found.job, found.attempt
    revision = "" if teacher.revision is None else f"@{teacher.revision}"
    lines = [
        f"{found.row_id}: {found.status}" + (f", removed by {found.removed_by}" if found.removed_by else ""),
        f"  prompt   {prompt.number} of {prompt.prompt_set} ({prompt.prompt_set_name}), source {prompt.source or '–'}",
        f"  licence  {prompt.license}{' (assumed)' if prompt.license_assumed else ''}",
        f"  teacher  {teacher.name}: {teacher.model}{revision} by {teacher.access_route}",
        f"  terms    {', '.join(teacher.terms) or '–'} (decision {job.decision or '–'})",
        f"  job      {job.id} ({job.name}), asked by {job.asked_by_name or job.asked_by}, code {job.code_version}",
        f"  sampling {job.sampling}",
        f"  made     {found.made_at:%Y-%m-%d %H:%M:%S} by {attempt.worker or 'a worker'}, attempt {attempt.attempts}",
        f"  sha256   {found.content_hash}",
    ]
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
    exports_told(found.exports)


@app.command()
def exports(
    source: Annotated[str | None, typer.Option(help="Every prompt with this very source.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Name or id of a teacher.")] = None,
    prompt_set: Annotated[str | None, typer.Option(help="Id of a set, with --prompt.")] = None,
    prompt: Annotated[int | None, typer.Option(min=0, help="Number of a prompt.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find every export that holds rows of a source, a teacher or a prompt."""
    given = {"source": source, "teacher": teacher, "prompt_set": prompt_set, "prompt_number": prompt}
    origin: dict[str, str | int] = {name: value for name, value in given.items() if value is not None}
    if not origin:
        raise CommandFailed("give --source, --teacher, or --prompt-set with --prompt", Exit.USAGE, "usage")
    with client() as api:
        found = api.lineage_to_exports(**origin)
    show(found, as_json, lambda: exports_told(found.exports))


def exports_told(found: "list[ExportHit]") -> None:
    columns = {
        "export": lambda one: one.id,
        "name": lambda one: one.name,
        "status": lambda one: one.status,
        "rows": lambda one: f"{one.n_rows:,}",
        "tainted by": lambda one: ", ".join(t.takedown for t in one.tainted_by) or None,
    }
    table(found, columns, "In no export.")
