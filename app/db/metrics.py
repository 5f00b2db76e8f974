"""Sums for the operator's graphs. Small tables only: jobs, lanes, counters, workers, exports."""

from dataclasses import dataclass

from sqlalchemy import Engine, func, select

from app.db.export_models import Export
from app.db.jobs import COUNTED, Counts
from app.db.models import Counter, Job, Lane, Worker
from app.db.session import db_now, reading
from app.domain.lifecycle import ENDED


@dataclass(frozen=True, slots=True)
class Gauges:
    jobs: dict[str, int]  # by status
    exports: dict[str, int]  # by status
    parked: dict[str, int]  # lanes of jobs that have not ended, by kind
    counts: Counts
    workers: int
    draining: int
    in_flight: int
    unflushed: int


def gauges(engine: Engine) -> Gauges:
    with reading(engine) as connection:
        sums = connection.execute(
            select(*(func.coalesce(func.sum(getattr(Counter, name)), 0) for name in COUNTED))
        ).one()
        workers = connection.execute(
            select(Worker.in_flight, Worker.unflushed, Worker.draining).where(Worker.lease_until > db_now())
        ).all()
        return Gauges(
            jobs=dict(connection.execute(select(Job.status, func.count()).group_by(Job.status)).all()),
            exports=dict(
                connection.execute(select(Export.status, func.count()).group_by(Export.status)).all()
            ),
            parked={
                kind or "unknown": count
                for kind, count in connection.execute(
                    select(Lane.parked_kind, func.count())
                    .join(Job, Job.id == Lane.job_id)
                    .where(Lane.parked_reason.is_not(None), Job.status.not_in(ENDED))
                    .group_by(Lane.parked_kind)
                )
            },
            counts=Counts(*(int(value) for value in sums)),
            workers=len(workers),
            draining=sum(row.draining for row in workers),
            in_flight=sum(row.in_flight for row in workers),
            unflushed=sum(row.unflushed for row in workers),
        )
