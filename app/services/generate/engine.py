"""The event loop that keeps the teachers busy.

One per worker process; it outlives every Celery task. Calls of many shards are in flight together, so that the next
shard starts before the last one drains. Nothing in the loop touches the database or the disk: that happens in three
threads (claims and loads; checkpoints, heartbeats and releases; shard ends), one transaction at a time in each.

After a crash the calls in flight and the samples not yet in a checkpoint are made again, no others. Both are gauges.
"""

import asyncio
import logging
import math
import time
import zlib
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.db import checkpoints, lanes, shards
from app.domain.fingerprints import fingerprint
from app.domain.lifecycle import CLAIMABLE, JobStatus
from app.errors import StorageError
from app.services.generate import recording
from app.services.generate.calls import LaneDown, Outcome, Throttled, answer, given_up
from app.services.generate.config import EngineConfig
from app.services.generate.lane import LaneKey, LaneState, binding, neediest
from app.services.generate.ledger import Ledger
from app.services.generate.opening import BuildTeacher, OpenTeachers
from app.services.generate.work import ShardRun, Unit, load_run
from app.storage.places import Storage

log = logging.getLogger(__name__)

T = TypeVar("T")

_GOING_ON = frozenset({*CLAIMABLE, JobStatus.FINALIZING, JobStatus.PARKED})


