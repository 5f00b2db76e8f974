"""Bring a database to the schema's head; tell where it stands."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.db.session import connect

_SCRIPTS = Path(__file__).resolve().parents[2] / "migrations"


def config(url: str) -> Config:
    made = Config()
    made.set_main_option("script_location", str(_SCRIPTS))
    made.attributes["url"] = url
    return made


def upgrade(url: str, revision: str = "head") -> None:
    """Run the migrations up to `revision`; on PostgreSQL one process at a time, the others wait."""
    command.upgrade(config(url), revision)


def head() -> str:
    found = ScriptDirectory.from_config(config("")).get_current_head()
    if found is None:
        raise RuntimeError("no migrations are installed")
    return found


def current(url: str) -> str | None:
    """The revision that the database is at; None for one without a schema."""
    engine = connect(url)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
