"""Completions of a job, page by page, and where their token columns lie."""

from collections.abc import Sequence

from sqlalchemy import literal_column, select, tuple_
from sqlalchemy.orm import Session

from app.db.models import Completion, Part, PromptRow, Segment, Shard
from app.domain.lifecycle import CompletionStatus

Place = tuple[int, int, int, int]

# Literals, not parameters: the planner must see that a partial index fits.
_FAILED = Completion.status == literal_column(f"'{CompletionStatus.FAILED}'")
_COMPLETED = Completion.status == literal_column(f"'{CompletionStatus.COMPLETED}'")


def page(
    session: Session,
    job_id: str,
    stages: Sequence[int],
    prompt_number: int | None,
    completed_only: bool,
    after: Place | None,
    limit: int,
) -> list[Completion]:
    """In order of the primary key: (stage, prompt number, teacher, sample index), from the one after `after`."""
    order = (Completion.stage, Completion.prompt_number, Completion.teacher, Completion.sample_index)
    query = select(Completion).where(Completion.job_id == job_id).order_by(*order).limit(limit)
    if prompt_number is not None:
        query = query.where(Completion.stage.in_(stages), Completion.prompt_number == prompt_number)
    if completed_only:
        query = query.where(_COMPLETED)
    if after is not None:
        query = query.where(tuple_(*order) > after)
    return list(session.execute(query).scalars())


def failed(
    session: Session,
    job_id: str,
    kinds: Sequence[str],
    prompt_number: int | None,
    after: Place | None,
    limit: int,
) -> list[Completion]:
    """In order of (prompt number, stage, teacher, sample index), by the index of failures alone."""
    order = (Completion.prompt_number, Completion.stage, Completion.teacher, Completion.sample_index)
    query = select(Completion).where(Completion.job_id == job_id, _FAILED).order_by(*order).limit(limit)
    if kinds:
        query = query.where(Completion.error_kind.in_(kinds))
    if prompt_number is not None:
        query = query.where(Completion.prompt_number == prompt_number)
    if after is not None:
        # The first comparison is what the index can use; the second one is exact.
        query = query.where(Completion.prompt_number >= after[0], tuple_(*order) > after)
    return list(session.execute(query).scalars())


def prompt_bodies(session: Session, prompt_set_id: str, numbers: Sequence[int]) -> dict[int, bytes]:
    rows = session.execute(
        select(PromptRow.number, PromptRow.body).where(
            PromptRow.prompt_set_id == prompt_set_id, PromptRow.number.in_(numbers)
        )
    )
    return dict(rows.all())


def segment_paths(session: Session, shard_ids: Sequence[int]) -> dict[int, str]:
    """Of the shards that have a segment."""
    rows = session.execute(
        select(Shard.id, Segment.path)
        .join(Segment, Segment.id == Shard.segment_id)
        .where(Shard.id.in_(shard_ids))
    )
    return dict(rows.all())


def parts(session: Session, shard_ids: Sequence[int]) -> dict[int, list[bytes]]:
    """Token columns that are not in a segment yet, of each shard, in the order of writing."""
    found: dict[int, list[bytes]] = {}
    rows = session.execute(
        select(Part.shard_id, Part.payload)
        .where(Part.shard_id.in_(shard_ids))
        .order_by(Part.shard_id, Part.epoch, Part.sequence)
    )
    for shard_id, payload in rows:
        found.setdefault(shard_id, []).append(payload)
    return found
