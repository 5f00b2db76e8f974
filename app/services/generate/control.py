"""What a worker tells and asks the database once in a while: that it lives, and its jobs' states."""

import asyncio
import logging
import math
import time
from functools import partial

from sqlalchemy.exc import DBAPIError

from app.db.session import passes
from app.domain.lifecycle import CLAIMABLE, JobStatus
from app.services.generate.config import EngineConfig
from app.services.generate.endings import Endings
from app.services.generate.holdings import Holdings
from app.services.generate.ledger import Ledger
from app.services.generate.recorder import Recorder
from app.services.generate.threads import Threads

log = logging.getLogger(__name__)

_GOING_ON = frozenset({*CLAIMABLE, JobStatus.FINALIZING, JobStatus.PARKED})


class Control:
    """Belongs to the event loop."""

    def __init__(
        self,
        config: EngineConfig,
        held: Holdings,
        ledger: Ledger,
        threads: Threads,
        recorder: Recorder,
        endings: Endings,
    ) -> None:
        self._beat_every = config.lease_seconds / 3
        self._held = held
        self._ledger = ledger
        self._threads = threads
        self._recorder = recorder
        self._endings = endings
        self._last_beat = -math.inf

    async def run(self) -> None:
        """For ever. Raises what waiting does not mend."""
        while True:
            try:
                if time.monotonic() - self._last_beat >= self._beat_every:
                    await self._beat()
                    self._last_beat = time.monotonic()
                await self._follow_jobs()
            except DBAPIError as error:
                if not passes(error):
                    raise
                log.warning("no heartbeat, the database does not answer: %s", error.orig)
            await asyncio.sleep(min(1.0, self._beat_every))

    async def _beat(self) -> None:
        runs = self._held.runs()
        leases = self._held.leases()
        ours = await self._threads.write(
            partial(
                self._ledger.beat,
                leases,
                self._held.in_flight,
                self._recorder.unflushed,
                self._threads.leaving,
            )
        )
        for run in runs:
            if run.claim.lease not in ours:
                self._endings.lose(run)
        for lease in leases:
            if lease not in ours:
                self._held.beginning.pop(lease, None)

    async def _follow_jobs(self) -> None:
        """Paused and cancelled jobs' lanes are closed."""
        jobs = sorted({lane.spec.job_id for lane in self._held.lanes.values()})
        if not jobs:
            return
        found = await self._threads.read(partial(self._ledger.statuses, jobs))
        for lane in list(self._held.lanes.values()):
            status = found.get(lane.spec.job_id)
            if status in _GOING_ON or lane.closing:
                continue
            lane.closing = status or "gone"
            self._endings.spawn(self._endings.close_lane(lane, lane.closing))
