"""`retort verify` and `retort push` as commands, against the Hub's own client and a server in its shape."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from app.db.session import connect
from app.storage.places import Storage
from tests.fixtures.completed import Rows, add_job, complete
from tests.fixtures.hub import TOKEN, HubServer

from .exporting import folder, made

JOB = Rows(prompts=12, tokens=3, k=2)


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def database(sqlite_url: str, storage: Storage) -> Iterator[Engine]:
    engine = connect(sqlite_url)
    add_job(engine, JOB)
    complete(engine, storage, JOB)
    yield engine
    engine.dispose()


def retort(*arguments: str | Path, hub: HubServer | None = None, token: str = TOKEN) -> tuple[int, Any, str]:
    """(exit code, JSON of the output, errors)."""
    environment = {**os.environ, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9" if hub is None else hub.url
    command = [sys.executable, "-m", "app.cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None, done.stderr


def test_verify(database: Engine, storage: Storage, tmp_path: Path) -> None:
    path = folder(database, storage, made(database, storage), tmp_path / "made")
    code, told, _ = retort("verify", path)
    assert (code, told["whole"], told["n_rows"]) == (0, True, 12)
    card = path / "README.md"
    card.write_bytes(card.read_bytes()[:-1])
    code, told, _ = retort("verify", path)
    assert (code, told["whole"]) == (1, False)
    assert told["faults"][0].startswith("README.md is not what the manifest says")


def test_push(database: Engine, storage: Storage, tmp_path: Path, hub: HubServer) -> None:
    use = {"research": True, "redistribution": True}
    path = folder(database, storage, made(database, storage, intended_use=use), tmp_path / "made")
    hub.files.clear()
    code, told, errors = retort("push", path, "me/answers", hub=hub)
    assert code == 0, errors
    assert told["url"] == f"{hub.url}/datasets/me/answers"
    assert hub.files == {one.name: one.read_bytes() for one in path.iterdir()}


def test_what_was_not_declared_for_redistribution_goes_to_private_repositories_only(
    database: Engine, storage: Storage, tmp_path: Path, hub: HubServer
) -> None:
    path = folder(database, storage, made(database, storage), tmp_path / "made")
    code, _, errors = retort("push", path, "me/answers", hub=hub)
    assert code == 4
    assert "--redistribution" in errors
    assert retort("push", path, "me/answers", "--private", hub=hub)[0] == 0
    assert hub.created["visibility"] == "private"


def test_a_repository_that_is_public_already_is_not_made_private_by_asking(
    database: Engine, storage: Storage, tmp_path: Path, hub: HubServer
) -> None:
    path = folder(database, storage, made(database, storage), tmp_path / "made")
    hub.files.clear()
    code, _, errors = retort("push", path, "me/public", "--private", hub=hub)
    assert code == 4
    assert "me/public is there already, and public" in errors
    assert not hub.files
    use = {"research": True, "redistribution": True}
    path = folder(database, storage, made(database, storage, intended_use=use), tmp_path / "given-on")
    assert retort("push", path, "me/public", hub=hub)[0] == 0
    assert hub.files


def test_a_repository_holds_the_export_and_its_data_alone(
    database: Engine, storage: Storage, tmp_path: Path, hub: HubServer
) -> None:
    path = folder(database, storage, made(database, storage), tmp_path / "made")
    theirs = {one.name for one in path.iterdir()}
    (path / "passwords.txt").write_text("secret")
    hub.files.clear()
    hub.files |= {
        "train-00007.parquet": b"of a larger export",
        "test-00000.jsonl": b"",
        "train-notes.md": b"",
    }
    assert retort("push", path, "me/answers", "--private", hub=hub)[0] == 0
    assert set(hub.files) == {*theirs, "train-notes.md"}


def test_a_damaged_export_and_a_wrong_token_are_not_pushed(
    database: Engine, storage: Storage, tmp_path: Path, hub: HubServer
) -> None:
    path = folder(database, storage, made(database, storage), tmp_path / "made")
    code, _, errors = retort("push", path, "me/answers", "--private", hub=hub, token="hf_wrong")
    assert code == 4
    assert "the Hub answered 401" in errors
    assert "hf_wrong" not in errors
    code, _, errors = retort("push", path, "me/answers", "--private")
    assert code == 3
    assert "the Hub cannot be reached" in errors
    (path / "croissant.json").unlink()
    code, _, errors = retort("push", path, "me/answers", "--private", hub=hub)
    assert code == 1
    assert "is not whole" in errors
