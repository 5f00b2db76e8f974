"""Lanes: one teacher of one job, what it was when the job began, and whether it is parked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, exists, func, select, update

from app.db.models import Job, Lane, Project, Shard, Stage, Teacher
from app.db.session import db_now
from app.domain.lifecycle import Execution, JobStatus, ShardStatus
from app.domain.prices import Price
from app.domain.sampling import Elicitation, SamplingParameters
from app.domain.teacher import TeacherSpec


@dataclass(frozen=True, slots=True)
class StageSpec:
    """What a stage asks of a teacher."""

    sampling: SamplingParameters
    n: int
    top_logprobs: int
    elicit: Elicitation | None


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """All that a worker needs to know of a lane before its first call."""

    project_id: str
    job_id: str
    teacher: int
    teacher_id: str
    spec: TeacherSpec
    license: str | None
    price: Price | None
    identity_sha256: bytes | None
    stages: dict[int, StageSpec]
    priority: int
    job_cap: int | None
    teacher_cap: int | None
    reuse: bool
    storage_profile: str | None  # of the project; None: the settings decide
    execution: Execution = Execution.CALLS
    has_budget: bool = False
    paced: bool = False  # the teacher was registered with limits per minute
    replicas: tuple[str, ...] = ()  # further addresses of the teacher

    def servers(self, urls: Sequence[str | None] | None = None) -> tuple[TeacherSpec, ...]:
        """The teacher at each of its addresses, or at these."""
        addresses = (self.spec.base_url, *self.replicas) if urls is None else urls
        return tuple(replace(self.spec, base_url=url) for url in addresses)


@dataclass(frozen=True, slots=True)
class TeacherBounds:
    """How hard a teacher may be driven; both can change while jobs run."""

    cap: int | None
    paced: bool
    urls: tuple[str | None, ...]


def bounds(connection: Connection, teacher_ids: Sequence[str]) -> dict[str, TeacherBounds]:
    """By teacher's id; one that is gone is absent."""
    rows = connection.execute(
        select(Teacher.id, Teacher.max_in_flight, Teacher.base_url, Teacher.replicas, *_RATES).where(
            Teacher.id.in_(teacher_ids)
        )
    )
    return {
        row.id: TeacherBounds(row.max_in_flight, _paced(row), (row.base_url, *(row.replicas or ())))
        for row in rows
    }


_RATES = (
    Teacher.max_requests_per_minute,
    Teacher.max_input_tokens_per_minute,
    Teacher.max_output_tokens_per_minute,
)


def _paced(row: Any) -> bool:
    return any(getattr(row, column.key) is not None for column in _RATES)


def load(connection: Connection, job_id: str, teacher: int) -> LaneSpec:
    row = connection.execute(
        select(
            Lane,
            Job.project_id,
            Job.priority,
            Job.max_in_flight.label("job_cap"),
            Job.reuse,
            Job.budget,
            Project.storage_profile,
        )
        .join(Job, Job.id == Lane.job_id)
        .join(Project, Project.id == Job.project_id)
        .where(Lane.job_id == job_id, Lane.teacher == teacher)
    ).one()
    # Address, secret and options are the teacher's present ones (a moved server is the same teacher);
    # model and revision are those of the job's beginning.
    now = connection.execute(
        select(
            Teacher.base_url,
            Teacher.secret_ref,
            Teacher.options,
            Teacher.max_in_flight,
            Teacher.replicas,
            *_RATES,
        ).where(Teacher.id == row.teacher_id)
    ).one()
    stages = connection.execute(select(Stage.__table__).where(Stage.job_id == job_id)).all()
    return LaneSpec(
        project_id=row.project_id,
        job_id=job_id,
        teacher=teacher,
        teacher_id=row.teacher_id,
        spec=TeacherSpec(
            name=row.teacher_name,
            driver=row.driver,
            model=row.model,
            revision=row.revision,
            base_url=now.base_url,
            secret_ref=now.secret_ref,
            options=now.options,
        ),
        license=row.license,
        price=None if row.price is None else Price.model_validate(row.price),
        identity_sha256=row.identity_sha256,
        stages={
            stage.position: StageSpec(
                sampling=SamplingParameters.model_validate(stage.sampling),
                n=stage.n,
                top_logprobs=stage.top_logprobs,
                elicit=None if stage.elicit is None else Elicitation.model_validate(stage.elicit),
            )
            for stage in stages
        },
        priority=row.priority,
        job_cap=row.job_cap,
        teacher_cap=now.max_in_flight,
        reuse=row.reuse,
        storage_profile=row.storage_profile,
        execution=Execution(row.execution),
        has_budget=row.budget is not None,
        paced=_paced(now),
        replicas=tuple(now.replicas or ()),
    )


def pin_identity(
    connection: Connection, job_id: str, teacher: int, identity: bytes, capabilities: object
) -> None:
    """The first worker to reach the teacher writes down who it is; a later, different answer parks the lane."""
    connection.execute(
        update(Lane)
        .where(Lane.job_id == job_id, Lane.teacher == teacher, Lane.identity_sha256.is_(None))
        .values(identity_sha256=identity, capabilities=capabilities)
    )


def park(
    connection: Connection, job_id: str, teacher: int, kind: str, reason: str, seconds: float | None
) -> None:
    """Let a lane wait, for a person where `seconds` is None.

    Where no other lane of the job has work left, the job is parked, and says why.
    """
    until = None if seconds is None else db_now() + seconds
    connection.execute(
        update(Lane)
        .where(Lane.job_id == job_id, Lane.teacher == teacher)
        .values(parked_kind=kind, parked_reason=reason, parked_until=until)
    )
    unfinished = exists().where(
        Shard.job_id == Lane.job_id, Shard.teacher == Lane.teacher, Shard.status != ShardStatus.FINISHED
    )
    working = connection.execute(
        select(func.count())
        .select_from(Lane)
        .where(Lane.job_id == job_id, Lane.parked_reason.is_(None), unfinished)
    ).scalar_one()
    if not working:
        connection.execute(
            update(Job)
            .where(Job.id == job_id, Job.status.in_((JobStatus.READY, JobStatus.RUNNING)))
            .values(status=JobStatus.PARKED, status_reason=reason)
        )


def unpark(connection: Connection, job_id: str, teacher: int, *, timed: bool = False) -> None:
    """The teacher works again; `timed`: only a lane that waits for no person.

    The lock of the lane comes before that of its job, as everywhere.
    """
    mine = [Lane.job_id == job_id, Lane.teacher == teacher, Lane.parked_reason.is_not(None)]
    if timed:
        mine.append(Lane.parked_until.is_not(None))
    changed = connection.execute(
        update(Lane).where(*mine).values(parked_kind=None, parked_reason=None, parked_until=None)
    ).rowcount
    if timed and not changed:
        return
    connection.execute(
        update(Job)
        .where(Job.id == job_id, Job.status == JobStatus.PARKED)
        .values(status=JobStatus.RUNNING, status_reason=None)
    )


def statuses(connection: Connection, job_ids: list[str]) -> dict[str, str]:
    """Present status of the jobs; a job that is gone is absent."""
    rows = connection.execute(select(Job.id, Job.status).where(Job.id.in_(job_ids)))
    return {row.id: row.status for row in rows}
