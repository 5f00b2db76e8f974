"""Bring a database to the schema's head; tell where it stands."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.db.session import connect
from app.errors import Conflict

_SCRIPTS = Path(__file__).resolve().parents[2] / "migrations"


def config(url: str) -> Config:
    made = Config()
    made.set_main_option("script_location", str(_SCRIPTS))
    made.attributes["url"] = url
    return made


def upgrade(url: str, revision: str = "head") -> None:
    """Run the migrations up to `revision`; on PostgreSQL one process at a time, the others wait.

    Raises `Conflict` for a database that a newer version has upgraded.
    """
    found = current(url)
    if found is not None and not is_known(found):
        raise Conflict(
            f"the database's schema is at {found}, which this version does not know: a newer one made it. Use that one"
        )
    command.upgrade(config(url), revision)


def head() -> str:
    found = ScriptDirectory.from_config(config("")).get_current_head()
    if found is None:
        raise RuntimeError("no migrations are installed")
    return found


def is_known(revision: str) -> bool:
    """Whether it is one of this version's."""
    scripts = ScriptDirectory.from_config(config("")).walk_revisions()
    return any(script.revision == revision for script in scripts)


def current(url: str) -> str | None:
    """The revision that the database is at; None for one without a schema."""
    engine = connect(url)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
