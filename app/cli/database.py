"""`retort db …`: the database that this machine's settings name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.outcome import AsJson, CommandFailed, Exit, counted, err, out, settings, show

if TYPE_CHECKING:
    from app.storage.places import Storage

app = typer.Typer(no_args_is_help=True)


@app.command()
def upgrade(as_json: AsJson = False) -> None:
    """Bring the schema to this version's.

    On a new database it also makes the first project and its key, for use on the service's own machine. Running it
    again changes nothing.
    """
    from app.db.migrate import current
    from app.db.migrate import upgrade as migrate
    from app.db.session import connect
    from app.services.bootstrap import ensure_first_project

    given = settings()
    if given.database_url is None:
        given.data_dir.mkdir(parents=True, exist_ok=True)
    migrate(given.database)
    revision = current(given.database)
    database = connect(given.database)
    first = ensure_first_project(database, given.key_file, given.default_license)
    database.dispose()
    made_key = str(first.key_file) if first.made else None

    def told() -> None:
        out.print(f"The schema is at revision {revision}.")
        if made_key is not None:
            out.print(f"The first project's key is in {made_key}.", soft_wrap=True)

    show({"revision": revision, "key_file": made_key}, as_json, told)


def _storage() -> "Storage":
    from app.storage.places import open_storage

    return open_storage(settings().storage_url)


def _database() -> str:
    """Its URL. Raises `CommandFailed` where it was never made: opening it would make an empty file."""
    given = settings()
    if given.database_url is None and not (given.data_dir / "retort.db").is_file():
        raise CommandFailed(
            f"there is no database in {given.data_dir}: `retort up` or `retort db upgrade` makes one",
            Exit.NOT_FOUND,
        )
    return given.database


@app.command()
def check(
    files: Annotated[bool, typer.Option(help="Read every file, too, and compare its SHA-256.")] = True,
    as_json: AsJson = False,
) -> None:
    """Compare counters with a recount and files with their checksums. Ends with 1 where something is wrong.

    The service may run meanwhile. It reads every row, and every file unless `--no-files` is given.
    """
    from app.services.checks import check as look

    found = look(_database(), _storage(), files)

    def told() -> None:
        for problem in found.problems:
            err.print(problem, markup=False, soft_wrap=True)
        out.print(
            f"{counted(found.jobs, 'job')}, {counted(found.files, 'file')}: "
            f"{counted(len(found.problems), 'problem') if found.problems else 'all in order'}."
        )

    show(found, as_json, told)
    if found.problems:
        raise typer.Exit(Exit.FAILED)


@app.command()
def vacuum(as_json: AsJson = False) -> None:
    """Give back the room of deleted rows, and let the planner count anew.

    SQLite: the file is written anew; nobody else can write meanwhile. PostgreSQL: `VACUUM (ANALYZE)`, beside the work.
    """
    from app.db.session import connect
    from app.db.vacuuming import size, vacuum

    database = connect(_database())
    try:
        before = size(database)
        vacuum(database)
        after = size(database)
    finally:
        database.dispose()
    show(
        {"bytes_before": before, "bytes_after": after},
        as_json,
        lambda: out.print(f"{before:,} bytes before, {after:,} bytes now."),
    )


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    files: Annotated[
        bool,
        typer.Option(
            help="Copy segments and exports, too. Without them, copy the storage yourself, afterwards."
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Copy the database as it is at one moment, and every file that it points to, while the service runs.

    The admin key is not in it: only hashes of keys are in the database.
    """
    from app.services.backups import back_up

    made = back_up(_database(), _storage(), folder, files)
    what = "without files" if made.files is None else f"with {counted(made.files, 'file')}"
    show(made, as_json, lambda: out.print(f"{folder}: {made.n_bytes:,} bytes, {what}.", soft_wrap=True))


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="What `retort db backup` made.")], as_json: AsJson = False
) -> None:
    """Put a backup into an empty database and the storage that the settings name. Nothing is overwritten.

    Stop the service first. Jobs that ran go on from the backup's last checkpoint when it is started again.
    """
    from app.services.backups import restore as put_back

    given = settings()
    if given.database_url is None:
        given.data_dir.mkdir(parents=True, exist_ok=True)
    made = put_back(given.database, _storage(), folder)
    show(made, as_json, lambda: out.print(f"The backup of {made.made_at} is back.", soft_wrap=True))
