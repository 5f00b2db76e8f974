"""What a database keeps of removed text where no query sees it: free pages, the write-ahead log, dead tuples."""

import logging
import time

from sqlalchemy import Engine

log = logging.getLogger(__name__)

_TABLES = ("completion", "prompt", "part", "prompt_error", "idempotent_request")
_PATIENCE_SECONDS = 20.0


class Busy(Exception):
    """Somebody reads an old state of the database: the log cannot be emptied yet."""


def purge(database: Engine) -> None:
    """SQLite: the file is written anew and its log emptied. PostgreSQL: dead tuples are vacuumed; their bytes may stay
    in the pages until these are used again, and in archives of the log (`VACUUM FULL` rewrites the tables at once).

    Raises `Busy`.
    """
    connection = database.raw_connection()
    try:
        if database.dialect.name == "sqlite":
            _rewrite(connection)
        else:
            _vacuum(connection)
    finally:
        connection.close()


def _rewrite(connection: "object") -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("PRAGMA temp_store=FILE")  # the copy may be larger than memory
    try:
        cursor.execute("VACUUM")
        end = time.monotonic() + _PATIENCE_SECONDS
        while True:
            busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if not busy:
                return
            if time.monotonic() > end:
                raise Busy("a long read keeps the database's log from being emptied")
            time.sleep(0.2)
    finally:
        cursor.execute("PRAGMA temp_store=MEMORY")
        cursor.close()


def _vacuum(connection: "object") -> None:
    driver = connection.driver_connection  # type: ignore[attr-defined]
    driver.rollback()
    driver.autocommit = True
    try:
        with driver.cursor() as cursor:
            for table in _TABLES:
                cursor.execute(f"VACUUM {table}")
    finally:
        driver.autocommit = False
