"""Jobs, their lanes and counters: what a person reads and asks. The engine's own queries are in shards and lanes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select, tuple_, update
from sqlalchemy.orm import Session

from app.db.models import Counter, Job, Lane, Pace, PromptSet, Shard, ShardAttempt, Stage, Teacher
from app.db.session import db_now
from app.domain.clock import PACE_SECONDS
from app.domain.lifecycle import ENDED, JobStatus, ShardStatus
from app.domain.prices import Price


@dataclass(frozen=True, slots=True)
class NewJob:
    """The row of a job to be. The dictionaries are JSON of frozen models."""

    id: str
    project_id: str
    prompt_set_id: str
    name: str
    priority: int
    max_in_flight: int | None
    follow: bool
    reuse: bool
    intended_use: dict[str, object]
    budget: dict[str, object] | None
    shard_size: int
    code_version: str
    policy_decision_id: str
    created_by: str
    execution: str  # of each lane


@dataclass(frozen=True, slots=True)
class NewStage:
    name: str
    kind: str
    sampling: dict[str, object]
    n: int
    top_logprobs: int
    elicit: dict[str, object] | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums of the stripes of one job and teacher."""

    completed: int = 0
    failed: int = 0
    reused: int = 0
    removed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0
    retries: int = 0
    cost_nanousd: int = 0
    unpriced: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, name) + getattr(other, name) for name in COUNTED))


COUNTED = tuple(Counts.__dataclass_fields__)


def add(
    connection: Connection,
    job: NewJob,
    stages: Sequence[NewStage],
    teachers: Sequence[Teacher],
    prices: Mapping[str, Price],
    depths: Mapping[str, int],
) -> None:
    """The job, its stages, and a lane for each teacher with what that is at this moment.

    By the teacher's id: `prices`, where they are known, and `depths`, of generations.
    """
    values = {name: getattr(job, name) for name in NewJob.__dataclass_fields__ if name != "execution"}
    connection.execute(insert(Job).values(status=JobStatus.READY, created_at=db_now(), **values))
    connection.execute(
        insert(Stage),
        [
            {
                "job_id": job.id,
                "position": position,
                **{name: getattr(stage, name) for name in NewStage.__dataclass_fields__},
            }
            for position, stage in enumerate(stages)
        ],
    )
    copied = (
        "driver",
        "model",
        "revision",
        "access_route",
        "license",
        "terms_id",
        "trained_on",
        "identity_sha256",
        "capabilities",
    )
    connection.execute(
        insert(Lane),
        [
            {
                "job_id": job.id,
                "teacher": position,
                "teacher_id": teacher.id,
                "teacher_name": teacher.name,
                "generation_depth": depths[teacher.id],
                "execution": job.execution,
                "price": None if (price := prices.get(teacher.id)) is None else price.model_dump(mode="json"),
                **{name: getattr(teacher, name) for name in copied},
            }
            for position, teacher in enumerate(teachers)
        ],
    )


def get(session: Session, project_id: str, job_id: str) -> Job | None:
    return session.execute(
        select(Job).where(Job.id == job_id, Job.project_id == project_id)
    ).scalar_one_or_none()


def page(session: Session, project_id: str, status: str | None, before: str | None, limit: int) -> list[Job]:
    """Newest first."""
    query = select(Job).where(Job.project_id == project_id).order_by(Job.id.desc()).limit(limit)
    if status is not None:
        query = query.where(Job.status == status)
    if before is not None:
        query = query.where(Job.id < before)
    return list(session.execute(query).scalars())


def lanes(session: Session, job_ids: Sequence[str]) -> dict[str, list[Lane]]:
    """The lanes of each job, in order."""
    found: dict[str, list[Lane]] = {}
    query = select(Lane).where(Lane.job_id.in_(job_ids)).order_by(Lane.job_id, Lane.teacher)
    for lane in session.execute(query).scalars():
        found.setdefault(lane.job_id, []).append(lane)
    return found


def stages(session: Session, job_ids: Sequence[str]) -> dict[str, list[Stage]]:
    """The stages of each job, in order."""
    found: dict[str, list[Stage]] = {}
    query = select(Stage).where(Stage.job_id.in_(job_ids)).order_by(Stage.job_id, Stage.position)
    for stage in session.execute(query).scalars():
        found.setdefault(stage.job_id, []).append(stage)
    return found


