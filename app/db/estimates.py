"""What earlier work tells of a job to be: a sample of its prompts, and what its teachers did before."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, select

from app.db.models import Counter, Job, Lane, PromptRow

_SAMPLE = 500  # prompts, spread over the set


@dataclass(frozen=True, slots=True)
class Past:
    """Of a teacher: completions and their tokens in all its jobs, and rows per second in the last one that ended."""

    completed: int = 0
    completion_tokens: int = 0
    rows_per_second: float | None = None


def mean_bytes(connection: Connection, prompt_set_id: str, n_prompts: int) -> float:
    """Of a prompt's JSON; 0 where there is none."""
    numbers = sorted({number * n_prompts // _SAMPLE for number in range(_SAMPLE)}) if n_prompts else []
    found = connection.execute(
        select(func.avg(func.length(PromptRow.body))).where(
            PromptRow.prompt_set_id == prompt_set_id,
            PromptRow.number.in_(numbers),
            PromptRow.removed_by.is_(None),
        )
    ).scalar_one()
    return float(found or 0.0)


def past(connection: Connection, teacher_ids: Sequence[str]) -> dict[str, Past]:
    """By teacher's id; one that made nothing yet is absent."""
    lane = and_(Counter.job_id == Lane.job_id, Counter.teacher == Lane.teacher)
    sums = connection.execute(
        select(Lane.teacher_id, func.sum(Counter.completed), func.sum(Counter.completion_tokens))
        .join(Counter, lane)
        .where(Lane.teacher_id.in_(teacher_ids))
        .group_by(Lane.teacher_id)
    ).all()
    return {
        teacher_id: Past(int(completed), int(tokens), _pace(connection, teacher_id))
        for teacher_id, completed, tokens in sums
        if completed
    }


def _pace(connection: Connection, teacher_id: str) -> float | None:
    last = connection.execute(
        select(Job.id, Lane.teacher, Job.ended_at - Job.started_at)
        .join(Lane, Lane.job_id == Job.id)
        .where(Lane.teacher_id == teacher_id, Job.ended_at.is_not(None), Job.started_at.is_not(None))
        .order_by(Job.ended_at.desc())
        .limit(1)
    ).one_or_none()
    if last is None or not last[2] or last[2] <= 0:
        return None
    completed = connection.execute(
        select(func.sum(Counter.completed)).where(Counter.job_id == last[0], Counter.teacher == last[1])
    ).scalar_one()
    return None if not completed else float(completed) / float(last[2])
