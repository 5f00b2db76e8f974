"""One call to a teacher, and whether its prompt is asked again. This is the one layer that retries; drivers raise.

A call that is to be made again gives its room back and waits in the queue, so that nothing is held while it waits.
"""

import asyncio
import logging
import random
import time
from dataclasses import dataclass

from app.errors import (
    IdentityChanged,
    PermanentTeacherError,
    RateLimited,
    TeacherRefusedKey,
    TeacherUnavailable,
    TransientTeacherError,
)
from app.services.generate.config import RetryPolicy
from app.services.generate.gates import Permit
from app.services.generate.replicas import LaneDown
from app.services.generate.work import ShardRun, Unit
from app.teachers.base import Generation

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one sample: a generation, or an error that will not go away by asking again."""

    unit: Unit
    sample_index: int
    attempts: int
    latency_ms: int
    generation: Generation | None = None
    error_kind: str | None = None
    error_detail: str | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """The samples of the unit that have no outcome are to be asked for again, after so many seconds."""

    seconds: float


# Of one prompt, though others are answered: then it is the prompt (too large for what is granted, say).
_REFUSALS = 20


async def ask(unit: Unit, permit: Permit, policy: RetryPolicy, keep: list[Outcome]) -> Again | None:
    """Make one call for the unit's samples. Outcomes that are final go into `keep`; `unit` keeps what is missing.

    Closes the permit. Raises `LaneDown` where the teacher works for nobody just now: no attempt is burnt then.
    """
    remaining = policy.deadline_s - unit.used_s
    asked_at = time.monotonic()
    result: list[Generation] | Exception | None = None
    try:
        async with asyncio.timeout(remaining):
            result = await permit.teacher.generate(unit.request(unit.sample_indices, remaining))
    except Exception as error:  # noqa: BLE001 - each kind is told apart below; a driver's bug is one of them
        result = error
    finally:
        down = permit.close(result)
        if not isinstance(
            result, RateLimited | TeacherUnavailable
        ):  # what was not begun takes none of its time
            unit.used_s += time.monotonic() - asked_at
    if isinstance(result, Exception):
        if isinstance(result, RateLimited) and down is None and not _is_poison(unit, permit):
            return Again(0.0)  # not before there is room again
        return _after_error(unit, result, down, policy, keep, asked_at)
    return _after_answer(unit, result or [], policy, keep, asked_at)


def _is_poison(unit: Unit, permit: Permit) -> bool:
    """Whether this prompt is refused as too much again and again, though others are answered."""
    if not unit.refusals:
        unit.answered_then = permit.answered
    unit.refusals += 1
    return unit.refusals >= _REFUSALS and permit.answered > unit.answered_then


def _after_answer(
    unit: Unit, found: list[Generation], policy: RetryPolicy, keep: list[Outcome], asked_at: float
) -> Again | None:
    unit.attempts += 1
    missing, latency = set(unit.sample_indices), _ms_since(asked_at)
    for made in found:
        if made.sample_index in missing:
            missing.remove(made.sample_index)
            keep.append(Outcome(unit, made.sample_index, unit.attempts, latency, made))
    if not missing:
        return None
    if len(missing) < len(unit.sample_indices):  # some came: the others are a call of their own
        unit.sample_indices = tuple(i for i in unit.sample_indices if i in missing)
        unit.attempts -= 1
        return Again(0.0)
    return _retried(
        unit, "teacher-malformed-answer", "the teacher returned no choice", None, policy, keep, asked_at
    )


def _after_error(
    unit: Unit,
    error: Exception,
    down: LaneDown | None,
    policy: RetryPolicy,
    keep: list[Outcome],
    asked_at: float,
) -> Again | None:
    match error:
        case TeacherRefusedKey() | IdentityChanged() | TeacherUnavailable() | RateLimited() if (
            down is not None
        ):
            raise down from error
        case TeacherRefusedKey() | IdentityChanged() | TeacherUnavailable():
            return Again(0.0)  # another replica may answer; this one is tried again at its own pace
        case RateLimited():
            unit.attempts += 1
            keep.extend(_failed(unit, asked_at, error.kind, f"{error.detail} ({_REFUSALS} times)"))
        case TransientTeacherError():
            unit.attempts += 1
            return _retried(unit, error.kind, error.detail, error.retry_after, policy, keep, asked_at)
        case PermanentTeacherError():
            unit.attempts += 1
            keep.extend(_failed(unit, asked_at, error.kind, error.detail))
        case TimeoutError():
            unit.attempts += 1
            detail = f"no whole answer within {policy.deadline_s:g} s, all attempts together"
            keep.extend(_failed(unit, asked_at, "deadline", detail))
        case _:  # a bug of a driver must not take the worker's other calls with it
            unit.attempts += 1
            driver = unit.run.lane.spec.driver
            log.error("driver %r failed on prompt %d", driver, unit.prompt_number, exc_info=error)
            keep.extend(_failed(unit, asked_at, "internal", f"{type(error).__name__}: {error}"))
    return None


def _retried(
    unit: Unit,
    kind: str,
    detail: str,
    retry_after: float | None,
    policy: RetryPolicy,
    keep: list[Outcome],
    asked_at: float,
) -> Again | None:
    """What the teacher asked for, else exponential with jitter; None where no attempt or no time is left."""
    if unit.attempts >= policy.attempts:
        keep.extend(_failed(unit, asked_at, kind, detail))
        return None
    wait = random.uniform(0.5, 1.0) * policy.backoff_s * 2.0 ** (unit.attempts - 1)
    if retry_after is not None:
        wait = retry_after
    if unit.used_s + wait >= policy.deadline_s:
        keep.extend(_failed(unit, asked_at, "deadline", f"{detail} (and no time left)"))
        return None
    unit.used_s += wait
    return Again(wait)


def given_up(run: ShardRun) -> list[Outcome]:
    """A shard that takes its worker down each time: its rest becomes failed rows."""
    claims = run.claim.claims_without_progress
    detail = f"claimed {claims} times without progress: the worker died each time"
    lost = [
        Outcome(unit, index, claims, 0, None, "shard-attempts", detail)
        for unit in (*run.pending, *run.kept_back)
        for index in unit.sample_indices
    ]
    run.forget()
    return lost


def _failed(unit: Unit, asked_at: float, kind: str, detail: str) -> list[Outcome]:
    latency = _ms_since(asked_at)
    return [
        Outcome(unit, index, unit.attempts, latency, error_kind=kind, error_detail=detail[:4000])
        for index in unit.sample_indices
    ]


def _ms_since(start: float) -> int:
    return round((time.monotonic() - start) * 1000)
