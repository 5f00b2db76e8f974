"""`retort db …`: the database that this machine's settings name."""

import typer

from app.cli.outcome import AsJson, out, settings, show

app = typer.Typer(no_args_is_help=True)


@app.command()
def upgrade(as_json: AsJson = False) -> None:
    """Bring the schema to this version's. Running it again changes nothing."""
    from app.db.migrate import current
    from app.db.migrate import upgrade as migrate

    given = settings()
    if given.database_url is None:
        given.data_dir.mkdir(parents=True, exist_ok=True)
    migrate(given.database)
    revision = current(given.database)
    show({"revision": revision}, as_json, lambda: out.print(f"The schema is at revision {revision}."))