class GenerationEngine:
    """Claims shards, calls teachers, records completions. `run` returns after `stop` has drained it."""

    def __init__(self, database: Engine, storage: Storage, build: BuildTeacher, config: EngineConfig) -> None:
        self._database = database
        self._storage = storage
        self._config = config
        self._ledger = Ledger(database, config)
        self._lanes: dict[LaneKey, LaneState] = {}
        self._teachers = OpenTeachers(build)
        self._tasks: dict[asyncio.Task[None], Unit] = {}
        self._done: list[Outcome] = []
        self._flushing: list[Outcome] = []
        self._in_flight = 0
        self._background: set[asyncio.Task[None]] = set()
        self._finishing: set[ShardRun] = set()
        self._stripe = zlib.crc32(config.worker_id.encode()) % checkpoints.STRIPES
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="claim")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="finish")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._flush_now = asyncio.Event()
        self._stopping = False
        self._entered = False
        self._last_beat = -math.inf

    # -- from other threads ------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Look for work now. Safe from any thread, and after the loop has ended."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    def stop(self) -> None:
        """Claim nothing more, finish or release what is held, and return from `run`. Safe from any thread."""
        self._stopping = True
        self.wake()

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def unflushed(self) -> int:
        return len(self._done) + len(self._flushing)

    # -- the loop ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        flusher = asyncio.create_task(self._flush_forever())
        control = asyncio.create_task(self._control_forever())
        try:
            while not self._stopping:
                self._wake.clear()
                claimed = False
                try:
                    claimed = await self._claim_if_needed()
                except DBAPIError as error:
                    log.warning("the database does not answer, trying again: %s", error.orig)
                    await asyncio.sleep(1)
                self._pump()
                if not claimed:
                    try:
                        async with asyncio.timeout(self._config.poll_seconds):
                            await self._wake.wait()
                    except TimeoutError:
                        pass
            await self._drain()
        finally:
            flusher.cancel()
            control.cancel()
            await asyncio.gather(flusher, control, return_exceptions=True)
            await self._teachers.aclose()
            for executor in (self._reader, self._writer, self._finisher):
                executor.shutdown(wait=True)

    async def _in(self, executor: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, call)

    # -- claiming ----------------------------------------------------------------------------------------------

    def _eligible(self) -> int:
        """Units that could be sent if slots were free: what keeps the teachers busy until the next claim."""
        return sum(min(lane.pending(), lane.room()) for lane in self._lanes.values())

    async def _claim_if_needed(self) -> bool:
        """Claim one shard where the queue runs low. True: there may be more to claim."""
        held = sum(len(lane.runs) for lane in self._lanes.values())
        if self._eligible() >= self._config.max_in_flight or self.unflushed > 16 * self._config.flush_rows:
            return False
        full = {
            lane.key for lane in self._lanes.values() if lane.pending() >= max(1, lane.room()) or lane.closing
        }
        if held > 4 * self._config.max_in_flight:  # tiny shards: bound the work under lease all the same
            return False
        claimed = await self._in(self._reader, partial(self._ledger.claim, full))
        if claimed is None:
            return False
        claim, was_parked = claimed
        lane = self._lanes.get((claim.job_id, claim.teacher))
        if lane is None:
            lane = await self._open_lane(claim, was_parked)
            if lane is None:
                return True
        lane.trial = lane.trial or was_parked
        if claim.claims_without_progress > self._config.shard_attempts:
            log.error(
                "shard %d made no progress in %d claims", claim.shard_id, claim.claims_without_progress - 1
            )
        run = await self._in(
            self._reader, partial(load_run, self._database, claim, lane.spec, lane.capabilities.native_n)
        )
        if lane.closing or lane.down:  # while the shard was read
            await self._release(run, "released", "the lane was closed meanwhile")
            return True
        self._lanes[lane.key] = lane  # or it was retired meanwhile
        lane.runs.append(run)
        if claim.claims_without_progress > self._config.shard_attempts:
            self._done.extend(given_up(run))
            self._flush_now.set()
        if run.n_missing == 0:
            self._spawn(self._finish(lane, run))
        return True

    async def _open_lane(self, claim: shards.Claim, was_parked: bool) -> LaneState | None:
        """Reach the teacher and check that it is the one that the job began with; else park the lane."""
        spec = await self._in(self._reader, partial(self._ledger.load_lane, claim))
        try:
            teacher, capabilities = await self._teachers.reach(spec)
        except LaneDown as down:
            await self._park(spec, down, [claim])
            return None
        identity = fingerprint(capabilities.identity())
        if spec.identity_sha256 is None:
            await self._in(
                self._writer, partial(self._ledger.pin_identity, spec, identity, capabilities.as_json())
            )
            spec = await self._in(self._reader, partial(self._ledger.load_lane, claim))
        lane = LaneState(spec=spec, teacher=teacher, capabilities=capabilities, trial=was_parked)
        self._lanes[lane.key] = lane
        if lane.capped:
            await self._renew_grants()
        return lane

    # -- sending -----------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Send as many units as there are free slots: priority first, then the lane with the fewest in flight."""
        while self._in_flight < self._config.max_in_flight and self.unflushed < 32 * self._config.flush_rows:
            best = neediest(self._lanes.values())
            unit = None if best is None else best.next_unit()
            if best is None or unit is None:
                return
            weight = len(unit.sample_indices)
            best.in_flight += weight
            unit.run.in_flight += weight
            self._in_flight += weight
            self._tasks[asyncio.create_task(self._call(best, unit))] = unit

    async def _call(self, lane: LaneState, unit: Unit) -> None:
        weight = len(unit.sample_indices)
        keep: list[Outcome] = []
        back = False
        try:
            await answer(unit, lane.teacher, self._config.retry, keep)
        except Throttled as error:
            back = True
            lane.limit = max(1.0, min(lane.limit, lane.in_flight) / 2)
            lane.not_before = time.monotonic() + (error.retry_after if error.retry_after is not None else 1.0)
            asyncio.get_running_loop().call_later(
                max(0.0, lane.not_before - time.monotonic()), self._wake.set
            )
        except LaneDown as error:
            back = True
            if lane.down is None:
                lane.down = error
                self._spawn(self._close_lane(lane, "parked"))
        finally:
            lane.in_flight -= weight
            unit.run.in_flight -= weight
            self._in_flight -= weight
            task = asyncio.current_task()
            if task is not None:
                self._tasks.pop(task, None)
        if unit.run.lost:
            self._retire(lane)
            return
        if back:
            made = {outcome.sample_index for outcome in keep}
            unit.sample_indices = tuple(i for i in unit.sample_indices if i not in made)
            unit.run.pending.appendleft(unit)
        self._done.extend(keep)
        if any(outcome.generation is not None for outcome in keep):
            lane.trial = False
            if lane.limit != math.inf:
                lane.limit += 1.0 / lane.limit
        if len(self._done) >= self._config.flush_rows:
            self._flush_now.set()
        self._pump()
        if self._eligible() < self._config.max_in_flight:
            self._wake.set()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- checkpoints -------------------------------------------------------------------------------------------

    async def _flush_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._config.flush_seconds):
                    await self._flush_now.wait()
            except TimeoutError:
                pass
            self._flush_now.clear()
            await self._flush()

    async def _flush(self) -> None:
        """Record what is done; keep trying while the database is away. The fence makes a late try harmless."""
        if self._flushing:
            return
        self._flushing, self._done = self._done, []
        wait = 0.2
        while self._flushing:
            outcomes = self._flushing
            try:
                ours = await self._in(
                    self._writer,
                    partial(
                        recording.checkpoint, self._database, self._config.worker_id, self._stripe, outcomes
                    ),
                )
            except DBAPIError as error:
                log.warning("a checkpoint of %d samples waits: %s", len(outcomes), error.orig)
                await asyncio.sleep(wait)
                wait = min(5.0, wait * 2)
                continue
            self._flushing = []
            self._settle(outcomes, ours)
        self._pump()

    def _settle(self, outcomes: list[Outcome], ours: set[int]) -> None:
        for outcome in outcomes:
            run = outcome.unit.run
            if run.claim.shard_id in ours:
                run.n_missing -= 1
            elif not run.lost:
                self._lose(run)
        for run in {outcome.unit.run for outcome in outcomes}:
            if run.n_missing == 0 and not run.lost:
                lane = self._lanes.get(run.key)
                if lane is not None and run in lane.runs:
                    self._spawn(self._finish(lane, run))

    async def _finish(self, lane: LaneState, run: ShardRun) -> None:
        """The shard's segment and end. A full disk or an absent database is waited out while the lease holds."""
        if run in lane.runs:
            lane.runs.remove(run)
        self._finishing.add(run)
        wait = 0.5
        try:
            while not run.lost:
                try:
                    end = await self._in(
                        self._finisher,
                        partial(
                            recording.finish_shard,
                            self._database,
                            self._storage,
                            self._config.worker_id,
                            run,
                            binding(lane),
                            self._config.compression_level,
                            lambda: not run.lost,
                        ),
                    )
                except (DBAPIError, StorageError, OSError) as error:
                    log.warning("shard %d cannot be finished yet: %s", run.claim.shard_id, error)
                    if self._stopping:
                        await self._release(
                            run, "released", "the worker stopped before the segment was written"
                        )
                        return
                    await asyncio.sleep(wait)
                    wait = min(15.0, wait * 2)
                    continue
                if end == "short":
                    await self._release(run, "released", "rows were asked for again")
                break
        finally:
            self._finishing.discard(run)
            self._retire(lane)
            self._wake.set()

    def _retire(self, lane: LaneState) -> None:
        """Forget a lane without work, so that the next claim looks at teacher and job anew."""
        if not lane.runs and not lane.in_flight and self._lanes.get(lane.key) is lane and not lane.closing:
            del self._lanes[lane.key]

    # -- control: heartbeats, pause, cancel, caps --------------------------------------------------------------

    async def _control_forever(self) -> None:
        beat_every = self._config.lease_seconds / 3
        while True:
            try:
                if time.monotonic() - self._last_beat >= beat_every:
                    await self._beat()
                    self._last_beat = time.monotonic()
                await self._follow_jobs()
                await self._renew_grants()
            except DBAPIError as error:
                log.warning("no heartbeat, the database does not answer: %s", error.orig)
            await asyncio.sleep(min(1.0, beat_every))

    def _runs(self) -> list[ShardRun]:
        return [run for lane in self._lanes.values() for run in lane.runs] + list(self._finishing)

    async def _beat(self) -> None:
        runs = self._runs()
        held = [(run.claim.shard_id, run.claim.epoch) for run in runs]
        ours = await self._in(
            self._writer,
            partial(self._ledger.beat, held, self.in_flight, self.unflushed, self._stopping),
        )
        for run in runs:
            if run.claim.shard_id not in ours:
                self._lose(run)

    def _lose(self, run: ShardRun) -> None:
        """The lease is gone: abort the calls, write nothing more of this shard."""
        if run.lost:
            return
        log.warning(
            "shard %d is no longer ours (epoch %d): its work is dropped", run.claim.shard_id, run.claim.epoch
        )
        self._drop(run)

    def _drop(self, run: ShardRun) -> None:
        run.lost = True
        run.pending.clear()
        for task, unit in list(self._tasks.items()):
            if unit.run is run:
                task.cancel()
        lane = self._lanes.get(run.key)
        if lane is not None and run in lane.runs:
            lane.runs.remove(run)
            self._retire(lane)

    async def _follow_jobs(self) -> None:
        jobs = sorted({lane.spec.job_id for lane in self._lanes.values()})
        if not jobs:
            return
        found = await self._in(self._reader, partial(self._ledger.statuses, jobs))
        for lane in list(self._lanes.values()):
            status = found.get(lane.spec.job_id)
            if status in _GOING_ON or lane.closing:
                continue
            lane.closing = status or "gone"
            self._spawn(self._close_lane(lane, lane.closing))

    async def _close_lane(self, lane: LaneState, why: str) -> None:
        """Hand a lane's shards back: paused or parked ones after their calls, cancelled ones at once."""
        lane.closing = lane.closing or why
        at_once = why in (JobStatus.CANCELLED, "gone")
        runs = list(lane.runs)
        if at_once:
            for run in runs:
                self._drop(run)
        patience = time.monotonic() + (5.0 if lane.down else self._config.grace_seconds)
        await _until(lambda: not lane.in_flight, patience)
        for task, unit in list(self._tasks.items()):
            if unit.run.key == lane.key:
                task.cancel()
        await _until(lambda: not lane.in_flight)
        await self._settle_flushes()
        self._lanes.pop(lane.key, None)
        left = runs if at_once else [run for run in lane.runs if run.n_missing]
        if lane.down is not None:
            await self._park(lane.spec, lane.down, [run.claim for run in left if not run.lost])
        else:
            for run in left:
                await self._release(run, "released", f"the job is {why}")
        self._wake.set()

    async def _settle_flushes(self) -> None:
        def settled() -> bool:
            self._flush_now.set()
            return not self._done and not self._flushing

        await _until(settled)

    async def _park(self, spec: lanes.LaneSpec, down: LaneDown, claims: list[shards.Claim]) -> None:
        log.warning("lane %s/%d parks: %s", spec.job_id, spec.teacher, down.detail)

        await self._persist(partial(self._ledger.park, spec, down, claims))

    async def _release(self, run: ShardRun, outcome: str, detail: str) -> None:
        run.lost = True
        await self._persist(partial(self._ledger.release, run.claim, outcome, detail))

    async def _persist(self, write: Callable[[], None]) -> None:
        """A short write that waits for an absent database; the lease covers for it if the process dies first."""
        wait = 0.2
        while True:
            try:
                return await self._in(self._writer, write)
            except DBAPIError as error:
                log.warning("a write waits: %s", error.orig)
                if self._stopping:
                    return None
                await asyncio.sleep(wait)
                wait = min(5.0, wait * 2)

    async def _renew_grants(self) -> None:
        capped = [lane for lane in self._lanes.values() if lane.capped]
        if not capped:
            return
        wanted = [(lane, lane.in_flight + lane.pending(), lane.in_flight) for lane in capped]
        grants = await self._in(self._writer, partial(self._ledger.grants, wanted))
        grew = False
        for lane, slots in grants.items():
            grew = grew or slots > (lane.grant or 0)
            lane.grant = slots
        if grew:
            self._pump()

    # -- the end -----------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Within the grace period: let the calls in flight end, record them, give the rest back, leave."""
        patience = time.monotonic() + self._config.grace_seconds
        for lane in self._lanes.values():
            for run in lane.runs:
                run.pending.clear()
        await _until(lambda: not self._tasks and not self._finishing, patience)
        for task in list(self._tasks):
            task.cancel()
        await _until(lambda: not self._tasks)
        try:
            async with asyncio.timeout(max(2.0, patience - time.monotonic())):
                await self._settle_flushes()
                await _until(lambda: not self._finishing)
                for run in self._runs():
                    await self._release(run, "released", "the worker was asked to stop")
                await self._in(self._writer, self._ledger.leave)
        except (TimeoutError, DBAPIError) as error:
            log.warning("leaving without a word to the database (%s): the leases will run out", error)


async def _until(condition: Callable[[], bool], patience: float = math.inf) -> None:
    """Wait for something that several places bring about; `patience` is monotonic time."""
    while not condition() and time.monotonic() < patience:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
