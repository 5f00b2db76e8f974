"""Work that a thread of a worker claims one piece at a time, under a lease: exports, takedowns."""

import logging
import threading
from collections.abc import Callable

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.services import export, takedown
from app.settings import Settings
from app.storage.places import Storage

log = logging.getLogger(__name__)

TAKEDOWN_LEASE_SECONDS = 300.0
"""A VACUUM of a large database prolongs nothing while it runs; a second one beside it would do no harm."""


class Poller:
    """`run_next` does one piece, and says whether there was one; it is given what tells that the worker leaves."""

    def __init__(
        self, what: str, poll_seconds: float, run_next: Callable[[Callable[[], bool]], bool]
    ) -> None:
        self._what = what
        self._poll = poll_seconds
        self._run_next = run_next
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
                worked = self._run_next(self._stopped.is_set)
            except DBAPIError as error:
                log.warning("%s wait for the database: %s", self._what, error.orig)
            if not worked:
                self._wake.wait(self._poll)


def exports(database: Engine, storage: Storage, worker_id: str, settings: Settings) -> Poller:
    """Makes exports, under a lease like a shard's."""
    lease, rules, signing_key = settings.engine.lease_seconds, settings.policy, settings.signing_key()

    def run_next(stopped: Callable[[], bool]) -> bool:
        return export.run_next(
            database, storage, worker_id, lease, stopped, rules=rules, signing_key=signing_key
        )

    return Poller("exports", settings.engine.poll_seconds, run_next)


def takedowns(database: Engine, storage: Storage, worker_id: str, settings: Settings) -> Poller:
    """Carries out takedowns."""

    def run_next(stopped: Callable[[], bool]) -> bool:
        return takedown.run_next(database, storage, worker_id, TAKEDOWN_LEASE_SECONDS, stopped)

    return Poller("takedowns", settings.engine.poll_seconds, run_next)
