"""Dispatch, reconciling and housekeeping: a thread in every worker, of which the leader acts. No beat process."""

import logging
import math
import threading
import time

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.db import workers
from app.db.session import transaction
from app.errors import StorageError
from app.services import dispatch, housekeeping
from app.services.ports import ForgetWakeUps, Wake
from app.settings import Settings
from app.storage.places import Storage

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
TIDY_SECONDS = 60.0
SWEEP_SECONDS = 3600.0


class Dispatcher:
    def __init__(
        self,
        database: Engine,
        storage: Storage,
        worker_id: str,
        settings: Settings,
        wake: Wake,
        forget: ForgetWakeUps,
    ) -> None:
        self._database = database
        self._storage = storage
        self._worker_id = worker_id
        self._wake = wake
        self._forget = forget
        self._poll_seconds = settings.engine.poll_seconds
        self._retention = housekeeping.Retention(
            idempotency_hours=settings.retention.idempotency_hours,
            pace_hours=settings.retention.pace_hours,
            attempts_days=settings.retention.attempts_days,
            lease_seconds=settings.engine.lease_seconds,
        )
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        tidied = swept = -math.inf
        while not self._stopped.is_set():
            try:
                if self._leads():
                    dispatch.tick(self._database, self._wake)
                    if time.monotonic() - tidied > TIDY_SECONDS:
                        tidied = time.monotonic()
                        housekeeping.tidy(self._database, self._retention)
                    if time.monotonic() - swept > SWEEP_SECONDS:
                        swept = time.monotonic()
                        housekeeping.sweep(self._database, self._storage)
                        housekeeping.forget_wake_ups(self._database, self._forget)
            except DBAPIError as error:
                log.warning("dispatch waits for the database: %s", error.orig)
            except StorageError as error:
                log.warning("housekeeping waits for the storage: %s", error.detail)
            self._stopped.wait(self._poll_seconds)

    def _leads(self) -> bool:
        with transaction(self._database) as connection:
            return workers.lead(connection, "dispatch", self._worker_id, LEASE_SECONDS)