def counts(session: Session, job_ids: Sequence[str]) -> dict[tuple[str, int], Counts]:
    """Per job and teacher, the stripes summed: a handful of rows each, at any size of job."""
    sums = [func.sum(getattr(Counter, name)).label(name) for name in COUNTED]
    rows = session.execute(
        select(Counter.job_id, Counter.teacher, *sums)
        .where(Counter.job_id.in_(job_ids))
        .group_by(Counter.job_id, Counter.teacher)
    )
    return {(row.job_id, row.teacher): Counts(*(int(getattr(row, name)) for name in COUNTED)) for row in rows}


def steps(session: Session, job_ids: Sequence[str], last: int) -> dict[str, dict[int, tuple[int, int]]]:
    """Per job: step → (rows, tokens) over the last `last` steps."""
    since = now(session) / PACE_SECONDS - last - 1
    rows = session.execute(
        select(Pace.job_id, Pace.step, func.sum(Pace.rows), func.sum(Pace.tokens))
        .where(Pace.job_id.in_(job_ids), Pace.step >= int(since))
        .group_by(Pace.job_id, Pace.step)
    )
    found: dict[str, dict[int, tuple[int, int]]] = {}
    for job_id, step, n_rows, n_tokens in rows:
        found.setdefault(job_id, {})[step] = (int(n_rows), int(n_tokens))
    return found


def now(session: Session) -> float:
    """Seconds since 1970 by the database's clock."""
    return session.execute(select(db_now())).scalar_one()


def locked_status(session: Session, project_id: str, job_id: str) -> JobStatus | None:
    """The job's status, its row locked until the transaction ends. None: no such job."""
    status = session.execute(
        select(Job.status).where(Job.id == job_id, Job.project_id == project_id).with_for_update()
    ).scalar_one_or_none()
    return None if status is None else JobStatus(status)


def set_status(session: Session, job_id: str, status: JobStatus, reason: str | None) -> None:
    values: dict[str, object] = {"status": status, "status_reason": reason}
    if status in ENDED:
        values["ended_at"] = db_now()
    session.execute(update(Job).where(Job.id == job_id).values(**values))


def unpark(session: Session, job_id: str, kind: str | None = None) -> None:
    """Every lane of the job, or those that are parked for this `kind` of reason, may be tried again at once."""
    query = update(Lane).where(Lane.job_id == job_id, Lane.parked_reason.is_not(None))
    if kind is not None:
        query = query.where(Lane.parked_kind == kind)
    session.execute(query.values(parked_reason=None, parked_kind=None, parked_until=None))


def set_budget(session: Session, job_id: str, budget: Mapping[str, object]) -> None:
    """The caller holds the lock of the job's ledger."""
    session.execute(update(Job).where(Job.id == job_id).values(budget=dict(budget)))


def under_lease(session: Session, job_id: str) -> bool:
    """Whether some worker holds a shard of the job."""
    query = select(Shard.id).where(Shard.job_id == job_id, Shard.status == ShardStatus.LEASED).limit(1)
    return session.execute(query).one_or_none() is not None


def has_begun(session: Session, job_id: str) -> bool:
    return session.execute(select(Job.started_at).where(Job.id == job_id)).scalar_one() is not None


def shards(
    session: Session, job_id: str, status: str | None, after: tuple[int, int, int] | None, limit: int
) -> list[Shard]:
    """In order of (stage, teacher, first prompt), from the one after `after`."""
    query = (
        select(Shard)
        .where(Shard.job_id == job_id)
        .order_by(Shard.stage, Shard.teacher, Shard.first_prompt)
        .limit(limit)
    )
    if status is not None:
        query = query.where(Shard.status == status)
    if after is not None:
        query = query.where(tuple_(Shard.stage, Shard.teacher, Shard.first_prompt) > after)
    return list(session.execute(query).scalars())


def attempts(session: Session, shard_ids: Sequence[int]) -> dict[int, list[ShardAttempt]]:
    """Who held each shard, oldest first."""
    found: dict[int, list[ShardAttempt]] = {}
    query = (
        select(ShardAttempt)
        .where(ShardAttempt.shard_id.in_(shard_ids))
        .order_by(ShardAttempt.shard_id, ShardAttempt.epoch)
    )
    for attempt in session.execute(query).scalars():
        found.setdefault(attempt.shard_id, []).append(attempt)
    return found


def prompt_set(session: Session, project_id: str, set_id: str) -> PromptSet | None:
    return session.execute(
        select(PromptSet).where(PromptSet.id == set_id, PromptSet.project_id == project_id)
    ).scalar_one_or_none()
