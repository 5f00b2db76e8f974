"""A teacher's limits per minute, shared by all workers: what is granted is written down, second by second.

A worker takes a block at a time, at most a few times a second, and spends it at once (`app.domain.rates`). What a call
turned out to take is set right in the step that it was granted in. The row of `teacher_pace` is the lock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, case, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.db.admission_models import RateStep, TeacherPace
from app.db.inserting import insert_ignoring
from app.db.models import Teacher
from app.db.session import db_now
from app.domain.rates import (
    KINDS,
    NO_AMOUNTS,
    PACE_SECONDS,
    STEPS,
    UNLIMITED,
    WINDOW_SECONDS,
    Amounts,
    Limits,
    grant,
)

# A refusal though the limits were kept: they are lower than we know, or others use them too.
_CUT, _FLOOR, _CUT_EVERY, _RECOVERY_SECONDS = 0.8, 0.05, 5.0, 600.0


@dataclass(frozen=True, slots=True)
class Block:
    """What a worker may spend in the next second. `step`: where corrections of it belong. `held_seconds`: from now,
    nothing may be asked for so long."""

    limits: Limits
    given: Amounts
    step: int
    held_seconds: float
    throttled: int = 0  # refusals in all


@dataclass(frozen=True, slots=True)
class Throttles:
    """Refusals as too much since a worker last told, and the longest wait that they asked for."""

    count: int = 0
    seconds: float = 0.0


NO_THROTTLES = Throttles()


def take(
    connection: Connection,
    teacher_id: str,
    wanted: Amounts,
    at_least: Amounts,
    corrections: Mapping[int, Amounts],
    throttles: Throttles = NO_THROTTLES,
    announced: Limits | None = None,
) -> Block:
    """A block of what the teacher grants per minute, of which one call takes `at_least`.

    `corrections`: what calls took more, or less, than was taken for them, by step. `announced`: limits that the teacher
    told of itself; those that it was registered with go before them.
    """
    pace, now = _locked(connection, teacher_id)
    _correct(connection, teacher_id, corrections)
    factor, held_until = _told(connection, teacher_id, pace, now, throttles, announced)
    limits = _limits(connection, teacher_id, announced or _limits_of(pace.announced)).times(factor)
    step = int(now)
    held = max(0.0, (held_until or 0.0) - now)
    throttled = pace.throttled + throttles.count
    if not limits or held or wanted == NO_AMOUNTS:
        return Block(limits, NO_AMOUNTS, step, held, throttled)
    used, recent = _used(connection, teacher_id, step)
    given = grant(limits, used, recent, wanted, at_least)
    if given != NO_AMOUNTS:
        _add(connection, teacher_id, step, given)
        connection.execute(
            delete(RateStep).where(
                RateStep.teacher_id == teacher_id, RateStep.step < step - 2 * WINDOW_SECONDS
            )
        )
    return Block(limits, given, step, held, throttled)


@dataclass(frozen=True, slots=True)
class Pace:
    """How a teacher is treated now: limits in effect, what of them was granted in the last minute, refusals in all."""

    limits: Limits
    used: Amounts
    throttled: int
    held_seconds: float
    factor: float


def paces(session: Session, teachers: Sequence[Teacher]) -> dict[str, Pace]:
    """By teacher's id."""
    ids = [teacher.id for teacher in teachers]
    now = float(session.execute(select(db_now())).scalar_one())
    known = {
        row.teacher_id: row
        for row in session.execute(select(TeacherPace).where(TeacherPace.teacher_id.in_(ids))).scalars()
    }
    sums = session.execute(
        select(RateStep.teacher_id, *(func.sum(getattr(RateStep, kind)) for kind in KINDS))
        .where(RateStep.teacher_id.in_(ids), RateStep.step > int(now) - WINDOW_SECONDS)
        .group_by(RateStep.teacher_id)
    )
    used = {teacher_id: Amounts(*(int(value) for value in values)) for teacher_id, *values in sums}
    found = {}
    for teacher in teachers:
        pace = known.get(teacher.id)
        factor = 1.0 if pace is None else _factor(pace.factor, pace.cut_at, now)
        announced = None if pace is None else _limits_of(pace.announced)
        found[teacher.id] = Pace(
            limits=_effective(teacher, announced).times(factor),
            used=used.get(teacher.id, NO_AMOUNTS),
            throttled=0 if pace is None else pace.throttled,
            held_seconds=0.0 if pace is None else max(0.0, (pace.held_until or 0.0) - now),
            factor=factor,
        )
    return found


