"""INSERT … ON CONFLICT, which both databases have and SQLAlchemy's own insert has not."""

from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from app.db.models import Base


def insert_ignoring(connection: Connection, table: type[Base], values: dict[str, Any]) -> bool:
    """Insert one row unless a unique key is taken. True: it is in. The transaction stays usable either way."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return bool(connection.execute(insert(table).values(**values).on_conflict_do_nothing()).rowcount)
