"""Shards: cut from a prompt set, claimed under a lease, fenced by their epoch, finished once."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Executable,
    Integer,
    Row,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    text,
    true,
    update,
)

from app.db import audit
from app.db.models import Counter, Job, Lane, PromptSet, Shard, ShardAttempt
from app.db.session import db_now
from app.domain.lifecycle import ENDED, Execution, JobStatus, ShardStatus

_ENDED = (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)

# Literals, not parameters: the planner must see that a partial index fits.
_READY = Shard.status == literal_column(f"'{ShardStatus.READY}'")
_LEASED = Shard.status == literal_column(f"'{ShardStatus.LEASED}'")
# What has not ended, as the index of active jobs is defined.
ACTIVE = Job.status.not_in([literal_column(f"'{status}'") for status in _ENDED])


Lease = tuple[int, int]  # shard, epoch


@dataclass(frozen=True, slots=True)
class Claim:
    """A shard that this worker holds until its lease runs out. `epoch` is the fencing token."""

    shard_id: int
    epoch: int
    job_id: str
    stage: int
    teacher: int
    first_prompt: int
    end_prompt: int
    n_expected: int
    claims_without_progress: int
    suspect: int | None = None

    @property
    def lease(self) -> Lease:
        return (self.shard_id, self.epoch)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A lane with a shard to claim. `leased`: how many shards of its job are under lease, anywhere."""

    job_id: str
    teacher: int
    parked: bool
    priority: int
    leased: int


def candidates(connection: Connection, teacher_names: tuple[str, ...]) -> list[Candidate]:
    """Lanes with something to claim: higher priority first, then the job with the fewest shards under lease."""
    if connection.dialect.name == "postgresql":
        # Where many shards are ready, a scan looks cheap, since it would soon meet one; in a lane that has none it
        # walks through all of them.
        connection.execute(text("SET LOCAL enable_seqscan = off"))
    return [
        Candidate(row.job_id, row.teacher, row.parked_reason is not None, row.priority, row.leased)
        for row in connection.execute(_candidates(teacher_names))
    ]


@cache
def _candidates(teacher_names: tuple[str, ...]) -> Select[str, int, str | None, int, Any]:
    """Built once: building it costs more than running it, and it is run after each checkpoint."""
    leased = select(Shard.job_id, func.count().label("n")).where(_LEASED).group_by(Shard.job_id).subquery()
    mine = and_(Shard.job_id == Lane.job_id, Shard.teacher == Lane.teacher)
    # LIMIT 1 and not EXISTS, of which PostgreSQL would make a table of all that is ready.
    ready = select(Shard.id).where(mine, _READY).limit(1).scalar_subquery()
    expired = select(Shard.id).where(mine, _LEASED, Shard.lease_until < db_now()).limit(1).scalar_subquery()
    n_leased = func.coalesce(leased.c.n, 0)
    query = (
        select(Lane.job_id, Lane.teacher, Lane.parked_reason, Job.priority, n_leased.label("leased"))
        .join(Job, Job.id == Lane.job_id)
        .outerjoin(leased, leased.c.job_id == Job.id)
        .where(
            ACTIVE,
            Job.status != JobStatus.PAUSED,
            Lane.execution == Execution.CALLS,  # the others' are in batches: app/db/provider_batches.py
            or_(Lane.parked_reason.is_(None), Lane.parked_until <= db_now()),
            or_(ready.is_not(None), expired.is_not(None)),
        )
        .order_by(Job.priority.desc(), n_leased, Job.id, Lane.teacher)
    )
    return query.where(Lane.teacher_name.in_(teacher_names)) if teacher_names else query


def claim(
    connection: Connection, lane: Candidate, owner: str, lease_seconds: float, park_seconds: float
) -> Claim | None:
    """Take the next shard of a lane: an expired lease first, else the oldest ready one. None: others were faster.

    A parked lane lets one trial through per `park_seconds`; it is unparked by the first completion recorded.
    """
    if (
        lane.parked
        and not connection.execute(
            update(Lane)
            .where(Lane.job_id == lane.job_id, Lane.teacher == lane.teacher, Lane.parked_until <= db_now())
            .values(parked_until=db_now() + park_seconds)
        ).rowcount
    ):
        return None
    place = {"job": lane.job_id, "position": lane.teacher, "holder": owner, "lease": lease_seconds}
    for statement in (_CLAIM_EXPIRED, _CLAIM_READY):
        row = connection.execute(statement, place).one_or_none()
        if row is not None:
            break
    else:
        return None
    begin_attempt(connection, row, owner)
    run(connection, row.job_id, row.teacher)
    return claim_of(row)


