"""Finished samples on their way into the database: what is here is made again after a crash, and is a gauge."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.db.session import passes
from app.db.shards import Lease
from app.services.generate import recording
from app.services.generate.calls import Outcome
from app.services.generate.config import EngineConfig
from app.services.generate.threads import Threads

log = logging.getLogger(__name__)

Settle = Callable[[list[Outcome], set[Lease]], None]


class Recorder:
    """A checkpoint every `flush_seconds` or `flush_rows`. Belongs to the event loop."""

    def __init__(
        self, database: Engine, threads: Threads, config: EngineConfig, stripe: int, settle: Settle
    ) -> None:
        """`settle` is told, after each checkpoint, what was in it and which leases were still ours."""
        self._database = database
        self._threads = threads
        self._config = config
        self._stripe = stripe
        self._settle = settle
        self._done: list[Outcome] = []
        self._flushing: list[Outcome] = []
        self._flush_now = asyncio.Event()

    @property
    def unflushed(self) -> int:
        return len(self._done) + len(self._flushing)

    @property
    def behind(self) -> bool:
        """The database is slow or away: send nothing more, so that a crash repeats little."""
        return self.unflushed >= 8 * self._config.flush_rows

    @property
    def lagging(self) -> bool:
        """Time to claim nothing more."""
        return self.unflushed > 4 * self._config.flush_rows

    def add(self, outcomes: Iterable[Outcome], now: bool = False) -> None:
        self._done.extend(outcomes)
        if now or len(self._done) >= self._config.flush_rows:
            self._flush_now.set()

    async def run(self) -> None:
        """For ever. Raises what waiting does not mend: then the process must not go on."""
        while True:
            try:
                async with asyncio.timeout(self._config.flush_seconds):
                    await self._flush_now.wait()
            except TimeoutError:
                pass
            self._flush_now.clear()
            await self._flush()

    async def settled(self) -> None:
        """Until everything that is here now is recorded, or another worker's."""
        while self.unflushed:
            self._flush_now.set()
            await asyncio.sleep(0.01)

    async def _flush(self) -> None:
        """Keeps trying while the database is away. The fence makes a late try harmless."""
        self._flushing, self._done = self._done, []
        wait = 0.2
        while self._flushing:
            outcomes = self._flushing
            try:
                ours = await self._threads.write(
                    partial(
                        recording.checkpoint, self._database, self._config.worker_id, self._stripe, outcomes
                    )
                )
            except DBAPIError as error:
                if not passes(error):
                    raise
                log.warning("a checkpoint of %d samples waits: %s", len(outcomes), error.orig)
                await asyncio.sleep(wait)
                wait = min(5.0, wait * 2)
                continue
            self._flushing = []
            self._settle(outcomes, ours)
