"""What no longer serves anybody: silent workers, orphan files, old requests, wake-ups and samples of pace, histories.

Rows go every minute, files every hour. Every statement is short and found by an index, at any size; any process may do
it, any number of times, and may die in between.
"""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection, Engine, select

from app.db import tidying, workers
from app.db.export_models import Export, ExportFile
from app.db.models import Teacher
from app.db.session import reading, transaction
from app.domain.lifecycle import ExportStatus
from app.errors import StorageError
from app.services.ports import ForgetWakeUps
from app.storage.places import Storage

log = logging.getLogger(__name__)

_BATCH = 1000
# A rewritten segment (of a takedown) or an export's file is there a while before anything points to it.
_YOUNG_SECONDS = 3600.0
_UNFINISHED_SECONDS = 86_400.0  # nobody writes at one file for a day
_SEGMENT = re.compile(r"segments/[^/]+/(\d+)-e(\d+)-")


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what no job needs any more is kept."""

    idempotency_hours: float
    pace_hours: float
    attempts_days: float
    lease_seconds: float


def tidy(database: Engine, keep: Retention) -> None:
    """One round through the rows."""
    with transaction(database) as connection:
        workers.sweep(connection, keep.lease_seconds * 10)
    _until_done(database, tidying.expired_grants)
    _until_done(database, partial(tidying.expired_requests, hours=keep.idempotency_hours))
    with reading(database) as connection:
        active = tidying.active_jobs(connection)
        over = tidying.jobs_to_tidy(connection, tidying.NOTHING, keep.pace_hours * 3600)
        old = tidying.jobs_to_tidy(connection, tidying.SCRATCH, keep.attempts_days * 86_400)
    for job_id in active:
        _until_done(database, partial(tidying.old_pace, job_id=job_id, hours=keep.pace_hours))
    for job_id in over:
        _until_done(database, partial(tidying.pace, job_id=job_id))
        with transaction(database) as connection:
            tidying.mark_tidied(connection, job_id, tidying.SCRATCH)
    for job_id in old:
        last: int | None = 0
        while last is not None:
            with transaction(database) as connection:
                last = tidying.histories(connection, job_id, last)
        with transaction(database) as connection:
            tidying.mark_tidied(connection, job_id, tidying.HISTORIES)


def _until_done(database: Engine, some: Callable[[Connection], int]) -> None:
    """In short transactions, so that nobody waits for housekeeping."""
    n = tidying.AT_ONCE
    while n >= tidying.AT_ONCE:
        with transaction(database) as connection:
            n = some(connection)


def sweep(database: Engine, storage: Storage, older_than_seconds: float = _YOUNG_SECONDS) -> None:
    """One round through the files: those go that nothing points to and nothing ever will."""
    for paths in (
        segment_orphans(database, storage, older_than_seconds),
        export_orphans(database, storage, older_than_seconds),
    ):
        for path in paths:
            log.info("orphan file %s is deleted", path)
            storage.delete(path)
    unfinished = storage.delete_unfinished(_UNFINISHED_SECONDS)
    if unfinished:
        log.info("%d files that nobody finished are deleted", unfinished)


def segment_orphans(database: Engine, storage: Storage, older_than_seconds: float) -> Iterator[str]:
    """Segment files whose writer died before its commit, or that a newer generation has replaced.

    The name tells shard and epoch. Whoever holds the shard under that epoch may yet commit; nobody else can. That is
    asked first: a commit between the two questions would then be seen by the second one.
    """
    for batch in _batches(storage.list("segments")):
        writers = {path: (int(m[1]), int(m[2])) for path in batch if (m := _SEGMENT.match(path))}
        with reading(database) as connection:
            open_ = tidying.may_still_be_committed(connection, set(writers.values()))
        with reading(database) as connection:
            known = tidying.pointed_at(connection, batch)
        for path in batch:
            if (
                path not in known
                and writers.get(path) not in open_
                and _older(storage, path, older_than_seconds)
            ):
                yield path


def forget_wake_ups(database: Engine, forget: ForgetWakeUps) -> None:
    """Those for teachers that no worker is bound to pile up in the broker."""
    with reading(database) as connection:
        names = connection.execute(select(Teacher.name).distinct()).scalars().all()
    dropped = forget(names)
    if dropped:
        log.info("%d old wake-ups are dropped", dropped)


def _batches(paths: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for path in paths:
        batch.append(path)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def export_orphans(database: Engine, storage: Storage, older_than_seconds: float) -> list[str]:
    """Files of exports that nothing points to: of attempts that died, of exports that were cancelled or deleted.

    An export that is being made is left alone: its worker writes files before it tells of them.
    """
    found: list[str] = []
    for batch in _batches(storage.list("exports")):
        ids = {path.split("/")[1] for path in batch}
        with reading(database) as connection:
            known = set(
                connection.execute(select(ExportFile.path).where(ExportFile.path.in_(batch))).scalars()
            )
            untouched = set(
                connection.execute(
                    select(Export.id).where(Export.id.in_(ids), Export.status == ExportStatus.RUNNING)
                ).scalars()
            )
            # Files of an earlier version have no path of their own.
            untouched |= set(
                connection.execute(
                    select(ExportFile.export_id).where(
                        ExportFile.export_id.in_(ids), ExportFile.path.is_(None)
                    )
                ).scalars()
            )
        found += [
            path
            for path in batch
            if path not in known
            and path.split("/")[1] not in untouched
            and _older(storage, path, older_than_seconds)
        ]
    return found


def _older(storage: Storage, path: str, seconds: float) -> bool:
    try:
        return storage.age_seconds(path) > seconds
    except StorageError:
        return False  # somebody else deleted it meanwhile
