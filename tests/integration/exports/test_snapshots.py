"""An export's rows are fixed when it is asked for, also while a checkpoint is being committed; and the whole way on
either storage."""

import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection, update

from app.db import checkpoints, shards
from app.db.checkpoints import ShardBatch, Tally
from app.db.models import Lane, Project
from app.db.session import connect, transaction
from app.db.shards import Candidate
from app.storage.places import Storage, open_storage
from app.storage.segments import FP16, Profile
from tests.fixtures.completed import WORKER, Rows, add_job, record, row_of
from tests.fixtures.jobs import JobSetup, check_whole, make_job
from tests.integration.engine.running import Teacher, finish, running

from .exporting import ask, look, made, run, table


@pytest.mark.postgres
def test_a_checkpoint_that_is_under_way_is_waited_for(postgres_url: str, storage: Storage) -> None:
    """Its rows carry an earlier time than the export's, and are committed later."""
    database = connect(postgres_url)
    rows = Rows(prompts=16)
    add_job(database, rows)
    with transaction(database) as connection:
        claim = shards.claim(connection, Candidate(rows.id, 0, False, 0, 0), WORKER, 600, 1)
    assert claim is not None
    written, may_commit = threading.Event(), threading.Event()

    def checkpoint(connection: Connection) -> None:
        batch = ShardBatch(claim.shard_id, claim.epoch, 1, claim.job_id, claim.teacher)
        batch.rows = [row_of(rows, claim, number, 0, None) for number in range(3)]
        batch.tally = Tally(completed=3)
        assert checkpoints.record(connection, WORKER, 0, [batch]) == {claim.lease}

    def commit_late() -> None:
        with transaction(database) as connection:
            checkpoint(connection)
            written.set()
            may_commit.wait(20)

    writer = threading.Thread(target=commit_late)
    writer.start()
    assert written.wait(10)
    asked: list[str] = []
    asking = threading.Thread(target=lambda: asked.append(ask(database).id))
    asking.start()
    time.sleep(0.5)
    assert not asked, "the export was fixed before the checkpoint's end was known"
    may_commit.set()
    writer.join(20)
    asking.join(20)
    record(database, rows, claim, range(3, 8))
    assert run(database, storage)
    assert look(database, asked[0]).n_rows == 3
    assert made(database, storage).n_rows == 8
    database.dispose()


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_the_engine_and_an_export_on_either_storage(
    place: str, sqlite_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path / "storage") if place == "folder" else request.getfixturevalue("bucket_url")
    database, storage = connect(sqlite_url), open_storage(url)
    job = make_job(database, JobSetup(prompts=30, n=2, top_logprobs=4))
    by_default = Profile("compact")
    if place == "bucket":  # as the project says, whatever the settings say
        by_default = FP16
        with transaction(database) as connection:
            connection.execute(update(Project).values(storage_profile="compact"))
    with running(database, storage, Teacher(), profile=by_default):
        finish(database, job)
    assert check_whole(database, storage, job) == {"completed": 60, "failed": 0, "segments": 4}
    with transaction(database) as connection:
        connection.execute(update(Lane).values(model="scripted-0"))  # one whose terms are known
    found = table(database, storage, made(database, storage, selection={"jobs": [job]}))
    assert found.num_rows == 60
    assert set(found.column("lp_k").to_pylist()) == {4}
    assert set(found.column("lp_dtype").to_pylist()) == {"steps of 0.015625"}
    for row in found.select(["topk_logprobs", "sampled_logprob"]).to_pylist():
        assert row["topk_logprobs"][:4] == [-3.0, -4.0, -5.0, -6.0]
        assert row["sampled_logprob"] == [-3.0] * 8
    database.dispose()
