"""What no longer serves anybody: silent workers, orphan files, old requests and samples of pace."""

import logging
import time
from dataclasses import dataclass

from sqlalchemy import Engine, delete, select

from app.db import workers
from app.db.export_models import Export, ExportFile
from app.db.models import IdempotentRequest, Job, Pace, Segment, Shard, ShardAttempt, SlotGrant
from app.db.session import db_now, reading, transaction
from app.domain.clock import PACE_SECONDS
from app.domain.lifecycle import ENDED, ExportStatus
from app.errors import StorageError
from app.storage.places import Storage

log = logging.getLogger(__name__)

_BATCH = 1000
_YOUNG_SECONDS = 60.0
_UNFINISHED_SECONDS = 86_400.0  # nobody writes at one file for a day


@dataclass(frozen=True, slots=True)
class Retention:
    idempotency_hours: float
    pace_hours: float
    attempts_days: float
    lease_seconds: float


def tidy(database: Engine, storage: Storage, keep: Retention) -> None:
    """One round. Each statement is bounded by an index or by what has expired; any process may do it."""
    with transaction(database) as connection:
        workers.sweep(connection, keep.lease_seconds * 10)
        connection.execute(delete(SlotGrant).where(SlotGrant.lease_until < db_now()))
        connection.execute(
            delete(IdempotentRequest).where(
                IdempotentRequest.created_at < db_now() - keep.idempotency_hours * 3600
            )
        )
    with transaction(database) as connection:
        ended = select(Job.id).where(Job.status.in_(ENDED), Job.ended_at < db_now() - keep.pace_hours * 3600)
        connection.execute(delete(Pace).where(Pace.job_id.in_(ended)))
        old = time.time() - keep.pace_hours * 3600
        connection.execute(delete(Pace).where(Pace.step < int(old / PACE_SECONDS)))
    with transaction(database) as connection:
        ended = select(Job.id).where(
            Job.status.in_(ENDED), Job.ended_at < db_now() - keep.attempts_days * 86400
        )
        shards = select(Shard.id).where(Shard.job_id.in_(ended))
        connection.execute(delete(ShardAttempt).where(ShardAttempt.shard_id.in_(shards)))
    age = max(_YOUNG_SECONDS, keep.lease_seconds)
    for path in (*orphans(database, storage, age), *export_orphans(database, storage, age)):
        log.info("orphan file %s is deleted", path)
        storage.delete(path)
    unfinished = storage.delete_unfinished(_UNFINISHED_SECONDS)
    if unfinished:
        log.info("%d files that nobody finished are deleted", unfinished)


def orphans(database: Engine, storage: Storage, older_than_seconds: float) -> list[str]:
    """Segment files that nothing points to and that are older than a lease: their writer died before its commit."""
    found: list[str] = []
    files = list(storage.list("segments"))
    for start in range(0, len(files), _BATCH):
        batch = files[start : start + _BATCH]
        with reading(database) as connection:
            known = set(
                connection.execute(
                    select(Segment.path)
                    .join(Shard, Shard.segment_id == Segment.id)
                    .where(Segment.path.in_(batch))
                ).scalars()
            )
        found += [path for path in batch if path not in known and _older(storage, path, older_than_seconds)]
    return found


def export_orphans(database: Engine, storage: Storage, older_than_seconds: float) -> list[str]:
    """Files of exports that nothing points to: of attempts that died, of exports that were cancelled or deleted.

    An export that is being made is left alone: its worker writes files before it tells of them.
    """
    found: list[str] = []
    files = list(storage.list("exports"))
    for start in range(0, len(files), _BATCH):
        batch = files[start : start + _BATCH]
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
