"""What this worker holds: lanes, shards under lease, calls in flight. Belongs to the event loop; nothing here waits."""

import asyncio
from collections.abc import Iterable

from app.db.shards import Claim, Lease
from app.services.generate.gates import LaneGate
from app.services.generate.lane import LaneKey, LaneState
from app.services.generate.work import ShardRun, Unit


class Holdings:
    def __init__(self) -> None:
        self.lanes: dict[LaneKey, LaneState] = {}
        self.calls: dict[Unit, asyncio.Task[None]] = {}
        self.beginning: dict[Lease, Claim] = {}  # claimed, not worked on yet
        self.finishing: set[ShardRun] = set()
        self.in_flight = 0  # samples

    def eligible(self) -> int:
        """Units that could be sent if slots were free: what keeps the teachers busy until the next claim."""
        return sum(min(lane.pending(), lane.room()) for lane in self.lanes.values())

    def gates(self) -> list[LaneGate]:
        return [lane.gate for lane in self.lanes.values()]

    def runs(self) -> list[ShardRun]:
        return [run for lane in self.lanes.values() for run in lane.runs] + list(self.finishing)

    def leases(self) -> list[Lease]:
        """All that a heartbeat has to prolong."""
        return [*(run.claim.lease for run in self.runs()), *self.beginning]

    def drop(self, run: ShardRun) -> None:
        """Abort the shard's calls and forget what it still has to do; nothing more of it is written."""
        run.lost = True
        run.forget()
        self._cancel(task for unit, task in self.calls.items() if unit.run is run)
        lane = self.lanes.get(run.key)
        if lane is not None and run in lane.runs:
            lane.runs.remove(run)
            self.retire(lane)

    def abort(self, lane: LaneState) -> None:
        """Cancel the lane's calls; their units stay to be made."""
        self._cancel(task for unit, task in self.calls.items() if unit.run.key == lane.key)

    def abort_all(self) -> None:
        """Cancel every call."""
        self._cancel(self.calls.values())

    @staticmethod
    def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
        """Behind their first steps: a task that has not begun would end without giving back what it was counted for."""
        loop = asyncio.get_running_loop()
        for task in tasks:
            loop.call_soon(task.cancel)

    def retire(self, lane: LaneState) -> None:
        """Forget a lane without work, so that the next claim looks at teacher and job anew."""
        if not lane.runs and not lane.in_flight and self.lanes.get(lane.key) is lane and not lane.closing:
            del self.lanes[lane.key]
