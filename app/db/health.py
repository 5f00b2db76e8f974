"""Whether the database can be worked with."""

from functools import cache

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine

from app.db.migrate import head, is_known
from app.db.session import reading


@cache
def _head() -> str:
    return head()


def schema_problem(engine: Engine) -> str | None:
    """None: the schema is at the head that this code knows. Raises `SQLAlchemyError` where nothing answers."""
    with reading(engine) as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found is None:
        return "has no schema yet: run `retort db upgrade`"
    if not is_known(found):
        return f"its schema is at {found}, which a newer version made: this code knows up to {_head()}"
    if found != _head():
        return f"its schema is at {found}, this code needs {_head()}: run `retort db upgrade`"
    return None
