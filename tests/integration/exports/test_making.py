"""Exports are made whole: split, cut, resumed, parked, cancelled; the same bytes whoever makes them."""

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import Engine, select

from app.db import exports as rows
from app.db.export_models import ExportFile
from app.db.session import connect, reading, session, transaction
from app.errors import Conflict, StorageError
from app.services import export
from app.storage.places import LocalFolder, NewFile, Storage, open_storage
from tests.fixtures.completed import Rows, add_job, complete, set_times

from .exporting import ask, content, digests, lines, look, made, project_of, run, table

JOB = Rows(prompts=60, n=2, tokens=3, k=2)
SPLIT = {"train": 0.6, "validation": 0.2, "test": 0.2, "salt": "x"}
SMALL: dict[str, Any] = {"split": SPLIT, "file_size": {"rows": 10}}


@pytest.fixture
def job(engine: Engine, storage: Storage) -> Rows:
    add_job(engine, JOB)
    complete(engine, storage, JOB)
    set_times(engine)
    return JOB


def test_the_same_rows_give_the_same_bytes_on_every_database_and_storage(
    sqlite_url: str, postgres_url: str, bucket_url: str, tmp_path: Path
) -> None:
    found: dict[str, list[dict[str, str]]] = {"parquet": [], "jsonl": []}
    for database_url, place in ((sqlite_url, bucket_url), (postgres_url, str(tmp_path / "storage"))):
        database = connect(database_url)
        storage = open_storage(place)
        add_job(database, JOB)
        # Whether a shard has ended, and its tokens lie in a segment or still in parts, makes no difference either.
        complete(database, storage, JOB, finish=place == bucket_url)
        set_times(database)
        for name in ("parquet", "jsonl") * 2:
            view = made(database, storage, format=name, **SMALL)
            for file in view.files:
                content(database, storage, view, file.name)
            found[name].append(digests(view))
        database.dispose()
    for first, *others in found.values():
        assert len(first) > 10
        assert others == [first] * 3


def test_splits_keep_siblings_together_and_names_tell_them(
    engine: Engine, storage: Storage, job: Rows
) -> None:
    view = made(engine, storage, format="jsonl", **SMALL)
    by_prompt: dict[str, set[str]] = {}
    for row in lines(engine, storage, view):
        by_prompt.setdefault(row["prompt"], set()).add(row["split"])
    assert len(by_prompt) == 60
    assert all(len(splits) == 1 for splits in by_prompt.values())
    manifest = orjson.loads(content(engine, storage, view, "manifest.json"))
    assert sum(manifest["splits"].values()) == view.n_rows == 120
    assert set(manifest["splits"]) == {"train", "validation", "test"}
    for file in view.files:
        if file.n_rows is not None:
            assert file.name.startswith(f"{file.split}-")
            assert file.n_rows <= 10
    assert manifest["counts"]["tokens"]["completion_tokens"] == 360


@pytest.mark.parametrize("checks", [1, 4, 9, 15, 26])
def test_an_attempt_goes_on_behind_the_last_finished_file(
    engine: Engine, storage: Storage, job: Rows, checks: int
) -> None:
    whole = digests(made(engine, storage, **SMALL))
    asked = ask(engine, **SMALL)
    left = iter(range(checks))
    assert run(engine, storage, stopped=lambda: next(left, None) is None)
    stopped = look(engine, asked.id)
    assert stopped.status in ("ready", "completed")
    with reading(engine) as connection:
        kept = {file.name: file for file in rows.finished(connection, asked.id)}
    times = {name: (Path(storage.url) / file.path).stat().st_mtime_ns for name, file in kept.items()}
    assert run(engine, storage, "w2") == (stopped.status == "ready")
    view = look(engine, asked.id)
    assert view.status == "completed"
    assert digests(view) == whole
    for file in view.files:
        content(engine, storage, view, file.name)
    with reading(engine) as connection:
        folders = {
            Path(str(path)).parent
            for path in connection.execute(select(ExportFile.path)).scalars()
            if asked.id in str(path)
        }
    assert len(folders) == 1, "a completed export lies whole in one folder"
    (folder,) = folders
    there = {file.name for file in (Path(storage.url) / folder).iterdir()}
    assert there == {file.name for file in view.files}
    assert [one.name for one in (Path(storage.url) / folder.parent).iterdir()] == [folder.name]
    for name, time in times.items():
        assert (Path(storage.url) / folder / name).stat().st_mtime_ns == time, (
            "a finished file is not made again"
        )


