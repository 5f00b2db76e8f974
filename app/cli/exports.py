"""`retort export`."""

import hashlib
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from app.cli.intended_use import Commercial, Competing, Redistribution, intended_use
from app.cli.outcome import AsJson, CommandFailed, Exit, client, counted, err, out, show
from app.cli.pairs import pair
from app.cli.progress import duration
from app.domain.lifecycle import ExportStatus

if TYPE_CHECKING:
    from app.client import RetortClient
    from app.domain.metadata_filter import MetadataFilter
    from app.domain.splits import Split
    from app.services.export import ExportView

_EVERY = 0.2
_UNDER_WAY = (ExportStatus.READY, ExportStatus.RUNNING, ExportStatus.PARKED)


def export(
    job: Annotated[list[str], typer.Argument(help="Id of a job; several make one dataset.")],
    to: Annotated[Path, typer.Option(file_okay=False, help="Folder for the files; made if need be.")],
    export_format: Annotated[
        str, typer.Option("--format", "-f", help="How rows are written, for example jsonl or parquet.")
    ] = "jsonl",
    name: Annotated[str | None, typer.Option(help="Name of the export. Default: the job's.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="Of the format, NAME=VALUE: reasoning=think. Repeat it."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Shares by a hash of the prompt: train=0.9,validation=0.1")
    ] = None,
    teacher: Annotated[list[str] | None, typer.Option(help="Only rows of this teacher. Repeat it.")] = None,
    finish_reason: Annotated[
        list[str] | None, typer.Option(help="Only rows that ended so: stop, length, … Repeat it.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only prompts whose metadata has this: topic=maths, level=3..5 (a range), tags.0=easy. Repeat it."
        ),
    ] = None,
    rows_per_file: Annotated[int | None, typer.Option(min=1, help="Default: 100,000.")] = None,
    drop_refused: Annotated[
        bool,
        typer.Option(
            "--drop-refused",
            help="Leave out the rows that terms or licences forbid for this use; the manifest names them.",
            rich_help_panel="Intended use",
        ),
    ] = False,
    commercial: Commercial = False,
    competing: Competing = False,
    redistribution: Redistribution = False,
    as_json: AsJson = False,
) -> None:
    """Make a dataset of the completed rows and fetch its files, with a manifest.

    Every file's SHA-256 is checked. A fetch that was cut off goes on; files that are there already stay.
    """
    from app.services.export import ExportSpec, FileSize, Selection

    spec = ExportSpec(
        name=name,
        format=export_format,
        options=dict(pair(text) for text in option or ()),
        selection=Selection(
            jobs=tuple(job),
            teachers=tuple(teacher or ()),
            finish_reasons=tuple(finish_reason or ()),
            metadata=tuple(_condition(text) for text in where or ()),
        ),
        split=_split(split),
        file_size=FileSize() if rows_per_file is None else FileSize(rows=rows_per_file),
        intended_use=intended_use(commercial, competing, redistribution),
        on_refusal="drop" if drop_refused else "refuse",
    )
    to.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is told before the export is
    with client() as api:
        asked = api.create_export(spec, idempotency_key=f"cli-{secrets.token_hex(12)}")
        made = await_export(api, asked, err)
        fetch(api, made, to)
    show(
        made,
        as_json,
        lambda: out.print(
            f"{counted(made.n_rows, 'row')} in {to} ({counted(len(made.files), 'file')})",
            soft_wrap=True,
            markup=False,
        ),
    )


def _condition(text: str) -> "MetadataFilter":
    """`path=value`, or `path=low..high` with either end left out."""
    from app.domain.metadata_filter import MetadataFilter

    path, value = pair(text, "--where")
    low, dots, high = value.partition("..") if isinstance(value, str) else ("", "", "")
    if not dots:
        return MetadataFilter(path=path, equals=value)
    ends = {name: pair(f"{name}={end}")[1] for name, end in (("min", low), ("max", high)) if end}
    try:
        return MetadataFilter.model_validate({"path": path, **ends})
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r}: write PATH=LOW..HIGH", param_hint="--where") from error


def _split(text: str | None) -> "Split":
    from app.domain.splits import Split

    if text is None:
        return Split()
    try:
        given = dict(pair(part.strip(), "--split") for part in text.split(","))
        return Split.model_validate({"train": 0, **given})
    except ValidationError as error:
        reasons = "; ".join(str(one["msg"]).removeprefix("Value error, ") for one in error.errors())
        raise typer.BadParameter(reasons, param_hint="--split") from error


def await_export(api: "RetortClient", export: "ExportView", console: Console) -> "ExportView":
    """An export, once it is completed. Raises `CommandFailed` where it fails."""
    with Progress(
        TextColumn("Exporting"),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} rows{task.fields[told]}"),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=export.n_rows_expected, told="")
        waits: str | None = None
        while export.status in _UNDER_WAY:
            time.sleep(_EVERY)
            export = api.export(export.id)
            bar.update(task, completed=export.n_rows_seen, told=_told(export))
            if export.status == ExportStatus.PARKED and export.error != waits:
                waits = export.error
                console.print(f"Export {export.id} waits: {waits}", soft_wrap=True)
    if export.status != ExportStatus.COMPLETED:
        reason = f": {export.error}" if export.error else ""
        raise CommandFailed(f"export {export.id} {export.status}{reason}", Exit.FAILED, "export-failed")
    return export


def _told(export: "ExportView") -> str:
    left = "" if export.eta_seconds is None else f", {duration(export.eta_seconds)} left"
    return f", {export.n_bytes / 2**20:,.1f} MiB in {len(export.files)} finished files{left}"


def fetch(api: "RetortClient", export: "ExportView", to: Path) -> None:
    """Bring the files of an export into a folder; those that are there already, byte for byte, are left alone.

    Raises `CommandFailed` where data files of another export lie there: a loader would take them for its own.
    """
    mine = {file.name for file in export.files}
    patterns = {f"{file.split}-*{Path(file.name).suffix}" for file in export.files if file.split}
    others = sorted({one.name for pattern in patterns for one in to.glob(pattern)} - mine)
    if others:
        raise CommandFailed(
            f"{to} holds data files of another export ({', '.join(others[:3])}{', …' if others[3:] else ''}): name "
            "another folder, or delete them",
            Exit.FAILED,
            "folder-in-use",
        )
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
