"""`retort export`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.outcome import AsJson, Exit, client, fail, out, show
from app.cli.submit import wait


def export(
    job: Annotated[str, typer.Argument(help="Id of a job.")],
    to: Annotated[Path, typer.Option(help="Folder for the files; made if need be.")],
    export_format: Annotated[
        str, typer.Option("--format", help="How rows are written, for example jsonl or parquet.")
    ] = "jsonl",
    name: Annotated[str | None, typer.Option(help="Name of the export.")] = None,
    commercial: Annotated[
        bool, typer.Option("--commercial", help="Intended use: the student earns money.")
    ] = False,
    competing: Annotated[
        bool, typer.Option("--competing", help="Intended use: it competes with the teacher's maker.")
    ] = False,
    redistribution: Annotated[
        bool, typer.Option("--redistribution", help="Intended use: data or student are given to others.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a dataset of a job's completions and fetch it. Every file's checksum is checked; a broken fetch goes on."""
    asked: dict[str, Any] = {
        "format": export_format,
        "selection": {"jobs": [job]},
        "intended_use": {
            "commercial": commercial,
            "competing": competing,
            "redistribution": redistribution,
            "research": not (commercial or competing),
        },
    }
    if name is not None:
        asked["name"] = name
    with client() as api:
        made = wait(api, api.create_export(asked))
        if made["status"] != "completed":
            fail(f"the export failed: {made['error']}", Exit.FAILED)
        for file in made["files"]:
            if not (to / file["name"]).exists():
                api.download(made["id"], file["name"], to / file["name"], file["sha256"])
    show(made, as_json, lambda: out.print(f"{made['n_rows']} rows in {to} ({len(made['files'])} files)."))


commands = (export,)
