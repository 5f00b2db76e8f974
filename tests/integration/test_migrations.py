"""One schema for SQLite and PostgreSQL: models and migrations agree, and no upgrade loses or refuses a row."""

import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Boolean,
    Connection,
    Engine,
    Float,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    inspect,
    select,
)
from sqlalchemy.engine.interfaces import ReflectedColumn, ReflectedIndex
from sqlalchemy.types import JSON

import app.db
from app.db.migrate import config, current, head, upgrade
from app.db.models import Base
from app.db.session import connect, transaction

REVISIONS = [script.revision for script in ScriptDirectory.from_config(config("")).walk_revisions()][::-1]
ROWS = 3


def described(engine: Engine) -> dict[str, Any]:
    """All that a database can tell of its schema, in a fixed order."""
    found = inspect(engine)
    return {
        table: {
            "columns": {column["name"]: _column(engine, column) for column in found.get_columns(table)},
            "key": found.get_pk_constraint(table)["constrained_columns"],
            "references": sorted(
                (
                    key["constrained_columns"],
                    key["referred_table"],
                    key["referred_columns"],
                    str(key["options"]),
                )
                for key in found.get_foreign_keys(table)
            ),
            "unique": sorted(
                (one["name"] or "", one["column_names"]) for one in found.get_unique_constraints(table)
            ),
            "checks": sorted(
                (one["name"] or "", str(one["sqltext"])) for one in found.get_check_constraints(table)
            ),
            "indexes": sorted(
                (
                    str(one["name"]),
                    str(one["column_names"]),
                    bool(one["unique"]),
                    _options(one),
                )
                for one in found.get_indexes(table)
            ),
        }
        for table in sorted(found.get_table_names())
        if table != "alembic_version"
    }


def _column(engine: Engine, column: ReflectedColumn) -> tuple[str, bool, str | None]:
    return column["type"].compile(engine.dialect), column["nullable"], column["default"]


def _options(index: ReflectedIndex) -> str:
    return str({name: str(option) for name, option in index.get("dialect_options", {}).items()})


def database(url: str, revision: str) -> Engine:
    upgrade(url, revision)
    return connect(url)


def tables(engine: Engine) -> list[Table]:
    """The tables as they are now, those that others refer to first."""
    metadata = MetaData()
    metadata.reflect(engine)
    return [table for table in metadata.sorted_tables if table.name != "alembic_version"]


def value(table: Table, name: str, number: int) -> object:
    """Something that this column takes, different for each number."""
    kind = table.c[name].type
    if isinstance(kind, Boolean):
        return number % 2 == 0
    if isinstance(kind, Integer):
        return number
    if isinstance(kind, Float):
        return number + 0.5
    if isinstance(kind, LargeBinary):
        return b"%d" % number
    if isinstance(kind, JSON):
        return {"number": number}
    return f"{name[:8]}{number}"


def fill(connection: Connection, given: list[Table], numbers: range) -> None:
    for table in given:
        referring: dict[str, object] = {}
        for constraint in table.constraints:
            if isinstance(constraint, ForeignKeyConstraint) and constraint.referred_table is not table:
                referring |= {key.parent.name: key.column for key in constraint.elements}
        rows = []
        for number in numbers:
            row = {}
            for column in table.columns:
                source = referring.get(column.name, column)
                row[column.name] = value(source.table, source.name, number)  # type: ignore[attr-defined]
            rows.append(row)
        connection.execute(table.insert(), rows)


def contents(connection: Connection, given: list[Table]) -> dict[str, list[tuple[Any, ...]]]:
    """All rows, by the columns that the tables had when they were reflected."""
    return {
        table.name: sorted((tuple(row) for row in connection.execute(select(*table.columns))), key=repr)
        for table in given
    }


@pytest.mark.smoke
def test_models_and_migrations_agree(empty_database_url: str) -> None:
    """Types, defaults, keys, checks, conditions of partial indexes: alembic's own comparison does not see all."""
    for module in pkgutil.iter_modules(app.db.__path__):
        import_module(f"app.db.{module.name}")  # tables may be described in any of them
    engine = connect(empty_database_url)
    Base.metadata.create_all(engine)
    of_models = described(engine)
    Base.metadata.drop_all(engine)
    assert described(engine) == {}
    upgrade(empty_database_url)
    assert described(engine) == of_models
    engine.dispose()


def test_alembic_sees_no_difference_either(database_url: str) -> None:
    command.check(config(database_url))


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_filled_database_of_every_version_is_upgraded(empty_database_url: str, revision: str) -> None:
    """No row is lost or changed, and a process of that version can go on writing the rows that it knows."""
    engine = database(empty_database_url, revision)
    old = tables(engine)
    with transaction(engine) as connection:
        fill(connection, old, range(1, ROWS + 1))
        before = contents(connection, old)
    assert all(len(rows) == ROWS for rows in before.values())
    engine.dispose()
    upgrade(empty_database_url)
    assert current(empty_database_url) == head()
    with transaction(engine) as connection:
        assert contents(connection, old) == before
        fill(connection, old, range(ROWS + 1, 2 * ROWS + 1))
        assert all(len(rows) == 2 * ROWS for rows in contents(connection, old).values())
    engine.dispose()


def test_an_upgrade_that_is_repeated_changes_nothing(empty_database_url: str) -> None:
    engine = database(empty_database_url, "head")
    before = described(engine)
    upgrade(empty_database_url)
    assert described(engine) == before
    engine.dispose()


def test_processes_that_upgrade_at_once_wait_for_each_other(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETORT_DATABASE_URL", empty_database_url)
    monkeypatch.setenv("RETORT_DATA_DIR", str(tmp_path / "data"))
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "app.cli", "db", "upgrade"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(3)
    ]
    ended = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ended
    assert sum("The first project's key" in text for text in ended) == 1, ended


def test_every_step_can_be_taken_back(empty_database_url: str) -> None:
    engine = database(empty_database_url, "head")
    whole = described(engine)
    command.downgrade(config(empty_database_url), "base")
    assert described(engine) == {}
    upgrade(empty_database_url)
    assert described(engine) == whole
    engine.dispose()
