"""Exports are made by workers: a thread that claims one at a time, under a lease like a shard's."""

import logging
import threading

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.services import export
from app.settings import Settings
from app.storage.places import Storage

log = logging.getLogger(__name__)


class ExportRunner:
    def __init__(self, database: Engine, storage: Storage, worker_id: str, settings: Settings) -> None:
        self._database = database
        self._storage = storage
        self._worker_id = worker_id
        self._lease = settings.engine.lease_seconds
        self._poll = settings.engine.poll_seconds
        self._rules = settings.policy
        self._signing_key = settings.signing_key()
        self._wake = threading.Event()
        self._stopped = threading.Event()

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopped.set()
        self._wake.set()

    def run(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            worked = False
            try:
                worked = export.run_next(
                    self._database,
                    self._storage,
                    self._worker_id,
                    self._lease,
                    self._stopped.is_set,
                    rules=self._rules,
                    signing_key=self._signing_key,
                )
            except DBAPIError as error:
                log.warning("exports wait for the database: %s", error.orig)
            if not worked:
                self._wake.wait(self._poll)
