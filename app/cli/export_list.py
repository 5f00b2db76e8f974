"""`retort exports …`."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.jobs import Most
from app.cli.outcome import AsJson, client, counted, out, show, table
from app.cli.progress import duration

if TYPE_CHECKING:
    from app.services.export import ExportView

app = typer.Typer(no_args_is_help=True)

ExportId = Annotated[str, typer.Argument(help="Id of an export.")]


@app.command("list")
def list_exports(most: Most = 20, as_json: AsJson = False) -> None:
    """List exports, newest first."""
    with client() as api:
        found = list(islice(api.exports(), most))
    columns = {
        "id": lambda export: export.id,
        "name": lambda export: export.name,
        "format": lambda export: export.format,
        "status": lambda export: export.status,
        "rows": lambda export: f"{export.n_rows:,}",
        "MiB": lambda export: f"{export.n_bytes / 2**20:,.1f}",
        "created": lambda export: f"{export.created_at:%Y-%m-%d %H:%M:%S}",
    }
    show(found, as_json, lambda: table(found, columns, "No exports yet: `retort export JOB --to FOLDER`."))


@app.command("show")
def show_export(export: ExportId, as_json: AsJson = False) -> None:
    """Read an export: how far it is, its files, what it waits for."""
    with client() as api:
        found = api.export(export)
    show(found, as_json, lambda: _told(found))


@app.command()
def cancel(export: ExportId, as_json: AsJson = False) -> None:
    """Make it no further; what was written goes."""
    with client() as api:
        found = api.cancel_export(export)
    show(found, as_json, lambda: out.print(f"{found.id} is {found.status}.", markup=False))


@app.command()
def delete(export: ExportId, as_json: AsJson = False) -> None:
    """Delete an export's files. The record stays, since students may have been trained on them."""
    with client() as api:
        found = api.delete_export(export)
    show(found, as_json, lambda: out.print(f"{found.id} is {found.status}.", markup=False))


@app.command()
def use(
    export: ExportId,
    student: Annotated[
        str, typer.Option(help="The student that was trained on it, for example its repository.")
    ],
    revision: Annotated[str | None, typer.Option(help="Of the student's weights.")] = None,
    run: Annotated[str | None, typer.Option(help="The training run: an id or an address.")] = None,
    as_json: AsJson = False,
) -> None:
    """Record a student that was trained on an export."""
    from app.services.generations import NewUse

    with client() as api:
        made = api.record_use(export, NewUse(student=student, revision=revision, run=run))
    show(
        made, as_json, lambda: out.print(f"{made.id}: {made.student} was trained on {export}.", markup=False)
    )


@app.command()
def uses(export: ExportId, as_json: AsJson = False) -> None:
    """List the students that were trained on an export."""
    with client() as api:
        found = list(api.export_uses(export))
    columns = {
        "student": lambda one: one.student,
        "revision": lambda one: one.revision or "–",
        "run": lambda one: one.run or "–",
        "recorded": lambda one: f"{one.created_at:%Y-%m-%d %H:%M:%S}",
    }
    show(found, as_json, lambda: table(found, columns, "Nobody told of a student yet."))


@app.command()
def formats(as_json: AsJson = False) -> None:
    """List the formats that `retort export --format` takes, with their options."""
    with client() as api:
        found = list(api.export_formats())
    columns = {
        "format": lambda one: one.name,
        "options": lambda one: ", ".join(one.options.get("properties", {})) or "–",
        "what": lambda one: one.summary,
    }
    show(found, as_json, lambda: table(found, columns, "No formats."))


def _told(export: "ExportView") -> None:
    left = "" if export.eta_seconds is None else f", {duration(export.eta_seconds)} left"
    lines = [
        f"{export.id}  {export.name}",
        f"{export.status}, {export.format}: {counted(export.n_rows, 'row')}, {export.n_bytes / 2**20:,.1f} MiB{left}",
    ]
    if export.error:
        lines.append(f"waits for: {export.error}" if export.status == "parked" else export.error)
    lines += [
        f"  {file.name}  {file.n_bytes:,} bytes"
        + ("" if file.n_rows is None else f", {counted(file.n_rows, 'row')}")
        for file in export.files
    ]
    out.print("\n".join(lines), markup=False, soft_wrap=True)
