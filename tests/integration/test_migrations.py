"""The migrations and the models agree, on SQLite and PostgreSQL, and every step can be taken back."""

import pytest
from alembic import command

from app.db.migrate import config, current, head, upgrade


@pytest.mark.smoke
def test_models_and_migrations_agree(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    assert current(empty_database_url) == head()
    command.check(config(empty_database_url))  # raises where a migration is missing


def test_every_step_can_be_taken_back(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    command.downgrade(config(empty_database_url), "base")
    upgrade(empty_database_url)
    assert current(empty_database_url) == head()
