"""INSERT … ON CONFLICT, which both databases have and SQLAlchemy's own insert has not."""

from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from app.db.models import Base


def insert_ignoring(connection: Connection, table: type[Base], values: dict[str, Any]) -> bool:
    """Insert one row unless a unique key is taken. True: it is in. The transaction stays usable either way."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(**values).on_conflict_do_nothing()
    # SQLAlchemy forgets an INSERT's row count with some drivers, and says −1, unless it is asked to keep it.
    result = connection.execute(statement, execution_options={"preserve_rowcount": True})
    return result.rowcount == 1
