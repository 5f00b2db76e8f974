"""`retort db …`: the database that this machine's settings name."""

import typer

from app.cli.outcome import AsJson, out, settings, show

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
