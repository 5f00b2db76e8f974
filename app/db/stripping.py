"""A shard's rows are taken down: text, parts and the pointer to its segment change in one transaction, which fences
whoever works on the shard; counters equal a recount at its commit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, or_, select, update

from app.db.models import Completion, Counter, Job, Lane, Part, PromptRow, Segment, Shard, ShardAttempt, Stage
from app.db.session import db_now
from app.db.shards import end_job_if_done
from app.domain.lifecycle import CompletionStatus, ShardStatus

Strip = Callable[[bytes], bytes | None]
"""A part without the rows at fault; None: nothing is left of it; the same object: it had none."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A shard as it is. `generation`: of its segment, 0 where it has none."""

    shard_id: int
    job_id: str
    prompt_set_id: str
    stage: int
    teacher: int
    teacher_name: str
    first_prompt: int
    end_prompt: int
    epoch: int
    segment_id: int | None
    segment_path: str | None
    generation: int


@dataclass(frozen=True, slots=True)
class NewSegment:
    """A segment without the rows at fault, already synced; None in its place: nothing would be left in it."""

    path: str
    sha256: bytes
    n_bytes: int
    n_rows: int
    k: int


class Moved(Exception):
    """The shard has another segment now than the one that was rewritten: look again."""


def standing(connection: Connection, shard_id: int) -> Standing:
    query = (
        select(
            Shard.id,
            Shard.job_id,
            Job.prompt_set_id,
            Shard.stage,
            Shard.teacher,
            Lane.teacher_name,
            Shard.first_prompt,
            Shard.end_prompt,
            Shard.epoch,
            Shard.segment_id,
            Segment.path,
            Segment.generation,
        )
        .join(Job, Job.id == Shard.job_id)
        .join(Lane, (Lane.job_id == Shard.job_id) & (Lane.teacher == Shard.teacher))
        .outerjoin(Segment, Segment.id == Shard.segment_id)
        .where(Shard.id == shard_id)
    )
    found = connection.execute(query).one()
    values = dict(zip(Standing.__dataclass_fields__, found, strict=True))
    return Standing(**{**values, "generation": values["generation"] or 0})


def has_tokens(connection: Connection, shard: Standing, takedown_id: str, whole: bool) -> bool:
    """Whether rows that are still to be taken down have token columns."""
    query = select(Completion.sample_index).where(*_at_fault(shard, takedown_id, whole)).limit(1)
    return connection.execute(query.where(Completion.n_tokens.is_not(None))).first() is not None


def numbers_at_fault(connection: Connection, shard: Standing, takedown_id: str) -> list[int]:
    """Prompts of the shard's range that this takedown took down."""
    return list(
        connection.execute(
            select(PromptRow.number)
            .where(
                PromptRow.removed_by == takedown_id,
                PromptRow.prompt_set_id == shard.prompt_set_id,
                PromptRow.number >= shard.first_prompt,
                PromptRow.number < shard.end_prompt,
            )
            .order_by(PromptRow.number)
        ).scalars()
    )


def strip(
    connection: Connection,
    before: Standing,
    takedown_id: str,
    whole: bool,
    strip_part: Strip,
    replaced: bool,
    segment: NewSegment | None,
) -> int:
    """Take the rows down; returns how many. `whole`: all of the shard's (its teacher's takedown), else those of the
    prompts that the takedown took down. `replaced`: `segment` takes the old one's place.

    Raises `Moved`.
    """
    now = connection.execute(
        select(
            Shard.segment_id, Shard.status, Shard.epoch, Shard.n_completed, Shard.n_failed, Shard.n_expected
        )
        .where(Shard.id == before.shard_id)
        .with_for_update()
    ).one()
    if now.segment_id != before.segment_id:
        raise Moved
    _fence(connection, before, now.status, now.epoch)
    removed = _remove_rows(connection, before, takedown_id, whole)
    _strip_parts(connection, before.shard_id, strip_part)
    values: dict[str, Any] = {}
    if replaced:
        values["segment_id"] = None if segment is None else _add_segment(connection, before, segment)
    completed, failed = _counted(connection, before)
    expected = 0 if whole else _expected(connection, before)
    newly_finished = whole and now.status != ShardStatus.FINISHED
    if newly_finished:
        values["status"] = ShardStatus.FINISHED
    values |= {"n_completed": completed, "n_failed": failed, "n_expected": expected}
    connection.execute(update(Shard).where(Shard.id == before.shard_id).values(**values))
    _count(connection, before, completed - int(now.n_completed), failed - int(now.n_failed), removed)
    connection.execute(
        update(Job)
        .where(Job.id == before.job_id)
        .values(
            n_expected=Job.n_expected + expected - int(now.n_expected),
            n_shards_finished=Job.n_shards_finished + int(newly_finished),
        )
    )
    if newly_finished:
        end_job_if_done(connection, before.job_id)
    return removed


def _fence(connection: Connection, shard: Standing, status: str, epoch: int) -> None:
    """Whoever holds the shard has prompts or answers in memory that are taken down: nothing of it is recorded."""
    if status != ShardStatus.LEASED:
        return
    connection.execute(
        update(Shard)
        .where(Shard.id == shard.shard_id)
        .values(
            status=ShardStatus.READY,
            epoch=Shard.epoch + 1,
            owner=None,
            lease_until=None,
            claims_without_progress=0,
        )
    )
    connection.execute(
        update(ShardAttempt)
        .where(
            ShardAttempt.shard_id == shard.shard_id,
            ShardAttempt.epoch == epoch,
            ShardAttempt.ended_at.is_(None),
        )
        .values(ended_at=db_now(), outcome="lost", detail="rows of it were taken down")
    )


