"""`retort export`."""

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from app.cli.intended_use import Commercial, Competing, Redistribution, intended_use
from app.cli.outcome import AsJson, CommandFailed, Exit, client, err, out, show
from app.domain.lifecycle import ExportStatus

if TYPE_CHECKING:
    from app.client import RetortClient
    from app.services.export import ExportView

_EVERY = 0.2


def export(
    job: Annotated[list[str], typer.Argument(help="Id of a job; several make one dataset.")],
    to: Annotated[Path, typer.Option(file_okay=False, help="Folder for the files; made if need be.")],
    export_format: Annotated[
        str, typer.Option("--format", "-f", help="How rows are written, for example jsonl or parquet.")
    ] = "jsonl",
    name: Annotated[str | None, typer.Option(help="Name of the export. Default: the job's.")] = None,
    rows_per_file: Annotated[int | None, typer.Option(min=1, help="Default: 100,000.")] = None,
    commercial: Commercial = False,
    competing: Competing = False,
    redistribution: Redistribution = False,
    as_json: AsJson = False,
) -> None:
    """Make a dataset of the completed rows and fetch its files, with a manifest.

    Every file's SHA-256 is checked. A fetch that was cut off goes on; files that are there already stay.
    """
    from app.services.export import ExportOptions, ExportSpec, Selection

    spec = ExportSpec(
        name=name,
        format=export_format,
        selection=Selection(jobs=tuple(job)),
        options=ExportOptions() if rows_per_file is None else ExportOptions(rows_per_file=rows_per_file),
        intended_use=intended_use(commercial, competing, redistribution),
    )
    with client() as api:
        made = await_export(api, api.create_export(spec), err)
        fetch(api, made, to)
    show(
        made,
        as_json,
        lambda: out.print(f"{made.n_rows:,} rows in {to} ({len(made.files)} files)", soft_wrap=True),
    )


def await_export(api: "RetortClient", export: "ExportView", console: Console) -> "ExportView":
    """An export, once it is completed. Raises `CommandFailed` where it fails."""
    with Progress(
        TextColumn("Exporting"),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} rows"),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=export.n_rows_expected)
        while export.status in (ExportStatus.READY, ExportStatus.RUNNING):
            time.sleep(_EVERY)
            export = api.export(export.id)
            bar.update(task, completed=export.n_rows)
    if export.status != ExportStatus.COMPLETED:
        raise CommandFailed(f"export {export.id} failed: {export.error}", Exit.FAILED, "export-failed")
    return export


def fetch(api: "RetortClient", export: "ExportView", to: Path) -> None:
    """Bring the files of an export into a folder; those that are there already, byte for byte, are left alone."""
    for file in export.files:
        target = to / file.name
        if not _is_there(target, file.sha256):
            try:
                api.download(export.id, file.name, target, file.sha256)
            except ValueError as error:
                raise CommandFailed(str(error), Exit.FAILED, "damaged") from error


def _is_there(file: Path, sha256: str) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == sha256


commands = (export,)
