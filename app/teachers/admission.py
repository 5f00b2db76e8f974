"""How many calls one server of a teacher may be given at a time. Pure: a controller is told what happened, and when."""

import math
from typing import Protocol


class Controller(Protocol):
    """One per replica. Times are monotonic seconds; `weight` is how many samples a call asks for.

    `limit`: samples that may be in flight. `answered` is told of an answer to a call that began at `asked_at`;
    `refused` of one that was refused as too much (429, 503) or not answered in time.
    """

    @property
    def limit(self) -> float: ...

    def answered(self, now: float, asked_at: float, weight: int, in_flight: int) -> None: ...

    def refused(self, now: float, asked_at: float, in_flight: int) -> None: ...


class ThrottleLimit:
    """For teachers that say when it is too much: additive increase, multiplicative decrease (Chiu and Jain, 1989).

    No limit until the first refusal; then half of what was in flight. One cut for all calls that were under way when
    it was made: their refusals tell nothing new. Each limit's worth of answers adds one.
    """

    def __init__(self) -> None:
        self._limit = math.inf
        self._cut_at = -math.inf

    @property
    def limit(self) -> float:
        return self._limit

    def answered(self, now: float, asked_at: float, weight: int, in_flight: int) -> None:
        if asked_at > self._cut_at:
            self._limit += weight / self._limit

    def refused(self, now: float, asked_at: float, in_flight: int) -> None:
        if asked_at > self._cut_at:
            self._limit = max(1.0, min(self._limit, in_flight) / 2)
            self._cut_at = now
