"""Gates: the one place that is asked for room before each call, and told what became of it.

A call needs room at a replica of its teacher (its controller says how much there is), in the teacher's cap, rates and
in its job's cap and budget. What is shared among the workers is only looked up here; `renewals` keeps it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from app.db import lanes
from app.db.models import Job, Teacher
from app.errors import Overloaded, RateLimited
from app.services.generate.accounts import BudgetAccount, RateAccount
from app.services.generate.needs import Need, need_of, taken_by, used_by
from app.services.generate.replicas import LaneDown, Replica, Replicas, Result, nearest, unfit
from app.services.generate.work import Unit
from app.teachers.base import Capabilities, TellsRates
from app.teachers.base import Teacher as Driver
from app.teachers.rate_headers import RatesTold

_THROTTLED_SECONDS = 600.0  # of refusals and nothing else, until a lane parks
_OWN_CUT_SECONDS = 2.0  # in which others tell of the same refusals


@dataclass(slots=True, eq=False, weakref_slot=True)
class Cap:
    """A cap of calls in flight, and this worker's share of it. `scope`: a job's or a teacher's id."""

    scope: str
    table: type[Job] | type[Teacher]
    most: int | None
    share: int = 0
    until: float = -math.inf  # monotonic time at which the share is no longer ours
    in_flight: int = 0

    def room(self, now: float) -> float:
        if self.most is None:
            return math.inf
        return max(0, self.share - self.in_flight) if now < self.until else 0

    def takes(self, weight: int, now: float) -> bool:
        """A group of siblings that is larger than the share goes when nothing else is in flight."""
        return self.most is None or self.room(now) >= min(weight, self.share or 1)


@dataclass(slots=True, eq=False)
class TeacherGate:
    """What all lanes of a teacher share in this worker."""

    teacher_id: str
    cap: Cap
    replicas: Replicas
    rates: RateAccount = field(default_factory=RateAccount)
    paced: bool = False  # its rates are asked for: it has limits, or says 429
    held_until: float = -math.inf  # monotonic time before which the teacher wants to be left alone
    held_at: float = -math.inf
    throttles: int = 0  # one after the other, without an answer between
    throttled_since: float = math.inf  # the first of them
    answered: int = 0

    def throttled(self, now: float, asked_at: float, retry_after: float | None) -> None:
        """The teacher answered 429: to all its replicas, for they share what it grants."""
        self.paced = True
        if asked_at < self.held_at:
            return  # it was under way when another one was refused
        wait = min(30.0, 1.0 * 2.0**self.throttles) if retry_after is None else retry_after
        self.throttles += 1
        self.throttled_since = min(self.throttled_since, now)
        self.held_at, self.held_until = now, max(self.held_until, now + wait)
        self.rates.throttled(wait)

    def refused_elsewhere(self, now: float) -> None:
        """Another worker was refused as too much: this one cuts back as well, unless it just did."""
        if now - self.held_at > _OWN_CUT_SECONDS:
            for replica in self.replicas:
                replica.controller.refused(now, now, replica.in_flight)

    def heard(self, told: RatesTold | None, now: float) -> None:
        """What the provider's headers told with its last answer."""
        if told is None or told is self.rates.heard:
            return
        self.rates.heard = told
        if told.limits:
            self.rates.announced = told.limits
        if told.wait:
            self.held_until = max(self.held_until, now + told.wait)
            self.rates.hold(told.wait)


