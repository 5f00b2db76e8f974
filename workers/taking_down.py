"""Takedowns are carried out by workers: a thread that claims one at a time, under a lease."""

import logging
import threading

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.services import takedown
from app.settings import Settings
from app.storage.places import Storage

log = logging.getLogger(__name__)

LEASE_SECONDS = 300.0
"""A VACUUM of a large database prolongs nothing while it runs; a second one beside it would do no harm."""


class TakedownRunner:
    def __init__(self, database: Engine, storage: Storage, worker_id: str, settings: Settings) -> None:
        self._database = database
        self._storage = storage
        self._worker_id = worker_id
        self._poll = settings.engine.poll_seconds
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
                worked = takedown.run_next(
                    self._database, self._storage, self._worker_id, LEASE_SECONDS, self._stopped.is_set
                )
            except DBAPIError as error:
                log.warning("takedowns wait for the database: %s", error.orig)
            if not worked:
                self._wake.wait(self._poll)
