"""What this worker may use of a job's budget and of a teacher's rates: looked up at each call, renewed beside the loop.

Belongs to the event loop; touches no database.
"""

import math
from dataclasses import dataclass, field

from app.db.budgets import Share
from app.db.rates import NO_THROTTLES, Block, Throttles
from app.domain.budget import NOTHING, Use
from app.domain.rates import NO_AMOUNTS, SPEND_SECONDS, UNLIMITED, Amounts, Limits
from app.teachers.rate_headers import RatesTold


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one call may use at the most. `generation`: of the account, when it was reserved."""

    use: Use
    generation: int


@dataclass(slots=True, eq=False, weakref_slot=True)
class BudgetAccount:
    """This worker's part of a job's budget. What was written off because its lease ran out may still be used: the
    ledger takes it for used.

    `held`: what the ledger says is ours, for calls in flight (`reserved`), for calls that ended and are not told yet
    (`settled`), and for calls to come. None: there is no cap.
    """

    job_id: str
    held: Use | None = NOTHING
    reserved: Use = NOTHING
    settled: Use = NOTHING
    known: bool = False  # there is a row of ours in the ledger
    generation: int = 0
    ends_at: float = math.inf  # monotonic time at which the job's time is up
    reached: tuple[str, ...] = ()  # kinds of cap that leave no room, for good
    starved: bool = False  # a call was refused for want of something to hold
    begun: int = 0  # calls since the last renewal

    def has(self, use: Use, now: float) -> bool:
        if now >= self.ends_at or self.reached:
            return False
        return self.held is None or self.free().covers(use)

    def free(self) -> Use:
        return NOTHING if self.held is None else self.held - self.reserved - self.settled

    def reserve(self, use: Use) -> Reservation:
        self.reserved += use
        self.begun += 1
        return Reservation(use, self.generation)

    def settle(self, reservation: Reservation, used: Use) -> None:
        """The call has ended. One whose reservation was written off meanwhile is accounted for already."""
        if reservation.generation == self.generation:
            self.reserved -= reservation.use
            self.settled += used

    def left(self, told: Use) -> None:
        """The ledger has no row of ours any more; `told`: what was settled with it."""
        self.settled -= told
        self.known, self.held = False, NOTHING

    def asking(self, wanted: Use, at_least: Use) -> tuple[Use, Use, Use]:
        """(settled, reserved, wanted) to renew with. What is not asked for any more is not used from here on."""
        if self.held is not None:
            free = self.free()
            if not free.covers(at_least) or not wanted.covers(at_least):
                free = NOTHING  # too little for a call: others may be able to use it
            self.held = self.reserved + self.settled + Use(*map(min, free.parts(), wanted.parts()))
        return self.settled, self.reserved, wanted

    def renewed(self, share: Share, told: Use, now: float) -> None:
        """`told`: what was settled in the renewal, asked for at monotonic time `now`."""
        if share.gone:
            self.generation += 1
            self.reserved = self.settled = NOTHING
        else:
            self.settled -= told
        self.known, self.starved = True, False
        self.held, self.reached = share.held, share.reached
        self.ends_at = math.inf if share.seconds_left is None else now + share.seconds_left


@dataclass(slots=True, eq=False)
class RateAccount:
    """This worker's present block of a teacher's rates."""

    limits: Limits = UNLIMITED  # in effect; none: nothing is counted
    left: Amounts = NO_AMOUNTS
    step: int = 0
    until: float = -math.inf  # monotonic time: a block is spent at once, or given back
    corrections: dict[int, Amounts] = field(default_factory=dict)
    throttles: Throttles = NO_THROTTLES
    announced: Limits | None = None
    heard: RatesTold | None = None  # by the provider's headers, last
    throttled_in_all: int | None = None  # by all workers, as last read
    starved: bool = False  # a call was refused for want of rates
    begun: int = 0  # calls since the last renewal

    def has(self, need: Amounts, now: float) -> bool:
        return not self.limits or (now < self.until and self.left.covers(need))

    def spend(self, need: Amounts) -> int:
        """The step that corrections of this call belong to."""
        self.begun += 1
        if self.limits:
            self.left -= need
        return self.step

    def correct(self, step: int, more: Amounts) -> None:
        if self.limits and more != NO_AMOUNTS:
            self.corrections[step] = self.corrections.get(step, NO_AMOUNTS) + more

    def throttled(self, seconds: float) -> None:
        """The teacher refused a call as too much, and wants to be left alone so long."""
        self.throttles = Throttles(self.throttles.count + 1, max(self.throttles.seconds, seconds))

    def asking(self) -> tuple[dict[int, Amounts], Throttles]:
        """What to tell with the next block; what is left of this one goes back."""
        if self.left != NO_AMOUNTS:
            self.correct(self.step, NO_AMOUNTS - self.left)
            self.left = NO_AMOUNTS
        told = self.corrections, self.throttles
        self.corrections, self.throttles = {}, NO_THROTTLES
        return told

    def not_told(self, corrections: dict[int, Amounts], throttles: Throttles) -> None:
        """The database did not hear it."""
        for step, more in corrections.items():
            self.correct(step, more)
        self.throttles = Throttles(
            self.throttles.count + throttles.count, max(self.throttles.seconds, throttles.seconds)
        )

    def hold(self, seconds: float) -> None:
        """The teacher told that nothing is left for so long; it has refused nothing."""
        self.throttles = Throttles(self.throttles.count, max(self.throttles.seconds, seconds))

    def granted(self, block: Block, now: float, told: Throttles) -> int:
        """`now`: monotonic time at which it was asked for. Returns how often other workers were refused meanwhile."""
        before = self.throttled_in_all
        self.throttled_in_all = block.throttled
        self.limits, self.left, self.step, self.until = (
            block.limits,
            block.given,
            block.step,
            now + SPEND_SECONDS,
        )
        self.starved = False
        return 0 if before is None else max(0, block.throttled - before - told.count)
