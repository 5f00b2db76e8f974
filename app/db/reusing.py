"""Completions of a project's earlier jobs that equal what a job asks for now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, literal_column, or_, select

from app.db.checkpoints import COLUMNS
from app.db.models import Completion, Job, Lane, Segment, Shard
from app.domain.lifecycle import CompletionStatus

_AT_ONCE = 500

# A literal: the planner must see that the partial index fits.
_COMPLETED = Completion.status == literal_column(f"'{CompletionStatus.COMPLETED}'")


@dataclass(frozen=True, slots=True)
class Equal:
    """`row` has the columns of a checkpoint; `segment`: where its tokens are, None where it has none."""

    row: Row[*tuple[Any, ...]]
    segment: str | None

    @property
    def origin(self) -> str:
        """The id of the row that a teacher was asked for."""
        row = self.row
        name = f"{row.job_id}/{row.stage}/{row.prompt_number}/{row.teacher}/{row.sample_index}"
        return str(row.reused_from or name)


def equal_rows(
    connection: Connection, project_id: str, job_id: str, teacher: int, hashes: Sequence[bytes]
) -> dict[bytes, Equal]:
    """Content hash → the oldest completion with it, of the project's other jobs, whose tokens are in a segment.

    `teacher`: the job's lane. Only rows of the same registered teacher under the same terms: another one that answers
    alike is another origin, with hosts and terms of its own, and a takedown of either must find all that it made.
    """
    found: dict[bytes, Equal] = {}
    columns = [getattr(Completion, name) for name in COLUMNS]
    asking = select(Lane.teacher_id, Lane.terms_id, Lane.trained_on).where(
        Lane.job_id == job_id, Lane.teacher == teacher
    )
    ours = _origin(*connection.execute(asking).one())
    for start in range(0, len(hashes), _AT_ONCE):
        rows = connection.execute(
            select(
                *columns,
                Lane.teacher_id.label("lane_teacher_id"),
                Lane.terms_id.label("lane_terms_id"),
                Lane.trained_on.label("lane_trained_on"),
                Segment.path.label("path"),
            )
            .join(Job, Job.id == Completion.job_id)
            .join(Lane, (Lane.job_id == Completion.job_id) & (Lane.teacher == Completion.teacher))
            .join(Shard, Shard.id == Completion.shard_id)
            .outerjoin(Segment, Segment.id == Shard.segment_id)
            .where(
                Completion.content_hash.in_(hashes[start : start + _AT_ONCE]),
                _COMPLETED,
                Completion.removed_by.is_(None),
                Job.project_id == project_id,
                Job.id != job_id,
                or_(Completion.n_tokens.is_(None), Segment.path.is_not(None)),
            )
            .order_by(Completion.created_at)
        )
        for row in rows:
            if _origin(row.lane_teacher_id, row.lane_terms_id, row.lane_trained_on) == ours:
                found.setdefault(row.content_hash, Equal(row, None if row.n_tokens is None else row.path))
    return found


def _origin(teacher_id: str, terms_id: str | None, trained_on: list[str] | None) -> tuple[object, ...]:
    return (teacher_id, terms_id, frozenset(trained_on or ()))
