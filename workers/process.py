"""What one worker process holds: database, storage, and a thread each for calls, batches, exports and dispatch."""

import asyncio
import gc
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable
from importlib.metadata import version

from celery import Celery

from app.broker import forget_through, wake_through
from app.db.session import connect
from app.services.batches import BatchConfig, BatchRunner
from app.services.generate.config import EngineConfig, RetryPolicy
from app.services.generate.engine import GenerationEngine
from app.settings import Settings
from app.storage.places import open_storage
from app.storage.segments import Profile
from app.teachers import TeacherAccess, build, build_batches
from app.teachers.vllm_engine import load_in_this_process
from workers import polling
from workers.dispatch import Dispatcher

log = logging.getLogger(__name__)


class WorkerProcess:
    """Starts and stops the threads of a worker. A thread that dies takes the process with it."""

    def __init__(self, settings: Settings, celery: Celery) -> None:
        self.worker_id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._grace = settings.engine.grace_seconds
        self._database = connect(settings.database)
        storage = open_storage(settings.storage_url)
        access = TeacherAccess(
            allow_loopback=settings.loopback_allowed, allow_private=settings.addresses.allow_private
        )
        self.engine = GenerationEngine(
            self._database, storage, lambda spec: build(spec, access), engine_config(settings, self.worker_id)
        )
        self._batches = BatchRunner(
            self._database,
            storage,
            lambda spec: build_batches(spec, access),
            batch_config(settings, self.worker_id),
        )
        self._exports = polling.exports(self._database, storage, self.worker_id, settings)
        self._takedowns = polling.takedowns(self._database, storage, self.worker_id, settings)
        self._dispatcher = Dispatcher(
            self._database,
            storage,
            self.worker_id,
            settings,
            wake_through(celery),
            forget_through(celery),
        )
        self._threads = [
            threading.Thread(target=self._guard, args=(name, work), name=name, daemon=True)
            for name, work in (
                ("engine", lambda: asyncio.run(self.engine.run())),
                ("batches", lambda: asyncio.run(self._batches.run())),
                ("exports", self._exports.run),
                ("takedowns", self._takedowns.run),
                ("dispatch", self._dispatcher.run),
            )
        ]

    def start(self) -> None:
        log.info("worker %s starts", self.worker_id)
        load_in_this_process()
        # What start-up made stays: to look through it takes a tenth of a second in which no call goes out.
        gc.collect()
        gc.freeze()
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        self.engine.wake()
        self._batches.wake()
        self._exports.wake()
        self._takedowns.wake()

    def stop(self) -> None:
        self.engine.stop()
        self._batches.stop()
        self._exports.stop()
        self._takedowns.stop()
        self._dispatcher.stop()

    def join(self) -> None:
        """Wait until all is drained: the grace period and a little more at most."""
        for thread in self._threads:
            thread.join(self._grace + 10)
        self._database.dispose()
        log.info("worker %s left", self.worker_id)

    def _guard(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException:
            log.critical(
                "the %s thread died: leaving, so that a supervisor starts this worker anew",
                name,
                exc_info=True,
            )
            os._exit(70)


def batch_config(settings: Settings, worker_id: str) -> BatchConfig:
    given = settings.engine
    return BatchConfig(
        worker_id=worker_id,
        teachers=settings.worker_teachers,
        lease_seconds=given.lease_seconds,
        poll_seconds=given.poll_seconds,
        look_seconds=given.batch_look_seconds,
        park_seconds=given.park_seconds,
        rounds=given.attempts,
        flush_rows=given.flush_rows,
        compression_level=settings.storage.compression_level,
        profile=Profile(settings.storage.profile, settings.storage.compact_error),
    )


def engine_config(settings: Settings, worker_id: str) -> EngineConfig:
    given = settings.engine
    return EngineConfig(
        worker_id=worker_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        version=version("retort"),
        teachers=settings.worker_teachers,
        max_in_flight=given.max_in_flight,
        lease_seconds=given.lease_seconds,
        flush_seconds=given.flush_seconds,
        flush_rows=given.flush_rows,
        poll_seconds=given.poll_seconds,
        park_seconds=given.park_seconds,
        shard_attempts=given.shard_attempts,
        grace_seconds=given.grace_seconds,
        retry=RetryPolicy(given.attempts, given.backoff_seconds, given.deadline_seconds),
        compression_level=settings.storage.compression_level,
        profile=Profile(settings.storage.profile, settings.storage.compact_error),
    )