def _claiming(choice: Select[int]) -> Executable:
    """`choice`: the shards of a lane that may be claimed, the one to claim first."""
    mine = choice.where(Shard.job_id == bindparam("job"), Shard.teacher == bindparam("position"))
    return (
        update(Shard)
        .where(Shard.id == mine.limit(1).with_for_update(skip_locked=True).scalar_subquery())
        .values(
            status=ShardStatus.LEASED,
            owner=bindparam("holder"),
            epoch=Shard.epoch + 1,
            lease_until=db_now() + bindparam("lease", type_=Double()),
            # A worker that slept past its own lease lives: nobody died over this shard.
            claims_without_progress=Shard.claims_without_progress
            + case((Shard.owner == bindparam("holder"), 0), else_=1),
        )
        .returning(Shard)
    )


_CLAIM_EXPIRED = _claiming(
    select(Shard.id).where(_LEASED, Shard.lease_until < db_now()).order_by(Shard.lease_until)
)
_CLAIM_READY = _claiming(select(Shard.id).where(_READY).order_by(Shard.id))


def begin_attempt(connection: Connection, row: Row[Any], owner: str) -> None:
    """Into the history of a shard that was just claimed; whoever had it before has lost it."""
    _close_attempt(connection, row.id, row.epoch - 1, "lost", "its lease ran out")
    connection.execute(_BEGIN_ATTEMPT, {"shard_id": row.id, "epoch": row.epoch, "owner": owner})


_BEGIN_ATTEMPT = insert(ShardAttempt).values(claimed_at=db_now())


def claim_of(row: Row[Any]) -> Claim:
    return Claim(
        row.id,
        row.epoch,
        row.job_id,
        row.stage,
        row.teacher,
        row.first_prompt,
        row.end_prompt,
        row.n_expected,
        row.claims_without_progress,
        row.suspect,
    )


def run(connection: Connection, job_id: str, teacher: int) -> None:
    """Something of the job is made, or about to be: it is neither ready nor parked any more.

    A parked lane, which is only tried, does not make its job run: the first completion does.
    """
    connection.execute(_RUN, {"job": job_id, "position": teacher})


_RUN = (
    update(Job)
    .where(
        Job.id == bindparam("job"),
        Job.status.in_((JobStatus.READY, JobStatus.PARKED)),
        exists().where(
            Lane.job_id == bindparam("job"),
            Lane.teacher == bindparam("position"),
            Lane.parked_reason.is_(None),
        ),
    )
    .values(status=JobStatus.RUNNING, status_reason=None, started_at=func.coalesce(Job.started_at, db_now()))
)


def held(connection: Connection, owner: str, leases: Iterable[Lease]) -> set[Lease]:
    """Those of the leases that are still ours, their shards' rows locked until the transaction ends."""
    wanted = set(leases)
    rows = connection.execute(
        _HELD, {"holder": owner, "shards": sorted({shard_id for shard_id, _ in wanted})}
    )
    # A worker whose own lease ran out can hold the same shard again: the epoch tells which claim is meant.
    return wanted & {(shard_id, epoch) for shard_id, epoch in rows}


_HELD = (
    select(Shard.id, Shard.epoch)
    .where(Shard.id.in_(bindparam("shards", expanding=True)), Shard.owner == bindparam("holder"), _LEASED)
    .order_by(Shard.id)
    .with_for_update(key_share=True)
)

_OURS = and_(
    Shard.id == bindparam("shard"),
    Shard.epoch == bindparam("fence"),
    Shard.owner == bindparam("holder"),
    Shard.status == ShardStatus.LEASED,
)

_EXTEND = update(Shard).where(_OURS).values(lease_until=db_now() + bindparam("lease"))


def extend(connection: Connection, owner: str, leases: Iterable[Lease], lease_seconds: float) -> set[Lease]:
    """Prolong the leases. Returns those that are still ours."""
    return {
        (shard_id, epoch)
        for shard_id, epoch in sorted(leases)
        if connection.execute(
            _EXTEND, {"shard": shard_id, "fence": epoch, "holder": owner, "lease": lease_seconds}
        ).rowcount
    }


def suspect(connection: Connection, owner: str, lease: Lease, prompt_number: int | None) -> None:
    """Note which prompt is asked alone: if the worker dies, it is the one. None: no longer any.

    What others did over the shard before is not held against it: its claims are counted anew.
    """
    claims: ColumnElement[int] = Shard.claims_without_progress.expression
    if prompt_number is not None:
        claims = case((Shard.suspect == prompt_number, Shard.claims_without_progress), else_=1)
    connection.execute(
        update(Shard)
        .where(Shard.id == lease[0], Shard.epoch == lease[1], Shard.owner == owner, _LEASED)
        .values(suspect=prompt_number, claims_without_progress=claims)
    )


