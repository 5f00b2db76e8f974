"""Handing a batch over, or finding it where an earlier try left it."""

import asyncio
import logging

from sqlalchemy import Engine

from app.db import lanes, provider_batches
from app.db.provider_batches import Held
from app.db.session import db_now, reading, transaction
from app.domain.lifecycle import JobStatus, ProviderBatchStatus
from app.errors import LeaseLost
from app.services.batches.config import BatchConfig
from app.services.batches.lanes import OpenLane, OpenLanes
from app.services.batches.requests import write_requests
from app.teachers.batch_files import scratch
from app.teachers.batches import BatchTold

log = logging.getLogger(__name__)


class Submitting:
    def __init__(self, database: Engine, config: BatchConfig, open_lanes: OpenLanes) -> None:
        self._database = database
        self._config = config
        self._lanes = open_lanes

    async def submit(self, held: Held) -> None:
        """Bring a planned batch to its provider, exactly once."""
        if held.job_status == JobStatus.CANCELLED and held.status == ProviderBatchStatus.PLANNED:
            await asyncio.to_thread(self._never, held)
            return
        if held.job_status == JobStatus.PAUSED and held.status == ProviderBatchStatus.PLANNED:
            await asyncio.to_thread(self._release, held, {})
            return
        spec = await asyncio.to_thread(self._lanes.load, held.job_id, held.teacher)
        lane = await self._lanes.reach(spec, afresh=True)
        spec = await asyncio.to_thread(self._lanes.pin, spec, lane.capabilities)
        again = held.status == ProviderBatchStatus.SUBMITTING
        told = await self._found(held, lane) if again else None
        sure = told is None or bool(told.ours)
        if told is None and held.job_status == JobStatus.CANCELLED:
            await asyncio.to_thread(self._never, held)
            return
        if told is None:
            told = await self._handed_over(held, OpenLane(spec, lane.teacher, lane.capabilities), again)
        if told is None:  # there was nothing to ask
            values = {"status": ProviderBatchStatus.ENDED, "confirmed": True, "ended_at": db_now()}
            await asyncio.to_thread(self._release, held, values, 0.0)
            return
        await self._noted(held, lane, told, sure)

    async def _found(self, held: Held, lane: OpenLane) -> BatchTold | None:
        """The batch, where an earlier try was taken though its worker did not live to write it down."""
        since = held.submitting_at or 0.0
        known = await asyncio.to_thread(self._lanes.others, held.id)
        found = [
            one
            for one in await lane.teacher.find(held.id, since, held.n_requests)
            if one.provider_id not in known and one.provider_id not in held.rejected
        ]
        for stray in found[1:]:
            if stray.ours:
                log.warning("batch %s was submitted twice: %s is cancelled", held.id, stray.provider_id)
                await lane.teacher.cancel(stray.provider_id)
        if found:
            log.info("batch %s is found again at its provider: %s", held.id, found[0].provider_id)
            return found[0]
        return None

    async def _handed_over(self, held: Held, lane: OpenLane, again: bool) -> BatchTold | None:
        with scratch() as folder:
            file = folder / "requests.jsonl"
            written = await asyncio.to_thread(
                write_requests,
                self._database,
                held,
                lane.spec,
                lane.capabilities.native_n,
                lane.teacher,
                file,
            )
            if not written.n_requests:
                return None
            values = {
                "status": ProviderBatchStatus.SUBMITTING,
                "n_requests": written.n_requests,
                "n_samples": written.n_samples,
            }
            if held.submitting_at is None:
                values["submitting_at"] = db_now()
            await asyncio.to_thread(self._change, held, values)
            return await lane.teacher.submit(held.id, file, written.n_requests, again)

    async def _noted(self, held: Held, lane: OpenLane, told: BatchTold, sure: bool) -> None:
        values = {
            "status": ProviderBatchStatus.IN_PROGRESS,
            "provider_id": told.provider_id,
            "provider_status": told.status,
            "confirmed": sure,
            "submitted_at": db_now(),
            "tries": 0,
            "error": None,
        }
        try:
            await asyncio.to_thread(self._release, held, values, self._config.look_seconds, lane)
        except LeaseLost:
            # Whoever has the batch now has found ours at the provider, or submitted another.
            theirs = await asyncio.to_thread(self._provider_id, held)
            if theirs is not None and theirs != told.provider_id:
                await lane.teacher.cancel(told.provider_id)
            raise

    def _provider_id(self, held: Held) -> str | None:
        with reading(self._database) as connection:
            return provider_batches.provider_id_of(connection, held.id)

    def _never(self, held: Held) -> None:
        """The job was cancelled before the provider heard of the batch."""
        with transaction(self._database) as connection:
            values = {"status": ProviderBatchStatus.CANCELLED}
            if not provider_batches.release(connection, held, 0.0, values):
                raise LeaseLost(f"batch {held.id} is another worker's")
            provider_batches.untie(connection, held.id, took_part=False)

    def _change(self, held: Held, values: dict[str, object]) -> None:
        with transaction(self._database) as connection:
            if not provider_batches.change(connection, held, values):
                raise LeaseLost(f"batch {held.id} is another worker's")

    def _release(
        self,
        held: Held,
        values: dict[str, object],
        seconds: float | None = None,
        submitted: OpenLane | None = None,
    ) -> None:
        wait = self._config.look_seconds if seconds is None else seconds
        with transaction(self._database) as connection:
            if not provider_batches.release(connection, held, wait, values):
                raise LeaseLost(f"batch {held.id} is another worker's")
            if submitted is not None:
                lanes.unpark(connection, submitted.spec.job_id, submitted.spec.teacher)
