"""Calls to teachers: which unit goes next, and what becomes of a call that ended."""

import asyncio
import time
from collections.abc import Callable

from app.services.generate.calls import Again, Outcome, ask
from app.services.generate.config import RetryPolicy
from app.services.generate.gates import Permit
from app.services.generate.holdings import Holdings
from app.services.generate.lane import LaneState, next_call
from app.services.generate.recorder import Recorder
from app.services.generate.replicas import LaneDown
from app.services.generate.work import Unit


class Sender:
    """Belongs to the event loop. Touches neither database nor disk."""

    def __init__(
        self,
        held: Holdings,
        recorder: Recorder,
        policy: RetryPolicy,
        max_in_flight: int,
        down: Callable[[LaneState, LaneDown], None],
        wake: Callable[[], None],
    ) -> None:
        """`down` is told of a teacher that does not work just now; `wake` asks for more claims."""
        self._held = held
        self._recorder = recorder
        self._policy = policy
        self._max_in_flight = max_in_flight
        self._down = down
        self._wake = wake

    def pump(self) -> None:
        """Send as many units as there is room for: priority first, then the lane with the fewest in flight."""
        held = self._held
        while held.in_flight < self._max_in_flight and not self._recorder.behind:
            found = next_call(held.lanes.values())
            if found is None:
                return
            lane, unit, permit = found
            weight = len(unit.sample_indices)
            lane.in_flight += weight
            held.in_flight += weight
            held.calls[unit] = asyncio.create_task(self._call(lane, unit, permit))

    async def _call(self, lane: LaneState, unit: Unit, permit: Permit) -> None:
        weight = len(unit.sample_indices)
        keep: list[Outcome] = []
        again: Again | None = None
        try:
            again = await ask(unit, permit, self._policy, keep)
        except LaneDown as error:
            again = Again(0.0)
            self._down(lane, error)
        finally:
            lane.in_flight -= weight
            self._held.in_flight -= weight
            self._held.calls.pop(unit, None)
        if unit.run.lost:
            self._held.retire(lane)
            return
        if again is not None:
            now = time.monotonic()
            unit.run.put_back(unit, now + again.seconds, now)
            if again.seconds:
                asyncio.get_running_loop().call_later(again.seconds, self.pump)
        if any(outcome.generation is not None for outcome in keep):
            lane.trial = False
        self._recorder.add(keep)
        self.pump()
        if not lane.full():
            self._wake()
