"""A database copied while it is written to, as it was at one moment, and put back into an empty one."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, MetaData, inspect, select, text, update

from app.db.export_models import Export, ExportFile
from app.db.models import Leader, Segment, Shard, ShardAttempt, SlotGrant, Worker
from app.db.session import connect, db_now, reading, transaction
from app.domain.lifecycle import ShardStatus
from app.errors import Conflict

_SQLITE = "retort.db"
_CHUNK = 1 << 20
_LEAP = 1_000_000  # no worker of the old database holds such an epoch


@contextmanager
def copied(database: Engine, folder: Path) -> Iterator[Connection]:
    """Write the copy into `folder`; what it holds can be read until the block ends. No writer waits for it.

    SQLite: one file, `retort.db`. PostgreSQL: one file for each table, in COPY's text format.
    """
    if database.dialect.name == "sqlite":
        _copy_file(database, folder / _SQLITE)
        copy = connect(f"sqlite:///{folder / _SQLITE}")
        try:
            with reading(copy) as connection:
                yield connection
        finally:
            copy.dispose()
        return
    with snapshot(database) as connection:
        tables = MetaData()
        tables.reflect(connection)
        for table in tables.sorted_tables:
            out = f"COPY {_quoted(connection, table.name)} TO STDOUT"
            with (folder / f"{table.name}.copy").open("wb") as file, _copying(connection, out) as rows:
                for block in rows:
                    file.write(block)
        yield connection


@contextmanager
def snapshot(database: Engine) -> Iterator[Connection]:
    """A reading transaction in which every statement sees the same state."""
    if database.dialect.name == "postgresql":
        database = database.execution_options(isolation_level="REPEATABLE READ")
    with reading(database) as connection:
        yield connection


def _copy_file(database: Engine, target: Path) -> None:
    """All pages in one step, under one read lock: in WAL mode that holds up no writer."""
    source = database.raw_connection()
    copy = sqlite3.connect(target)
    try:
        source.driver_connection.backup(copy)  # type: ignore[union-attr]
        copy.execute("PRAGMA journal_mode=DELETE")
    finally:
        copy.close()
        source.close()


@contextmanager
def _copying(connection: Connection, statement: str) -> Iterator[Any]:
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(statement) as rows:
        yield rows


def _quoted(connection: Connection, table: str) -> str:
    return connection.dialect.identifier_preparer.quote(table)


def is_empty(database: Engine) -> bool:
    """Whether it has no schema yet."""
    return not inspect(database).get_table_names()


def put_back(database: Engine, folder: Path) -> None:
    """The copy's rows into a database that is empty (SQLite), or has its schema and nothing else (PostgreSQL)."""
    if database.dialect.name == "sqlite":
        # `immutable`: nothing is written beside the backup, which may be on a read-only disk.
        copy = sqlite3.connect(f"file:{quote(str(folder / _SQLITE))}?immutable=1", uri=True)
        target = database.raw_connection()
        try:
            copy.backup(target.driver_connection)  # type: ignore[arg-type]
        finally:
            target.close()
            copy.close()
        database.dispose()  # the next connection sets its journal mode anew
        return
    with transaction(database) as connection:
        tables = MetaData()
        tables.reflect(connection)
        names = ", ".join(_quoted(connection, table.name) for table in tables.sorted_tables)
        connection.execute(text(f"TRUNCATE {names}"))
        for table in tables.sorted_tables:
            into = f"COPY {_quoted(connection, table.name)} FROM STDIN"
            with (folder / f"{table.name}.copy").open("rb") as file, _copying(connection, into) as rows:
                while block := file.read(_CHUNK):
                    rows.write(block)
            for column in table.columns:
                _continue_counting(connection, table.name, column.name)


def _continue_counting(connection: Connection, table: str, column: str) -> None:
    """A serial column goes on after the highest number that was put back."""
    named = {"table": _quoted(connection, table), "column": column}
    sequence = connection.execute(text("SELECT pg_get_serial_sequence(:table, :column)"), named).scalar_one()
    if sequence is not None:
        highest = f"SELECT max({_quoted(connection, column)}) FROM {_quoted(connection, table)}"  # noqa: S608
        connection.execute(
            text(f"SELECT setval(:sequence, coalesce(({highest}), 1))"), {"sequence": sequence}
        )


def release_everything(connection: Connection) -> None:
    """Nobody works on a database that was put back: no worker, no lease, and every fencing token is void."""
    for table in (Worker, Leader, SlotGrant):
        connection.execute(table.__table__.delete())  # type: ignore[attr-defined]
    connection.execute(
        update(ShardAttempt)
        .where(ShardAttempt.ended_at.is_(None))
        .values(ended_at=db_now(), outcome="lost", detail="the database was put back from a backup")
    )
    connection.execute(
        update(Shard)
        .where(Shard.status == ShardStatus.LEASED)
        .values(status=ShardStatus.READY, owner=None, lease_until=None)
    )
    connection.execute(update(Shard).values(epoch=Shard.epoch + _LEAP))


def pointers(connection: Connection) -> Iterator[tuple[str, bytes]]:
    """(path in the storage, SHA-256) of every file that the database points to."""
    segments = select(Segment.path, Segment.sha256).join(Shard, Shard.segment_id == Segment.id)
    for row in connection.execute(segments.order_by(Segment.path).execution_options(yield_per=1000)):
        yield row.path, row.sha256
    files = (
        select(ExportFile.path, ExportFile.name, ExportFile.sha256, Export.path.label("folder"))
        .join(Export, Export.id == ExportFile.export_id)
        .where(Export.path.is_not(None))
    )
    for own, name, sha256, folder in connection.execute(files.execution_options(yield_per=1000)):
        yield own or f"{folder}/{name}", sha256


def check_empty(database: Engine) -> None:
    """Raises `Conflict` where something is in it."""
    if not is_empty(database):
        raise Conflict(
            "the database is not empty: a backup is put back into a new one, so that nothing is overwritten"
        )