def _locked(connection: Connection, teacher_id: str) -> tuple[Any, float]:
    query = select(TeacherPace.__table__).where(TeacherPace.teacher_id == teacher_id).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        insert_ignoring(connection, TeacherPace, {"teacher_id": teacher_id, "factor": 1.0, "throttled": 0})
        row = connection.execute(query).one()
    return row, float(connection.execute(select(db_now())).scalar_one())


def _told(
    connection: Connection,
    teacher_id: str,
    pace: Any,
    now: float,
    throttles: Throttles,
    announced: Limits | None,
) -> tuple[float, float | None]:
    """(factor of the limits, time until which nothing is asked), with what the worker tells taken into account."""
    factor = _factor(pace.factor, pace.cut_at, now)
    values: dict[str, Any] = {}
    if throttles.seconds:
        values["held_until"] = max(pace.held_until or 0.0, now + throttles.seconds)
    if throttles.count:
        values["throttled"] = TeacherPace.throttled + throttles.count
        if pace.cut_at is None or now - pace.cut_at >= _CUT_EVERY:
            factor = max(_FLOOR, factor * _CUT)
            values |= {"factor": factor, "cut_at": now}
    if announced is not None and _limits_of(pace.announced) != announced:
        values["announced"] = asdict(announced)
    if values:
        connection.execute(update(TeacherPace).where(TeacherPace.teacher_id == teacher_id).values(**values))
    return factor, values.get("held_until", pace.held_until)


def _factor(factor: float, cut_at: float | None, now: float) -> float:
    """Grows back by itself: additive increase."""
    return 1.0 if cut_at is None else min(1.0, factor + max(0.0, now - cut_at) / _RECOVERY_SECONDS)


def _limits(connection: Connection, teacher_id: str, announced: Limits | None) -> Limits:
    teacher = connection.execute(
        select(
            Teacher.max_requests_per_minute,
            Teacher.max_input_tokens_per_minute,
            Teacher.max_output_tokens_per_minute,
        ).where(Teacher.id == teacher_id)
    ).one()
    return _effective(teacher, announced)


def _effective(teacher: Any, announced: Limits | None) -> Limits:
    """Those that the teacher was registered with, else those that it announces."""
    told = announced or UNLIMITED

    def first(own: int | None, other: int | None) -> int | None:
        return other if own is None else own

    return Limits(
        requests=first(teacher.max_requests_per_minute, told.requests),
        input_tokens=first(teacher.max_input_tokens_per_minute, told.input_tokens),
        output_tokens=first(teacher.max_output_tokens_per_minute, told.output_tokens),
        tokens=told.tokens,
    )


def _limits_of(stored: dict[str, int | None] | None) -> Limits | None:
    return None if stored is None else Limits(**stored)


def _used(connection: Connection, teacher_id: str, step: int) -> tuple[Amounts, Amounts]:
    """Granted in the window, and of that in its last seconds."""
    recent = RateStep.step > step - PACE_SECONDS
    columns = [getattr(RateStep, kind) for kind in KINDS]
    row = connection.execute(
        select(
            *(func.coalesce(func.sum(column), 0) for column in columns),
            *(func.coalesce(func.sum(case((recent, column), else_=0)), 0) for column in columns),
        ).where(RateStep.teacher_id == teacher_id, RateStep.step > step - STEPS)
    ).one()
    values = [int(value) for value in row]
    return Amounts(*values[:3]), Amounts(*values[3:])


def _add(connection: Connection, teacher_id: str, step: int, given: Amounts) -> None:
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    values = asdict(given)
    statement = insert(RateStep).values(teacher_id=teacher_id, step=step, **values)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["teacher_id", "step"],
            set_={kind: getattr(RateStep, kind) + statement.excluded[kind] for kind in values},
        )
    )


def _correct(connection: Connection, teacher_id: str, corrections: Mapping[int, Amounts]) -> None:
    for step, more in sorted(corrections.items()):
        connection.execute(
            update(RateStep)
            .where(RateStep.teacher_id == teacher_id, RateStep.step == step)
            .values(**{kind: getattr(RateStep, kind) + getattr(more, kind) for kind in KINDS})
        )