def _remove_rows(connection: Connection, shard: Standing, takedown_id: str, whole: bool) -> int:
    query = (
        update(Completion)
        .where(*_at_fault(shard, takedown_id, whole))
        .values(
            status=CompletionStatus.REMOVED,
            removed_by=takedown_id,
            answer=None,
            reasoning=None,
            tool_calls=None,
            sampling=None,
            provider_extra=None,
            error_detail=None,
            n_tokens=None,
        )
    )
    return connection.execute(query.execution_options(synchronize_session=False)).rowcount


def _at_fault(shard: Standing, takedown_id: str, whole: bool) -> tuple[Any, ...]:
    """Rows of the shard that this takedown is about and that are not taken down yet."""
    found = (*_rows_of(shard), Completion.status != CompletionStatus.REMOVED)
    if whole:
        return found
    numbers = select(PromptRow.number).where(
        PromptRow.removed_by == takedown_id,
        PromptRow.prompt_set_id == shard.prompt_set_id,
        PromptRow.number >= shard.first_prompt,
        PromptRow.number < shard.end_prompt,
    )
    return (*found, Completion.prompt_number.in_(numbers))


def _rows_of(shard: Standing) -> tuple[Any, ...]:
    return (
        Completion.job_id == shard.job_id,
        Completion.stage == shard.stage,
        Completion.prompt_number >= shard.first_prompt,
        Completion.prompt_number < shard.end_prompt,
        Completion.teacher == shard.teacher,
    )


def _strip_parts(connection: Connection, shard_id: int, strip_part: Strip) -> None:
    parts = connection.execute(
        select(Part.epoch, Part.sequence, Part.payload).where(Part.shard_id == shard_id)
    ).all()
    for part in parts:
        left = strip_part(part.payload)
        if left is part.payload:
            continue
        mine = (Part.shard_id == shard_id, Part.epoch == part.epoch, Part.sequence == part.sequence)
        if left is None:
            connection.execute(delete(Part).where(*mine))
        else:
            connection.execute(update(Part).where(*mine).values(payload=left))


def _add_segment(connection: Connection, shard: Standing, new: NewSegment) -> int:
    return connection.execute(
        insert(Segment)
        .values(
            shard_id=shard.shard_id,
            generation=shard.generation + 1,
            path=new.path,
            sha256=new.sha256,
            n_bytes=new.n_bytes,
            n_rows=new.n_rows,
            k=new.k,
            created_at=db_now(),
        )
        .returning(Segment.id)
    ).scalar_one()


def _counted(connection: Connection, shard: Standing) -> tuple[int, int]:
    """(completed, failed), from the rows."""
    rows = connection.execute(
        select(Completion.status, func.count()).where(*_rows_of(shard)).group_by(Completion.status)
    )
    counts: dict[str, int] = {status: n for status, n in rows}  # noqa: C416 - rows, typed
    return counts.get(CompletionStatus.COMPLETED, 0), counts.get(CompletionStatus.FAILED, 0)


def _expected(connection: Connection, shard: Standing) -> int:
    """Samples × prompts of the range that are left for this teacher."""
    prompts = connection.execute(
        select(func.count())
        .select_from(PromptRow)
        .where(
            PromptRow.prompt_set_id == shard.prompt_set_id,
            PromptRow.number >= shard.first_prompt,
            PromptRow.number < shard.end_prompt,
            PromptRow.removed_by.is_(None),
            or_(PromptRow.teacher.is_(None), PromptRow.teacher == shard.teacher_name),
        )
    ).scalar_one()
    return prompts * samples(connection, shard)


def samples(connection: Connection, shard: Standing) -> int:
    """Samples per prompt of the shard's stage."""
    return connection.execute(
        select(Stage.n).where(Stage.job_id == shard.job_id, Stage.position == shard.stage)
    ).scalar_one()


def _count(connection: Connection, shard: Standing, completed: int, failed: int, removed: int) -> None:
    """Only the stripes' sum has a meaning: any one of them can give."""
    mine = (Counter.job_id == shard.job_id, Counter.teacher == shard.teacher)
    any_stripe = select(func.min(Counter.stripe)).where(*mine).scalar_subquery()
    connection.execute(
        update(Counter)
        .where(*mine, Counter.stripe == any_stripe)
        .values(
            completed=Counter.completed + completed,
            failed=Counter.failed + failed,
            removed=Counter.removed + removed,
        )
    )


def stale_segments(connection: Connection, shard_id: int) -> list[str]:
    """Files of the shard's earlier segments."""
    return list(
        connection.execute(
            select(Segment.path)
            .join(Shard, Shard.id == Segment.shard_id)
            .where(
                Segment.shard_id == shard_id,
                or_(Shard.segment_id.is_(None), Segment.id != Shard.segment_id),
            )
        ).scalars()
    )


def epochs(connection: Connection, job_id: str) -> dict[int, tuple[int, str | None]]:
    """Shard → (epoch, path of its segment), of a job."""
    rows = connection.execute(
        select(Shard.id, Shard.epoch, Segment.path)
        .outerjoin(Segment, Segment.id == Shard.segment_id)
        .where(Shard.job_id == job_id)
    )
    return {row.id: (row.epoch, row.path) for row in rows}
