"""Alembic's environment: one history for SQLite and PostgreSQL."""

from alembic import context
from sqlalchemy import text

from app.db import (  # noqa: F401 - their tables belong to the schema
    admission_models,
    batch_models,
    export_models,
    policy_models,
)
from app.db.models import Base
from app.db.session import connect

_LOCK = 0x5265746F7274  # any constant: all migrating processes agree on it


def run() -> None:
    engine = connect(context.config.attributes["url"])
    sqlite = engine.dialect.name == "sqlite"
    with engine.connect().execution_options(writes=True) as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=sqlite,
            transaction_per_migration=False,
            compare_type=True,
        )
        with context.begin_transaction():
            if not sqlite:
                connection.execute(text("SET LOCAL lock_timeout = '15s'"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            context.run_migrations()
        connection.commit()
    engine.dispose()


run()
