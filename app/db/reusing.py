"""Completions of a project's earlier jobs that equal what a job asks for now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, Row, literal_column, or_, select

from app.db.checkpoints import COLUMNS
from app.db.models import Completion, Job, Lane, Segment, Shard, Teacher
from app.domain.lifecycle import CompletionStatus
from app.policy.routes import route_of

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


# By what the terms of a lane's rows are found: a row that is copied must not come under others.
_BASIS = (
    Lane.model.label("lane_model"),
    Lane.revision.label("lane_revision"),
    Lane.access_route.label("lane_access_route"),
    Lane.terms_id.label("lane_terms_id"),
    Lane.trained_on.label("lane_trained_on"),
    Teacher.trained_on.label("trained_on_by_now"),
    Teacher.base_url.label("base_url"),
    Teacher.past_hosts.label("past_hosts"),
)


def _basis(row: Row[*tuple[Any, ...]]) -> tuple[object, ...]:
    hosts = [*(row.past_hosts or ()), None if row.base_url is None else urlsplit(row.base_url).hostname]
    return (
        row.lane_model,
        row.lane_revision,
        row.lane_access_route,
        row.lane_terms_id,
        frozenset([*(row.lane_trained_on or ()), *(row.trained_on_by_now or ())]),
        frozenset(route_of(host) for host in hosts) - {None},
    )


def equal_rows(
    connection: Connection, project_id: str, job_id: str, teacher: int, hashes: Sequence[bytes]
) -> dict[bytes, Equal]:
    """Content hash → the oldest completion with it, of the project's other jobs, whose tokens are in a segment.

    `teacher`: the job's lane. Only rows that the same terms bind: a model that answers alike under other terms (another
    host, other training data) is another origin.
    """
    found: dict[bytes, Equal] = {}
    columns = [getattr(Completion, name) for name in COLUMNS]
    ours = _basis(
        connection.execute(
            select(*_BASIS)
            .join(Teacher, Teacher.id == Lane.teacher_id)
            .where(Lane.job_id == job_id, Lane.teacher == teacher)
        ).one()
    )
    for start in range(0, len(hashes), _AT_ONCE):
        rows = connection.execute(
            select(*columns, *_BASIS, Segment.path.label("path"))
            .join(Job, Job.id == Completion.job_id)
            .join(Lane, (Lane.job_id == Completion.job_id) & (Lane.teacher == Completion.teacher))
            .join(Teacher, Teacher.id == Lane.teacher_id)
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
            if _basis(row) != ours:
                continue
            found.setdefault(row.content_hash, Equal(row, None if row.n_tokens is None else row.path))
    return found
