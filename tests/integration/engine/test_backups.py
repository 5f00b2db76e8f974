"""`retort db check`, `vacuum`, `backup`, `restore`, while an engine works on the database."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from sqlalchemy import Engine, delete, insert, select, update

from app.db.models import Completion, IdempotentRequest, Job, Project, Shard, ShardAttempt, Worker
from app.db.session import connect, reading, transaction
from app.db.vacuuming import size, vacuum
from app.errors import Conflict, InvalidInput, StorageError
from app.services.backups import back_up, restore
from app.services.checks import check
from app.storage.places import Storage, open_storage
from tests.fixtures.jobs import JobSetup, check_whole, make_job
from tests.integration.engine.running import Teacher as Answering
from tests.integration.engine.running import finish, running, until


@pytest.fixture
def engine(empty_database_url: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The database that is backed up, of the same kind as the empty one."""
    kind = "sqlite_url" if empty_database_url.startswith("sqlite") else "postgres_url"
    made = connect(request.getfixturevalue(kind))
    yield made
    made.dispose()


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def test_a_backup_made_amid_the_work_goes_on_elsewhere(
    engine: Engine, storage: Storage, empty_database_url: str, tmp_path: Path
) -> None:
    """Whatever moment it caught, the job ends whole on the other side, and the first service does not notice."""
    job = make_job(engine, JobSetup(prompts=200, top_logprobs=3))
    with running(engine, storage, Answering(delay=0.02), max_in_flight=4) as made:
        until(lambda: made.unflushed and count(engine, Shard.status == "finished") >= 2)
        backup = back_up(url_of(engine), storage, tmp_path / "backup", with_files=True)
        assert backup.files is not None
        assert backup.files >= 2
        finish(engine, job)
    check_whole(engine, storage, job)

    elsewhere = open_storage(str(tmp_path / "elsewhere"))
    assert restore(empty_database_url, elsewhere, tmp_path / "backup") == backup
    assert check(empty_database_url, elsewhere, with_files=True).problems == ()
    other = connect(empty_database_url)
    with reading(other) as connection:
        assert connection.execute(select(Worker.id)).all() == []
        assert set(connection.execute(select(Shard.status)).scalars()) <= {"ready", "finished"}
        assert min(connection.execute(select(Shard.epoch)).scalars()) >= 1_000_000
        assert None not in connection.execute(select(ShardAttempt.ended_at)).scalars().all()
        kept = connection.execute(select(Completion.sample_index)).all()
    assert 0 < len(kept) < 200
    teacher = Answering()
    with running(other, elsewhere, teacher):
        finish(other, job)
    assert check_whole(other, elsewhere, job)["completed"] == 200
    assert sum(teacher.calls.values()) == 200 - len(kept)
    make_job(other, JobSetup(prompts=3))  # serial numbers go on after those that were put back
    other.dispose()


def count(database: Engine, where: object) -> int:
    with reading(database) as connection:
        return len(connection.execute(select(Shard.id).where(where)).all())  # type: ignore[arg-type]


def test_what_is_no_backup_is_refused(
    engine: Engine, storage: Storage, empty_database_url: str, tmp_path: Path
) -> None:
    make_job(engine, JobSetup(prompts=5))
    back_up(url_of(engine), storage, tmp_path / "backup", with_files=False)
    with pytest.raises(Conflict, match="not empty"):
        back_up(url_of(engine), storage, tmp_path / "backup", with_files=False)
    with pytest.raises(Conflict, match="not empty"):
        restore(url_of(engine), storage, tmp_path / "backup")
    note = tmp_path / "backup" / "backup.json"
    whole = note.read_text()
    wrong: list[tuple[dict[str, object], str]] = [
        ({"database": "oracle"}, "of oracle"),
        ({"revision": "9999"}, "newer version"),
        ({"parts": {"retort.db": "00"}}, "damaged"),
        ({"shape": 1}, "cannot be read"),
    ]
    for change, told in wrong:
        note.write_text(json.dumps({**json.loads(whole), **change}))
        with pytest.raises(InvalidInput, match=told):
            restore(empty_database_url, storage, tmp_path / "backup")
    note.unlink()
    with pytest.raises(InvalidInput, match="no whole backup"):
        restore(empty_database_url, storage, tmp_path / "backup")


def test_the_check_finds_what_is_wrong(engine: Engine, storage: Storage, tmp_path: Path) -> None:
    job = make_job(engine, JobSetup(prompts=20, top_logprobs=2))
    with running(engine, storage, Answering()):
        finish(engine, job)
    url = url_of(engine)
    found = check(url, storage, with_files=True)
    assert (found.jobs, found.files, found.problems) == (1, 3, ())
    path = next(iter(storage.list("segments")))
    with storage.open(path) as file:
        content = file.read()
    storage.delete(path)
    broken = content[:-1] + bytes([content[-1] ^ 1])

    def write(out: IO[bytes]) -> None:
        out.write(broken)

    storage.write_atomically(path, write)
    with pytest.raises(StorageError, match="damaged"):
        back_up(url, storage, tmp_path / "backup", with_files=True)
    assert not (tmp_path / "backup" / "backup.json").exists()
    with transaction(engine) as connection:
        connection.execute(delete(Completion).where(Completion.prompt_number == 3))
        connection.execute(update(Job).values(n_shards_finished=1))
    problems = check(url, storage, with_files=True).problems
    assert len(problems) == 4
    told = "\n".join(problems)
    assert "its counters say 20 completed and 0 failed, its rows are 19 completed and 0 failed" in told
    assert "it says 1 of 3 shards are finished, 3 of 3 are" in told
    assert f"{path} is damaged" in told
    storage.delete(path)
    assert any("no such" in one.lower() or "missing" in one for one in check(url, storage, True).problems)


def test_a_vacuum_gives_room_back(engine: Engine) -> None:
    with transaction(engine) as connection:
        project = insert(Project).values(id="prj_1", name="p", created_at=1.0)
        connection.execute(project)
        rows = [
            {"project_id": "prj_1", "key": secrets.token_hex(1000), "request_sha256": b"", "created_at": 1.0}
            for _ in range(2000)
        ]
        connection.execute(insert(IdempotentRequest), rows)
    full = size(engine)
    with transaction(engine) as connection:
        connection.execute(delete(IdempotentRequest))
    vacuum(engine)
    assert size(engine) < full - 1_000_000
