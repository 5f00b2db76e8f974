"""Completions of a project's earlier jobs that equal what a job asks for now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, literal_column, or_, select

from app.db.checkpoints import COLUMNS
from app.db.models import Completion, Job, Segment, Shard
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
    connection: Connection, project_id: str, job_id: str, hashes: Sequence[bytes]
) -> dict[bytes, Equal]:
    """Content hash → the oldest completion with it, of the project's other jobs, whose tokens are in a segment."""
    found: dict[bytes, Equal] = {}
    columns = [getattr(Completion, name) for name in COLUMNS]
    for start in range(0, len(hashes), _AT_ONCE):
        rows = connection.execute(
            select(*columns, Segment.path.label("path"))
            .join(Job, Job.id == Completion.job_id)
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
            found.setdefault(row.content_hash, Equal(row, None if row.n_tokens is None else row.path))
    return found
