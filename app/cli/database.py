"""`retort db …`: the database that this machine's settings name."""

import typer

from app.cli.outcome import out, settings

app = typer.Typer(no_args_is_help=True)


@app.command()
def upgrade() -> None:
    """Bring the schema to this version's. Running it again changes nothing."""
    from app.db.migrate import current
    from app.db.migrate import upgrade as migrate

    given = settings()
    if given.database_url is None:
        given.data_dir.mkdir(parents=True, exist_ok=True)
    migrate(given.database)
    out.print(f"The schema is at revision {current(given.database)}.")
