"""One step of one batch at a time, under a lease; planning where nothing is due."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.db import provider_batches
from app.db.provider_batches import Held
from app.db.session import passes, transaction
from app.domain.fingerprints import new_id
from app.domain.lifecycle import BATCH_OVER, JobStatus, ProviderBatchStatus
from app.errors import (
    IdentityChanged,
    LeaseLost,
    PermanentTeacherError,
    RateLimited,
    RetortError,
    TeacherRefusedKey,
    TeacherUnavailable,
    TransientTeacherError,
)
from app.services.batches.collecting import Collecting
from app.services.batches.config import BatchConfig, BuildBatches
from app.services.batches.following import Following
from app.services.batches.lanes import OpenLanes
from app.services.batches.submitting import Submitting
from app.services.generate.replicas import LaneDown
from app.storage.places import Storage
from app.teachers.batch_files import sweep
from app.teachers.batches import BatchState, BatchTold

log = logging.getLogger(__name__)

_LONGEST_WAIT = 900.0
_TRIES = 6  # some five minutes, before results that a provider will not give are given up
_NEW = frozenset({ProviderBatchStatus.PLANNED, ProviderBatchStatus.SUBMITTING})


class BatchRunner:
    """`run` returns after `stop`. One event loop; every wait for the database is in a thread."""

    def __init__(self, database: Engine, storage: Storage, build: BuildBatches, config: BatchConfig) -> None:
        self._database = database
        self._config = config
        self._lanes = OpenLanes(database, build)
        self._submitting = Submitting(database, config, self._lanes)
        self._following = Following(database, config, self._lanes)
        self._collecting = Collecting(database, storage, config, self._lanes, lambda: self._stopping)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._stopping = False

    # -- from other threads ------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Look for work now. Safe from any thread, and after the loop has ended."""
        if self._loop is not None and not self._loop.is_closed():
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake.set)

    def stop(self) -> None:
        """Return from `run` soon. Safe from any thread."""
        self._stopping = True
        self.wake()

    # -- the loop ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(sweep)
        try:
            while not self._stopping:
                self._wake.clear()
                worked = False
                try:
                    worked = await self.step() or await self.plan()
                except DBAPIError as error:
                    if not passes(error):
                        raise
                    log.warning("batches wait for the database: %s", error.orig)
                if not worked:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._config.poll_seconds):
                            await self._wake.wait()
        finally:
            await self._lanes.aclose()

    async def plan(self) -> bool:
        """Make one batch of ready shards, where any lane has some. True: one was made."""
        found = await asyncio.to_thread(self._to_plan)
        for lane in found:
            spec = await asyncio.to_thread(self._lanes.load, lane.job_id, lane.teacher)
            try:
                limits = (await self._lanes.teacher(spec)).limits
            except RetortError as error:
                await asyncio.to_thread(
                    self._lanes.park, spec, error.kind, error.detail, self._config.park_seconds
                )
                continue
            if await asyncio.to_thread(self._planned, lane, limits.max_requests):
                return True
        return False

    def _to_plan(self) -> list[provider_batches.ToPlan]:
        with transaction(self._database) as connection:
            return provider_batches.to_plan(connection, self._config.teachers, self._config.most_open)

    def _planned(self, lane: provider_batches.ToPlan, max_samples: int) -> bool:
        batch_id = new_id("pbt")
        with transaction(self._database) as connection:
            chosen = provider_batches.plan(connection, batch_id, lane, max_samples, self._config.most_open)
        if chosen:
            log.info("batch %s of job %s: %d shards", batch_id, lane.job_id, len(chosen))
        return bool(chosen)

    async def step(self) -> bool:
        """Do what is due for one batch. False: nothing is due."""
        held = await asyncio.to_thread(self._claim)
        if held is None:
            return False
        async with self._beating(held):
            try:
                await self._do(held)
            except DBAPIError:
                raise
            except Exception as error:  # noqa: BLE001 - each kind is told apart there; a driver's bug is one of them
                await self._went_wrong(held, error)
        return True

    async def _do(self, held: Held) -> None:
        match held.status:
            case ProviderBatchStatus.PLANNED | ProviderBatchStatus.SUBMITTING:
                await self._submitting.submit(held)
            case ProviderBatchStatus.IN_PROGRESS | ProviderBatchStatus.CANCELLING:
                if await self._following.look(held):
                    await self._collect(await asyncio.to_thread(self._again, held))
            case ProviderBatchStatus.ENDED:
                await self._collect(held)
            case _:
                assert held.status in BATCH_OVER

    async def _collect(self, held: Held) -> None:
        lost = await self._collecting.collect(held)
        if lost is not None:
            await asyncio.to_thread(self._following.failed, held, lost, {})

    def _claim(self) -> Held | None:
        with transaction(self._database) as connection:
            return provider_batches.claim_due(
                connection, self._config.worker_id, self._config.lease_seconds, self._config.teachers
            )

    def _again(self, held: Held) -> Held:
        """The same lease, with what was written under it."""
        with transaction(self._database) as connection:
            found = provider_batches.read(connection, held)
        if found is None:
            raise LeaseLost(f"batch {held.id} is another worker's")
        return found

    @asynccontextmanager
    async def _beating(self, held: Held) -> AsyncIterator[None]:
        """Prolong the lease while a step waits for the provider."""

        def prolong() -> None:
            with transaction(self._database) as connection:
                provider_batches.extend(connection, held, self._config.lease_seconds)

        async def beat() -> None:
            while True:
                await asyncio.sleep(self._config.lease_seconds / 3)
                try:
                    await asyncio.to_thread(prolong)
                except DBAPIError as error:
                    log.warning("no heartbeat of batch %s: %s", held.id, error.orig)

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # -- what goes wrong ---------------------------------------------------------------------------------------

    async def _went_wrong(self, held: Held, error: Exception) -> None:
        match error:
            case LeaseLost():
                log.warning("%s", error.detail)
            case LaneDown() if held.job_status == JobStatus.CANCELLED and error.kind == IdentityChanged.kind:
                await asyncio.to_thread(self._unreadable, held, error)
            case LaneDown() | TeacherUnavailable() | TeacherRefusedKey() | IdentityChanged():
                await self._wait_for_teacher(held, error.kind, error.detail)
            case RateLimited():
                wait = error.retry_after if error.retry_after is not None else 60.0
                await self._later(held, error.detail, wait)
            case TransientTeacherError():
                await self._later(held, error.detail, error.retry_after)
            case PermanentTeacherError() if held.status in _NEW:
                await asyncio.to_thread(self._refused, held, error)
            case PermanentTeacherError() if held.status == ProviderBatchStatus.ENDED and held.tries >= _TRIES:
                await asyncio.to_thread(self._unreadable, held, error)
            case RetortError():
                await self._later(held, error.detail, None)
            case _:
                if not isinstance(error, OSError):  # what a driver did not foresee takes no worker with it
                    log.error("batch %s", held.id, exc_info=error)
                await self._later(held, f"{type(error).__name__}: {error}", None)

    async def _later(self, held: Held, detail: str, wait: float | None) -> None:
        """The same step again, after what the provider asked for, else later and later."""
        seconds = min(_LONGEST_WAIT, 5.0 * 2.0**held.tries) if wait is None else wait
        log.warning("batch %s waits %.0f s: %s", held.id, seconds, detail)
        values = {"tries": held.tries + 1, "error": detail}
        await asyncio.to_thread(self._release, held, seconds, values)

    async def _wait_for_teacher(self, held: Held, kind: str, detail: str) -> None:
        """Nothing is burnt: the lane parks, and the batch is looked at again when the lane is tried again."""
        seconds = min(_LONGEST_WAIT, self._config.park_seconds * 2.0 ** min(held.tries, 10))
        spec = await asyncio.to_thread(self._lanes.load, held.job_id, held.teacher)
        await asyncio.to_thread(self._lanes.park, spec, kind, detail, seconds)
        await asyncio.to_thread(self._release, held, seconds, {"tries": held.tries + 1, "error": detail})

    def _unreadable(self, held: Held, error: PermanentTeacherError | LaneDown) -> None:
        """There are results, and they cannot be had, or not be this job's: as if the provider had lost them."""
        reason = f"the results cannot be read: {error.detail}"
        lost = BatchTold(held.provider_id or "", BatchState.UNKNOWN, "unreadable", error=reason)
        self._following.failed(held, lost, {})

    def _refused(self, held: Held, error: PermanentTeacherError) -> None:
        """The provider will not take this batch as it is: a person has to look."""
        values = {"status": ProviderBatchStatus.FAILED, "error": error.detail}
        with transaction(self._database) as connection:
            if not provider_batches.release(connection, held, 0.0, values):
                return
            provider_batches.untie(connection, held.id, took_part=False)
        spec = self._lanes.load(held.job_id, held.teacher)
        self._lanes.park(spec, error.kind, f"the provider refused a batch: {error.detail}", None)

    def _release(self, held: Held, seconds: float, values: dict[str, object]) -> None:
        with transaction(self._database) as connection:
            provider_batches.release(connection, held, seconds, values)