def release(
    connection: Connection, owner: str, shard_id: int, epoch: int, outcome: str, detail: str | None
) -> bool:
    """Give a shard back before it is finished; the next claim goes on where this one stopped."""
    given = connection.execute(
        update(Shard)
        .where(
            Shard.id == shard_id,
            Shard.epoch == epoch,
            Shard.owner == owner,
            Shard.status == ShardStatus.LEASED,
        )
        .values(
            status=ShardStatus.READY,
            owner=None,
            lease_until=None,
            # An orderly release is no sign of a poison prompt.
            claims_without_progress=func.coalesce(Shard.claims_without_progress, 1) - 1,
        )
    ).rowcount
    _close_attempt(connection, shard_id, epoch, outcome, detail)
    return bool(given)


def release_strays(connection: Connection, owner: str, held: Collection[int]) -> int:
    """Give back what is leased to us and not held by us: the answer to its claim was lost. Returns how many."""
    rows = connection.execute(
        select(Shard.id, Shard.epoch).where(
            _LEASED, Shard.owner == owner, Shard.id.not_in(sorted(held)) if held else true()
        )
    ).all()
    for shard_id, epoch in rows:
        release(connection, owner, shard_id, epoch, "released", "the answer to the claim was lost")
    return len(rows)


def _close_attempt(
    connection: Connection, shard_id: int, epoch: int, outcome: str, detail: str | None
) -> None:
    told = {"shard": shard_id, "fence": epoch, "what": outcome, "why": detail}
    connection.execute(_CLOSE_ATTEMPT, told)


_CLOSE_ATTEMPT = (
    update(ShardAttempt)
    .where(
        ShardAttempt.shard_id == bindparam("shard"),
        ShardAttempt.epoch == bindparam("fence"),
        ShardAttempt.ended_at.is_(None),
    )
    .values(ended_at=db_now(), outcome=bindparam("what"), detail=bindparam("why"))
)


def finish(connection: Connection, owner: str, shard_id: int, epoch: int, segment_id: int | None) -> bool:
    """Mark a shard finished under its fence and end the job where it was the last. False: the lease is lost."""
    row = connection.execute(
        _FINISH, {"shard": shard_id, "fence": epoch, "holder": owner, "segment": segment_id}
    ).one_or_none()
    if row is None:
        return False
    _close_attempt(connection, shard_id, epoch, "finished", None)
    connection.execute(_COUNT_FINISHED, {"job": row.job_id})
    end_job_if_done(connection, row.job_id)
    return True


_FINISH = (
    update(Shard)
    .where(
        _OURS,
        Shard.n_completed + Shard.n_failed == Shard.n_expected,
    )
    .values(
        status=ShardStatus.FINISHED,
        owner=None,
        lease_until=None,
        segment_id=func.coalesce(bindparam("segment", type_=Integer()), Shard.segment_id),
    )
    .returning(Shard.job_id)
)
_COUNT_FINISHED = (
    update(Job).where(Job.id == bindparam("job")).values(n_shards_finished=Job.n_shards_finished + 1)
)


def begin_finalizing(connection: Connection, job_id: str) -> None:
    """The job's last shard has all its rows and is about to write its segment."""
    connection.execute(_BEGIN_FINALIZING, {"job": job_id})


_BEGIN_FINALIZING = (
    update(Job)
    .where(
        Job.id == bindparam("job"),
        Job.status == JobStatus.RUNNING,
        Job.n_shards_finished == Job.n_shards - 1,
        exists().where(
            PromptSet.id == Job.prompt_set_id, PromptSet.sealed, PromptSet.n_prompts <= Job.cut_through
        ),
    )
    .values(status=JobStatus.FINALIZING)
)


def end_job_if_done(connection: Connection, job_id: str) -> bool:
    """Complete (or fail, where nothing succeeded) a job whose shards are all finished."""
    job = connection.execute(
        select(
            Job.project_id,
            Job.status,
            Job.follow,
            Job.cut_through,
            Job.n_shards,
            Job.n_shards_finished,
            Job.prompt_set_id,
        )
        .where(Job.id == job_id)
        .with_for_update()
    ).one()
    if job.status in ENDED or job.n_shards_finished < job.n_shards:
        return False
    prompts = connection.execute(
        select(PromptSet.sealed, PromptSet.n_prompts).where(PromptSet.id == job.prompt_set_id)
    ).one()
    if job.cut_through < prompts.n_prompts or (job.follow and not prompts.sealed):
        return False
    completed, failed = connection.execute(
        select(
            func.coalesce(func.sum(Counter.completed), 0), func.coalesce(func.sum(Counter.failed), 0)
        ).where(Counter.job_id == job_id)
    ).one()
    nothing = completed == 0 and failed > 0
    status = JobStatus.FAILED if nothing else JobStatus.COMPLETED
    connection.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(
            status=status,
            status_reason="every completion failed; see /failures" if nothing else None,
            ended_at=db_now(),
        )
    )
    told = audit.Event(
        "job.end", job_id, {"status": status, "completed": int(completed), "failed": int(failed)}
    )
    audit.append(connection, job.project_id, "system", [told])
    return True
