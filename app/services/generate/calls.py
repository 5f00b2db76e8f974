"""One call to a teacher and its retries. This is the one layer that retries; drivers raise."""

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
from app.services.generate.work import ShardRun, Unit
from app.teachers.base import Generation, Teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    attempts: int
    backoff_s: float
    deadline_s: float


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


class LaneDown(Exception):
    """The teacher does not work for anybody just now: the lane parks, and no attempt of the prompt is burnt."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


class Throttled(Exception):
    """The teacher asks for a slower pace: the unit goes back to the queue."""

    def __init__(self, retry_after: float | None) -> None:
        super().__init__("rate limited")
        self.retry_after = retry_after


_CONNECT_TRIES = 3


async def answer(  # noqa: C901 - one flat list of what can go wrong
    unit: Unit, teacher: Teacher, policy: RetryPolicy, keep: list[Outcome]
) -> None:
    """Ask until every sample of the unit has an outcome, each put into `keep` as soon as it is known.

    Raises `LaneDown` or `Throttled`; the samples that are not in `keep` by then are still to be made.
    """
    missing = [i for i in unit.sample_indices if all(done.sample_index != i for done in keep)]
    started = time.monotonic()
    attempt, refused = 0, 0
    while missing:
        attempt += 1
        remaining = policy.deadline_s - (time.monotonic() - started)
        asked_at = time.monotonic()
        try:
            request = unit.request(tuple(missing), remaining)
            async with asyncio.timeout(remaining):
                generations = await teacher.generate(request)
        except (TeacherRefusedKey, IdentityChanged) as error:
            raise LaneDown(error.kind, error.detail) from error
        except TeacherUnavailable as error:
            refused += 1
            attempt -= 1
            if refused >= _CONNECT_TRIES:
                raise LaneDown(error.kind, error.detail) from error
            await asyncio.sleep(_wait(policy, refused, error.retry_after))
            continue
        except RateLimited as error:
            raise Throttled(error.retry_after) from error
        except TransientTeacherError as error:
            kind, detail, retry_after = error.kind, error.detail, error.retry_after
        except PermanentTeacherError as error:
            keep.extend(_failed(unit, missing, attempt, asked_at, error.kind, error.detail))
            return
        except TimeoutError:
            detail = f"no whole answer within {policy.deadline_s:g} s, all attempts together"
            keep.extend(_failed(unit, missing, attempt, asked_at, "deadline", detail))
            return
        except Exception as error:  # a bug of a driver must not take the worker's other calls with it
            log.exception("driver %r failed on prompt %d", unit.run.lane.spec.driver, unit.prompt_number)
            keep.extend(
                _failed(unit, missing, attempt, asked_at, "internal", f"{type(error).__name__}: {error}")
            )
            return
        else:
            latency = _ms_since(asked_at)
            for generation in generations:
                if generation.sample_index in missing:
                    missing.remove(generation.sample_index)
                    keep.append(Outcome(unit, generation.sample_index, attempt, latency, generation))
            if generations:
                continue
            kind, detail, retry_after = "teacher-malformed-answer", "the teacher returned no choice", None
        if attempt >= policy.attempts:
            keep.extend(_failed(unit, missing, attempt, asked_at, kind, detail))
            return
        wait = _wait(policy, attempt, retry_after)
        if time.monotonic() - started + wait >= policy.deadline_s:
            keep.extend(_failed(unit, missing, attempt, asked_at, "deadline", f"{detail} (and no time left)"))
            return
        await asyncio.sleep(wait)


def given_up(run: ShardRun) -> list[Outcome]:
    """A shard that takes its worker down each time: its rest becomes failed rows."""
    claims = run.claim.claims_without_progress
    detail = f"claimed {claims} times without progress: the worker died each time"
    lost = [
        Outcome(unit, index, claims, 0, None, "shard-attempts", detail)
        for unit in run.pending
        for index in unit.sample_indices
    ]
    run.pending.clear()
    return lost


def _wait(policy: RetryPolicy, attempt: int, retry_after: float | None) -> float:
    """Seconds before the next attempt: what the teacher asked for, else exponential with full jitter."""
    if retry_after is not None:
        return retry_after
    return random.uniform(0.5, 1.0) * policy.backoff_s * 2.0 ** (attempt - 1)


def _failed(
    unit: Unit, missing: list[int], attempts: int, asked_at: float, kind: str, detail: str
) -> list[Outcome]:
    latency = _ms_since(asked_at)
    return [
        Outcome(unit, index, attempts, latency, error_kind=kind, error_detail=detail[:4000])
        for index in missing
    ]


def _ms_since(start: float) -> int:
    return round((time.monotonic() - start) * 1000)
