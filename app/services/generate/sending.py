"""Calls to teachers: which unit goes next, and what becomes of a call that ended."""

import asyncio
import math
import time
from collections.abc import Callable

from app.services.generate.calls import LaneDown, Outcome, RetryPolicy, Throttled, answer
from app.services.generate.holdings import Holdings
from app.services.generate.lane import LaneState, neediest
from app.services.generate.recorder import Recorder
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
        """Send as many units as there are free slots: priority first, then the lane with the fewest in flight."""
        held = self._held
        while held.in_flight < self._max_in_flight and not self._recorder.behind:
            best = neediest(held.lanes.values())
            unit = None if best is None else best.next_unit()
            if best is None or unit is None:
                return
            weight = len(unit.sample_indices)
            best.in_flight += weight
            held.in_flight += weight
            held.calls[asyncio.create_task(self._call(best, unit))] = unit

    async def _call(self, lane: LaneState, unit: Unit) -> None:
        weight = len(unit.sample_indices)
        keep: list[Outcome] = []
        back = False
        try:
            await answer(unit, lane.teacher, self._policy, keep)
        except Throttled as error:
            back = True
            self._slow_down(lane, error)
        except LaneDown as error:
            back = True
            self._down(lane, error)
        except asyncio.CancelledError:
            if not unit.run.lost:
                self._recorder.add(keep)  # siblings that were made before
            raise
        finally:
            lane.in_flight -= weight
            self._held.in_flight -= weight
            task = asyncio.current_task()
            if task is not None:
                self._held.calls.pop(task, None)
        if unit.run.lost:
            self._held.retire(lane)
            return
        if back:
            made = {outcome.sample_index for outcome in keep}
            unit.sample_indices = tuple(i for i in unit.sample_indices if i not in made)
            unit.run.pending.appendleft(unit)
        if any(outcome.generation is not None for outcome in keep):
            lane.trial = False
            if lane.limit != math.inf:
                lane.limit += 1.0 / lane.limit
        self._recorder.add(keep)
        self.pump()
        if self._held.eligible() < self._max_in_flight:
            self._wake()

    def _slow_down(self, lane: LaneState, throttled: Throttled) -> None:
        lane.limit = max(1.0, min(lane.limit, lane.in_flight) / 2)
        wait = throttled.retry_after if throttled.retry_after is not None else 1.0
        lane.not_before = time.monotonic() + wait
        asyncio.get_running_loop().call_later(max(0.0, wait), self._wake)
