"""Room that deleted rows leave, and the planner's statistics."""

from sqlalchemy import Engine, text


def vacuum(database: Engine) -> None:
    """SQLite: the file is written anew and its log emptied. PostgreSQL: dead rows are cleared, statistics made anew."""
    connection = database.raw_connection()
    try:
        if database.dialect.name == "sqlite":
            cursor = connection.cursor()
            cursor.execute("PRAGMA temp_store=FILE")  # the copy may be larger than memory
            for statement in ("VACUUM", "ANALYZE", "PRAGMA wal_checkpoint(TRUNCATE)"):
                cursor.execute(statement)
            connection.invalidate()
            return
        driver = connection.driver_connection
        assert driver is not None
        driver.rollback()
        driver.autocommit = True
        try:
            driver.execute("VACUUM (ANALYZE)")
        finally:
            driver.autocommit = False
    finally:
        connection.close()


def size(database: Engine) -> int:
    """Bytes of the database: its pages, without SQLite's log."""
    asked = "SELECT pg_database_size(current_database())"
    if database.dialect.name == "sqlite":
        asked = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    with database.connect() as connection:
        return int(connection.execute(text(asked)).scalar_one())
