"""Looking how far the provider is, and cancelling what nobody wants any more."""

import asyncio
import logging
from typing import Any

from sqlalchemy import Engine

from app.db import provider_batches
from app.db.provider_batches import Held
from app.db.session import db_now, transaction
from app.domain.lifecycle import JobStatus, ProviderBatchStatus
from app.errors import LeaseLost
from app.services.batches.config import BatchConfig
from app.services.batches.lanes import OpenLanes
from app.teachers.batches import BatchState, BatchTold

log = logging.getLogger(__name__)

_QUEUE_SECONDS = 900.0  # how long a lane waits whose provider has too much queued


class Following:
    def __init__(self, database: Engine, config: BatchConfig, open_lanes: OpenLanes) -> None:
        self._database = database
        self._config = config
        self._lanes = open_lanes

    async def look(self, held: Held) -> bool:
        """Ask the provider. True: it has ended, and its results are to be collected under the same lease."""
        assert held.provider_id is not None
        spec = await asyncio.to_thread(self._lanes.load, held.job_id, held.teacher)
        teacher = await self._lanes.teacher(spec)
        if held.job_status == JobStatus.CANCELLED and held.status == ProviderBatchStatus.IN_PROGRESS:
            await teacher.cancel(held.provider_id)
            values = {"status": ProviderBatchStatus.CANCELLING}
            await asyncio.to_thread(self._write, held, values)
        told = await teacher.look(held.provider_id)
        seen = {
            "provider_status": told.status,
            "n_completed": told.n_completed,
            "n_failed": told.n_failed,
            "error": told.error,
            "tries": 0,
        }
        match told.state:
            case BatchState.RUNNING:
                await asyncio.to_thread(self._write, held, seen, self._config.look_seconds)
                if held.tries:  # it was away, and is back
                    await asyncio.to_thread(self._lanes.unpark, spec)
            case BatchState.ENDED:
                ended = {**seen, "status": ProviderBatchStatus.ENDED, "ended_at": db_now()}
                await asyncio.to_thread(self._write, held, ended)
                return True
            case BatchState.FAILED | BatchState.UNKNOWN:
                await asyncio.to_thread(self.failed, held, told, seen)
        return False

    def failed(self, held: Held, told: BatchTold, seen: dict[str, Any]) -> None:
        """No results: the samples go into another batch, later or when somebody has looked at the reason.

        What was lost may have been paid for: as often as a sample may be in a batch, it is asked for again unasked.
        """
        lost = told.state is BatchState.UNKNOWN
        reason = told.error or "no reason was given"
        if lost and told.error is None:
            reason = f"the provider does not know batch {told.provider_id} any more"
        values = {**seen, "status": ProviderBatchStatus.FAILED, "error": reason, "ended_at": db_now()}
        with transaction(self._database) as connection:
            if not provider_batches.release(connection, held, 0.0, values):
                raise LeaseLost(f"batch {held.id} is another worker's")
            rounds = provider_batches.most_rounds(connection, held.id)
            provider_batches.untie(connection, held.id, took_part=lost)
        log.warning("batch %s failed at its provider: %s", held.id, reason)
        if held.job_status == JobStatus.CANCELLED or (lost and rounds < self._config.rounds):
            return
        spec = self._lanes.load(held.job_id, held.teacher)
        if lost:
            reason = f"{rounds} batches of the same samples were lost; the last time {reason}"
            self._lanes.park(spec, "teacher-permanent", reason, None)
            return
        if told.throttled:
            detail = f"the provider has too much queued: {reason}"
            self._lanes.park(spec, "teacher-rate-limited", detail, _QUEUE_SECONDS)
        else:
            self._lanes.park(spec, "teacher-permanent", f"the provider refused a batch: {reason}", None)

    def _write(self, held: Held, values: dict[str, Any], seconds: float | None = None) -> None:
        """Under the fence; with `seconds` the lease is given back."""
        with transaction(self._database) as connection:
            if seconds is None:
                ours = provider_batches.change(connection, held, values)
            else:
                ours = provider_batches.release(connection, held, seconds, values)
            if not ours:
                raise LeaseLost(f"batch {held.id} is another worker's")
