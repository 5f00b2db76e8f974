"""The threads beside the event loop: nothing that blocks runs in the loop itself."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from app.db.session import passes

log = logging.getLogger(__name__)

T = TypeVar("T")


class Threads:
    """So that a file delays no checkpoint, and a checkpoint no claim. One transaction at a time in each."""

    def __init__(self) -> None:
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="claim")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="finish")
        self._sharer = ThreadPoolExecutor(1, thread_name_prefix="share")
        self.leaving = False

    async def read(self, call: Callable[[], T]) -> T:
        """Claims and loads."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, call)

    async def write(self, call: Callable[[], T]) -> T:
        """Checkpoints, heartbeats, releases."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, call)

    async def finish(self, call: Callable[[], T]) -> T:
        """Segments: files are written and read here."""
        return await asyncio.get_running_loop().run_in_executor(self._finisher, call)

    async def share(self, call: Callable[[], T]) -> T:
        """This worker's shares of caps, rates and budgets."""
        return await asyncio.get_running_loop().run_in_executor(self._sharer, call)

    async def persist(self, write: Callable[[], None]) -> None:
        """A short write that waits for an absent database; the lease covers for it if the process ends first."""
        wait = 0.2
        while True:
            try:
                return await self.write(write)
            except DBAPIError as error:
                if not passes(error):
                    raise
                log.warning("a write waits: %s", error.orig)
                if self.leaving:
                    return None
                await asyncio.sleep(wait)
                wait = min(5.0, wait * 2)

    def shutdown(self) -> None:
        for executor in (self._reader, self._writer, self._finisher, self._sharer):
            executor.shutdown(wait=True)
