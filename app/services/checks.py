"""Whether a database is in order: its own structures, counters against a recount, files against their checksums."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, case, func, select, text

from app.db import copies
from app.db.migrate import current, head
from app.db.models import Completion, Counter, Job, Shard
from app.db.session import connect
from app.domain.lifecycle import CompletionStatus, ShardStatus
from app.errors import StorageError
from app.storage.places import Storage
from app.storage.segments import verify_segment


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at, and a sentence for each thing that is wrong."""

    jobs: int
    files: int
    problems: tuple[str, ...]


def check(url: str, storage: Storage, with_files: bool) -> Report:
    """Look at everything, in one state of the database; the service may run meanwhile."""
    revision, wanted = current(url), head()
    if revision != wanted:
        return Report(
            0, 0, (f"the schema is at {revision}, this version's is {wanted}: `retort db upgrade`",)
        )
    database = connect(url)
    try:
        problems = list(_structure(database))
        with copies.snapshot(database) as connection:
            jobs = list(connection.execute(select(Job.id).order_by(Job.id)).scalars())
            for job_id in jobs:
                problems += _recount(connection, job_id)
            pointers = list(copies.pointers(connection)) if with_files else []
        replaced: list[tuple[str, bytes, str]] = []
        for path, sha256 in pointers:
            try:
                verify_segment(storage, path, sha256)
            except StorageError as error:
                replaced.append((path, sha256, error.detail))
        if replaced:  # perhaps since: a retry or a takedown makes a new file and deletes the old one
            with database.connect() as connection:
                still = set(copies.pointers(connection))
            problems += [detail for path, sha256, detail in replaced if (path, sha256) in still]
    finally:
        database.dispose()
    return Report(len(jobs), len(pointers), tuple(problems))


def _structure(database: Engine) -> Iterator[str]:
    """SQLite's own checks. PostgreSQL's pages are checked by the server, as they are read."""
    if database.dialect.name != "sqlite":
        return
    with database.connect() as connection:
        for (found,) in connection.execute(text("PRAGMA integrity_check")):
            if found != "ok":
                yield f"the database's file: {found}"
        for row in connection.execute(text("PRAGMA foreign_key_check")):
            yield f"row {row[1]} of {row[0]} points to a row of {row[2]} that is not there"


def _recount(connection: Connection, job_id: str) -> Iterator[str]:
    def n(status: CompletionStatus) -> object:
        return func.coalesce(func.sum(case((Completion.status == status, 1), else_=0)), 0)

    rows = connection.execute(
        select(n(CompletionStatus.COMPLETED), n(CompletionStatus.FAILED)).where(Completion.job_id == job_id)  # type: ignore[call-overload]
    ).one()
    of_shards = connection.execute(
        select(
            func.coalesce(func.sum(Shard.n_completed), 0),
            func.coalesce(func.sum(Shard.n_failed), 0),
            func.count(),
            func.coalesce(func.sum(case((Shard.status == ShardStatus.FINISHED, 1), else_=0)), 0),
        ).where(Shard.job_id == job_id)
    ).one()
    counted = connection.execute(
        select(
            func.coalesce(func.sum(Counter.completed), 0), func.coalesce(func.sum(Counter.failed), 0)
        ).where(Counter.job_id == job_id)
    ).one()
    job = connection.execute(select(Job.n_shards, Job.n_shards_finished).where(Job.id == job_id)).one()
    if tuple(map(int, counted)) != tuple(map(int, rows)):
        yield f"job {job_id}: its counters say {_told(tuple(counted))}, its rows are {_told(tuple(rows))}"
    if tuple(map(int, of_shards[:2])) != tuple(map(int, rows)):
        yield f"job {job_id}: its shards say {_told(tuple(of_shards))}, its rows are {_told(tuple(rows))}"
    if tuple(map(int, of_shards[2:])) != tuple(job):
        yield f"job {job_id}: it says {job[1]} of {job[0]} shards are finished, {of_shards[3]} of {of_shards[2]} are"


def _told(counts: Sequence[int]) -> str:
    completed, failed = counts[:2]
    return f"{int(completed):,} completed and {int(failed):,} failed"