def test_a_worker_that_lost_the_lease_changes_nothing(engine: Engine, storage: Storage, job: Rows) -> None:
    asked = ask(engine, **SMALL)
    taken: list[str] = []

    def stopped() -> bool:
        if not taken:
            taken.append("now")
            with transaction(engine) as connection:
                connection.exec_driver_sql("UPDATE export SET lease_until = 0")
            assert run(engine, storage, "w2")
        return False

    assert run(engine, storage, "w1", stopped)
    view = look(engine, asked.id)
    assert view.status == "completed"
    for file in view.files:
        content(engine, storage, view, file.name)
    assert table(engine, storage, view).num_rows == 120


class Full(LocalFolder):
    """A folder on a disk that is full for a while: `fail` writes go through before it is."""

    room = 0

    def new_file(self, path: str) -> NewFile:
        if self.room == 0:
            raise StorageError(f"{path} cannot be written: No space left on device")
        self.room -= 1
        return super().new_file(path)


def test_a_full_disk_parks_the_export_and_it_goes_on(engine: Engine, storage: Storage, job: Rows) -> None:
    whole = digests(made(engine, storage, **SMALL))
    full = Full(Path(storage.url))
    full.room = 6
    asked = ask(engine, **SMALL)
    for _ in range(8):  # waiting for space is no failed attempt
        assert run(engine, full)
        parked = look(engine, asked.id)
        assert parked.status == "parked"
        assert parked.error is not None
        assert "No space left" in parked.error
    assert parked.files, "what was finished is kept"
    full.room = 1000
    assert run(engine, full)
    assert digests(look(engine, asked.id)) == whole


def test_an_error_of_ours_fails_the_export_in_the_end(engine: Engine, storage: Storage, job: Rows) -> None:
    asked = ask(engine)

    class Broken(LocalFolder):
        def open(self, path: str) -> Any:
            raise ZeroDivisionError("a bug")

    for status in ["parked"] * 4 + ["failed"]:
        assert run(engine, Broken(Path(storage.url)))
        view = look(engine, asked.id)
        assert (view.status, view.error) == (status, "internal error: ZeroDivisionError: a bug")
    assert not run(engine, storage)


@pytest.mark.parametrize("verb", [export.cancel, export.delete])
def test_cancel_and_delete_stop_a_running_export(
    engine: Engine, storage: Storage, job: Rows, verb: Any
) -> None:
    asked = ask(engine, **SMALL)
    calls: list[int] = []

    def stopped() -> bool:
        calls.append(1)
        if len(calls) == 8:
            with session(engine, writes=True) as work:
                assert verb(work, project_of(work), asked.id).files == []
        return False

    assert run(engine, storage, stopped=stopped)
    assert look(engine, asked.id).status == ("cancelled" if verb is export.cancel else "deleted")
    assert not (Path(storage.url) / export.folder_of(asked.id)).exists()
    assert not run(engine, storage)


def test_a_completed_export_cannot_be_cancelled_but_deleted(
    engine: Engine, storage: Storage, job: Rows
) -> None:
    view = made(engine, storage)
    with session(engine, writes=True) as work, pytest.raises(Conflict, match="nothing to cancel"):
        export.cancel(work, project_of(work), view.id)
    with session(engine, writes=True) as work:
        deleted = export.delete(work, project_of(work), view.id)
    assert (deleted.status, deleted.files, deleted.n_rows) == ("deleted", [], 120)
    assert look(engine, view.id).status == "deleted"


def test_a_segment_that_is_gone_parks_the_export_with_its_name(
    engine: Engine, storage: Storage, job: Rows
) -> None:
    shutil.rmtree(Path(storage.url) / "segments")
    asked = ask(engine)
    assert run(engine, storage)
    view = look(engine, asked.id)
    assert view.status == "parked"
    assert view.error is not None
    assert "segments/job_1/" in view.error
