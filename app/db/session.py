"""Engines, the database's clock, and the one place that commits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Double, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement


class db_now(FunctionElement[float]):  # noqa: N801 - reads as an SQL function
    """Seconds since 1970 by the database's clock, at the moment of evaluation (float)."""

    type = Double()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite_now(element: Any, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _postgresql_now(element: Any, compiler: Any, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def connect(url: str, pool_size: int = 10) -> Engine:
    """An engine for SQLite or PostgreSQL. `postgres://` and `postgresql://` both mean psycopg 3."""
    target = make_url(url)
    if target.get_backend_name() == "sqlite":
        engine = create_engine(
            target,
            connect_args={"timeout": 30, "check_same_thread": False},
            pool_size=pool_size,
            max_overflow=20,
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if target.drivername in ("postgres", "postgresql"):
        target = target.set(drivername="postgresql+psycopg")
    return create_engine(target, pool_size=pool_size, max_overflow=20, pool_pre_ping=True)


def _prepare_sqlite(connection: Any, record: object) -> None:
    # The driver's own transaction handling is off: `_begin_sqlite` says BEGIN.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # NORMAL can lose commits at power loss
        "foreign_keys=ON",
        "busy_timeout=30000",
        "cache_size=-65536",
        "temp_store=MEMORY",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A read that turns into a write mid-way fails at once with SQLITE_BUSY: writers say so from the start.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def passes(error: DBAPIError) -> bool:
    """Whether waiting can mend it: the database is away, locked, full. False: what was asked is wrong."""
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One writing transaction: commits at the end, rolls back on any exception."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One reading transaction: a consistent view, never committed."""
    with engine.connect() as connection:
        yield connection


@contextmanager
def session(engine: Engine, writes: bool) -> Iterator[Session]:
    """An ORM session over one transaction: what a request of the API works in."""
    with engine.connect().execution_options(writes=writes) as connection, Session(connection) as orm:
        yield orm
        orm.flush()
        connection.commit()
