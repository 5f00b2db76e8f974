"""The event loop that keeps the teachers busy.

One per worker process; it outlives every Celery task. Calls of many shards are in flight together, so that the next
shard starts before the last one drains. Nothing in the loop touches the database or the disk: that happens in
threads, one transaction at a time in each.

After a crash the calls in flight and the samples not yet in a checkpoint are made again, no others. Both are gauges.
"""

import asyncio
import logging
import time
import zlib
from functools import partial

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.db import checkpoints, shards
from app.db.session import passes
from app.services.generate import reusing
from app.services.generate.admission import Admission
from app.services.generate.beginnings import Beginnings
from app.services.generate.calls import Outcome
from app.services.generate.config import EngineConfig
from app.services.generate.control import Control
from app.services.generate.endings import Endings, until
from app.services.generate.gates import LaneGate
from app.services.generate.holdings import Holdings
from app.services.generate.ledger import Ledger
from app.services.generate.recorder import Recorder
from app.services.generate.replicas import BuildTeacher, LaneDown
from app.services.generate.sending import Sender
from app.services.generate.threads import Threads
from app.storage.places import Storage

log = logging.getLogger(__name__)

# A teacher that answers is opened before the next claim, so that priority holds; one that hangs holds up nobody else.
_OPENING_SECONDS = 0.25
_OPENING_AT_ONCE = 64


class GenerationEngine:
    """Claims shards, calls teachers, records completions. `run` returns after `stop` has drained it."""

    def __init__(self, database: Engine, storage: Storage, build: BuildTeacher, config: EngineConfig) -> None:
        self._config = config
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        wake = self._wake.set
        self._threads = threads = Threads()
        self._held = held = Holdings()
        self._ledger = ledger = Ledger(database, config)
        stripe = zlib.crc32(config.worker_id.encode()) % checkpoints.STRIPES
        self._recorder = recorder = Recorder(database, threads, config, stripe, self._settle)
        self._endings = Endings(database, storage, config, held, ledger, threads, recorder, wake)
        self._sender = Sender(
            held, recorder, config.retry, config.max_in_flight, self._endings.park_soon, wake
        )
        self._admission = Admission(
            database, threads, build, config, held.gates, self._sender.pump, self._park
        )
        self._control = Control(config, held, ledger, threads, recorder, self._endings)
        self._beginnings = Beginnings(
            database,
            config,
            held,
            ledger,
            threads,
            self._admission,
            recorder,
            self._endings,
            partial(reusing.take, database, storage, config.worker_id, stripe),
            wake,
        )

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
        return self._held.in_flight

    @property
    def unflushed(self) -> int:
        return self._recorder.unflushed

    # -- the loop ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is drained. Raises what waiting does not mend: then the process must not go on."""
        self._loop = asyncio.get_running_loop()
        parts = [
            asyncio.create_task(part)
            for part in (
                self._claim_forever(),
                self._recorder.run(),
                self._control.run(),
                self._admission.run(),
                self._endings.failure(),
            )
        ]
        try:
            ended, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            for task in parts:
                task.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            await self._admission.aclose()
            self._threads.shutdown()

    async def _claim_forever(self) -> None:
        while not self._stopping:
            self._wake.clear()
            claimed = False
            try:
                claimed = await self._claim_if_needed()
            except DBAPIError as error:
                if not passes(error):
                    raise
                log.warning("the database does not answer, trying again: %s", error.orig)
                await asyncio.sleep(1)
            self._sender.pump()
            if not claimed:
                try:
                    async with asyncio.timeout(self._config.poll_seconds):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        await self._drain()

    async def _claim_if_needed(self) -> bool:
        """Claim one shard where the queue runs low. True: there may be more to claim."""
        held, most = self._held, self._config.max_in_flight
        if held.eligible() >= most or self._recorder.lagging:
            return False
        if sum(len(lane.runs) for lane in held.lanes.values()) > 4 * most:
            return False  # tiny shards: bound the work under lease all the same
        opening = {(claim.job_id, claim.teacher) for claim in held.beginning.values()}
        if len(opening) >= _OPENING_AT_ONCE:
            return False
        full = {lane.key for lane in held.lanes.values() if lane.full()}
        known = {shard_id for shard_id, _ in held.leases()}
        claimed = await self._threads.read(partial(self._ledger.claim, full | opening, known))
        if claimed is None:
            return False
        claim, was_parked = claimed
        held.beginning[claim.lease] = claim
        begun = self._endings.spawn(self._beginnings.begin(claim, was_parked))
        is_open = (claim.job_id, claim.teacher) in held.lanes
        await asyncio.wait([begun], timeout=None if is_open else _OPENING_SECONDS)
        return True

    def _settle(self, outcomes: list[Outcome], ours: set[shards.Lease]) -> None:
        self._endings.settle(outcomes, ours)
        self._sender.pump()
        self._wake.set()  # whatever kept the last look from a claim: it may be over

    def _park(self, gate: LaneGate, down: LaneDown) -> None:
        for lane in self._held.lanes.values():
            if lane.gate is gate:
                self._endings.park_soon(lane, down)

    async def _drain(self) -> None:
        """Within the grace period: let the calls in flight end, record them, give the rest back, leave."""
        self._threads.leaving = True
        held = self._held
        patience = time.monotonic() + self._config.grace_seconds
        for lane in held.lanes.values():
            for run in lane.runs:
                run.forget()
        await until(lambda: not held.calls and not held.finishing and not held.beginning, patience)
        held.abort_all()
        await until(lambda: not held.calls)
        try:
            async with asyncio.timeout(max(2.0, patience - time.monotonic())):
                await self._recorder.settled()
                await until(lambda: not held.finishing)
                for run in held.runs():
                    await self._endings.release(run, "released", "the worker was asked to stop")
                for claim in held.beginning.values():
                    await self._threads.persist(
                        partial(self._ledger.release, claim, "released", "the worker was asked to stop")
                    )
                await self._admission.leave()
                await self._threads.write(self._ledger.leave)
        except (TimeoutError, DBAPIError) as error:
            log.warning("leaving without a word to the database (%s): the leases will run out", error)
