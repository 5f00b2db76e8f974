"""How work ends: a shard's segment, a lane that is paused, cancelled or parked, a lease that was lost."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from functools import partial

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.db import lanes, shards
from app.db.session import passes
from app.domain.lifecycle import JobStatus
from app.errors import StorageError
from app.services.generate import recording
from app.services.generate.calls import Outcome
from app.services.generate.config import EngineConfig
from app.services.generate.holdings import Holdings
from app.services.generate.lane import LaneState, binding, profile_of
from app.services.generate.ledger import Ledger
from app.services.generate.recorder import Recorder
from app.services.generate.replicas import BudgetReached, LaneDown
from app.services.generate.threads import Threads
from app.services.generate.work import ShardRun
from app.storage.places import Storage

log = logging.getLogger(__name__)


class Endings:
    """Belongs to the event loop."""

    def __init__(
        self,
        database: Engine,
        storage: Storage,
        config: EngineConfig,
        held: Holdings,
        ledger: Ledger,
        threads: Threads,
        recorder: Recorder,
        wake: Callable[[], None],
    ) -> None:
        self._database = database
        self._storage = storage
        self._config = config
        self._held = held
        self._ledger = ledger
        self._threads = threads
        self._recorder = recorder
        self._wake = wake
        self._background: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self._error: BaseException | None = None

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Let it run beside the loop. What it raises ends the engine."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._error = self._error or error
            self._failed.set()

    async def failure(self) -> None:
        """Raises what something that was spawned has raised; until then it does not return."""
        await self._failed.wait()
        if self._error is not None:
            raise self._error

    # -- shards --------------------------------------------------------------------------------------------

    def settle(self, outcomes: list[Outcome], ours: set[shards.Lease]) -> None:
        """A checkpoint was committed: shards that were not ours are dropped, those that have all rows are finished."""
        for outcome in outcomes:
            run = outcome.unit.run
            if run.claim.lease in ours:
                run.n_missing -= 1
            else:
                self.lose(run)
        for run in {outcome.unit.run for outcome in outcomes}:
            self.finish_if_done(run)

    def finish_if_done(self, run: ShardRun) -> None:
        lane = self._held.lanes.get(run.key)
        if run.n_missing == 0 and not run.lost and lane is not None and run in lane.runs:
            lane.runs.remove(run)
            self._held.finishing.add(run)
            self.spawn(self._finish(lane, run))

    def lose(self, run: ShardRun) -> None:
        """The lease is gone: abort the calls, write nothing more of this shard."""
        if run.lost:
            return
        log.warning(
            "shard %d is no longer ours (epoch %d): its work is dropped", run.claim.shard_id, run.claim.epoch
        )
        self._held.drop(run)

    async def _finish(self, lane: LaneState, run: ShardRun) -> None:
        """The shard's segment and end. A full disk or an absent database is waited out while the lease holds."""
        wait = 0.5
        try:
            while not run.lost:
                try:
                    end = await self._threads.finish(
                        partial(
                            recording.finish_shard,
                            self._database,
                            self._storage,
                            self._config.worker_id,
                            run,
                            binding(lane.spec, lane.capabilities),
                            self._config.compression_level,
                            profile_of(lane.spec, self._config.profile),
                            lambda: not run.lost,
                        )
                    )
                except (DBAPIError, StorageError, OSError) as error:
                    if isinstance(error, DBAPIError) and not passes(error):
                        raise
                    log.warning("shard %d cannot be finished yet: %s", run.claim.shard_id, error)
                    if self._threads.leaving:
                        await self.release(
                            run, "released", "the worker stopped before the segment was written"
                        )
                        return
                    await asyncio.sleep(wait)
                    wait = min(15.0, wait * 2)
                    continue
                if end == "short":
                    await self.release(run, "released", "rows were asked for again")
                break
        finally:
            self._held.finishing.discard(run)
            self._held.retire(lane)
            self._wake()

    async def release(self, run: ShardRun, outcome: str, detail: str) -> None:
        run.lost = True
        await self._threads.persist(partial(self._ledger.release, run.claim, outcome, detail))

    # -- lanes ---------------------------------------------------------------------------------------------

    def park_soon(self, lane: LaneState, down: LaneDown) -> None:
        """The teacher does not work for anybody just now. The first to say so counts."""
        if lane.down is None:
            lane.down = down
            self.spawn(self.close_lane(lane, JobStatus.PARKED))

    async def close_lane(self, lane: LaneState, why: str) -> None:
        """Hand a lane's shards back: paused or parked ones after their calls, cancelled ones at once."""
        lane.closing = lane.closing or why
        at_once = why in (JobStatus.CANCELLED, "gone")
        runs = list(lane.runs)
        if at_once:
            for run in runs:
                self._held.drop(run)
        answers = lane.down is None or isinstance(lane.down, BudgetReached)
        patience = time.monotonic() + (self._config.grace_seconds if answers else 5.0)
        await until(lambda: not lane.in_flight, patience)
        self._held.abort(lane)
        await until(lambda: not lane.in_flight)
        await self._recorder.settled()
        self._held.lanes.pop(lane.key, None)
        left = runs if at_once else [run for run in lane.runs if run.n_missing]
        if lane.down is not None:
            await self.park(lane.spec, lane.down, [run.claim for run in left if not run.lost])
        else:
            for run in left:
                await self.release(run, "released", f"the job is {why}")
        self._wake()

    async def park(self, spec: lanes.LaneSpec, down: LaneDown, claims: list[shards.Claim]) -> None:
        log.warning("lane %s/%d parks: %s", spec.job_id, spec.teacher, down.detail)
        await self._threads.persist(partial(self._ledger.park, spec, down, claims))


async def until(condition: Callable[[], bool], patience: float = math.inf) -> None:
    """Wait for something that several places bring about; `patience` is monotonic time."""
    while not condition() and time.monotonic() < patience:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