@dataclass(slots=True, eq=False)
class LaneGate:
    """Room for the calls of one lane.

    `wanted` tells how many samples it could send if there were room, `head` the unit that is next, `n_pending` how
    many units there are.
    """

    spec: lanes.LaneSpec
    capabilities: Capabilities
    teacher: TeacherGate
    job: Cap
    budget: BudgetAccount | None  # None: the job has none
    backoff_s: float
    pump_in: Callable[[float], None]  # there may be room again in so many seconds
    wanted: Callable[[], int] = lambda: 0
    head: Callable[[], Unit | None] = lambda: None
    n_pending: Callable[[], int] = lambda: 0
    in_flight: int = 0
    _fits: dict[Replica, tuple[Capabilities, bool]] = field(default_factory=dict)
    _need: tuple[Unit, int, Need] | None = None  # of the unit that was looked at last

    def room(self) -> float:
        """About how many samples may be sent now, were there budget and rates enough."""
        now = time.monotonic()
        if now < self.teacher.held_until:
            return 0
        replicas = sum(replica.room(now) for replica in self.teacher.replicas if self.fits(replica))
        return min(replicas, self.teacher.cap.room(now), self.job.room(now))

    def enter(self, unit: Unit) -> "Permit | None":
        """Room for one call, taken; None where there is none now."""
        now, weight = time.monotonic(), len(unit.sample_indices)
        if now < self.teacher.held_until:
            return None
        if not (self.teacher.cap.takes(weight, now) and self.job.takes(weight, now)):
            return None
        able = [r for r in self.teacher.replicas if r.takes(weight, now) and self.fits(r)]
        if not able:
            return None
        need = None
        if self.budget is not None or self.teacher.rates.limits:
            need = self.need(unit)
            if not self._affords(need, now):
                return None
        return Permit(self, nearest(able, unit.prefix), unit, need, now)

    def need(self, unit: Unit) -> Need:
        """What a call for the unit needs of budget and rates."""
        known, samples = self._need, len(unit.sample_indices)
        if known is None or known[0] is not unit or known[1] != samples:
            known = self._need = (unit, samples, need_of(unit, self.spec, self.capabilities))
        return known[2]

    def _affords(self, need: Need, now: float) -> bool:
        rates, budget = self.teacher.rates, self.budget
        if budget is not None and not budget.has(need.most, now):
            budget.starved = True
            return False
        if not rates.has(need.likely, now):
            rates.starved = True
            return False
        return True

    def fits(self, replica: Replica) -> bool:
        found = replica.capabilities
        if found is None:
            return False
        known = self._fits.get(replica)
        if known is None or known[0] is not found:
            known = self._fits[replica] = (found, unfit(self.spec, found) is None)
        return known[1]

    def down(self) -> LaneDown | None:
        """Why no call can be made until something changes; None where that is not so."""
        if any(replica.down is None and self.fits(replica) for replica in self.teacher.replicas):
            return None
        return self.teacher.replicas.why_down(self.spec)


class Permit:
    """Room for one call, until `close`."""

    def __init__(self, gate: LaneGate, replica: Replica, unit: Unit, need: Need | None, now: float) -> None:
        """`need`: None where neither budget nor rates are counted."""
        assert replica.teacher is not None
        self.teacher: Driver = replica.teacher
        self._weight = weight = len(unit.sample_indices)
        self._gate, self._replica, self._unit, self._asked_at = gate, replica, unit, now
        self._move(weight)
        replica.sent(weight)
        self._need, self._budget = need, gate.budget
        if need is not None:
            self._reservation = None if self._budget is None else self._budget.reserve(need.most)
            self._step = gate.teacher.rates.spend(need.likely)

    @property
    def answered(self) -> int:
        """How many answers the teacher has given to this worker."""
        return self._gate.teacher.answered

    def close(self, result: Result) -> LaneDown | None:
        """Give the room back, and say what became of the call. Returns why the lane is down, where it is now."""
        gate, now = self._gate, time.monotonic()
        self._move(-self._weight)
        self._replica.told(result, self._asked_at, self._weight, gate.backoff_s)
        if self._need is not None:
            self._settle(self._need, result)
        if gate.teacher.paced and isinstance(self.teacher, TellsRates):
            gate.teacher.heard(self.teacher.rates_told, now)
        if isinstance(result, list):
            gate.teacher.answered += 1
            gate.teacher.throttles, gate.teacher.throttled_since = 0, math.inf
            return None
        if isinstance(result, RateLimited) and not isinstance(result, Overloaded):
            gate.teacher.throttled(now, self._asked_at, result.retry_after)
        next_try = max(gate.teacher.held_until, self._replica.not_before)
        if next_try > now:
            gate.pump_in(next_try - now)
        if isinstance(result, RateLimited) and now - gate.teacher.throttled_since > _THROTTLED_SECONDS:
            return LaneDown(
                result.kind, f"nothing was answered for {_THROTTLED_SECONDS:g} s: {result.detail}"
            )
        return gate.down() if isinstance(result, Exception) else None

    def _settle(self, need: Need, result: Result) -> None:
        if self._budget is not None and self._reservation is not None:
            used = used_by(self._unit, self._gate.spec, need, result)
            self._budget.settle(self._reservation, used)
        rates = self._gate.teacher.rates
        if rates.limits:
            rates.correct(self._step, taken_by(self._unit, need, result) - need.likely)

    def _move(self, weight: int) -> None:
        self._gate.in_flight += weight
        self._gate.teacher.cap.in_flight += weight
        self._gate.job.in_flight += weight
