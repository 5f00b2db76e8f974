"""The Celery app of a worker: `celery -A workers.celery worker --pool threads`.

The engine starts when the worker is ready and outlives every task; SIGTERM drains it, a second one leaves at once
(the leases then run out, and nothing that was committed is lost).
"""

import logging
import os
import signal
from types import FrameType
from typing import Any

from celery import signals

from app.broker import celery_app, queue_of
from app.settings import Settings
from workers.process import WorkerProcess

log = logging.getLogger(__name__)

settings = Settings()
app = celery_app(
    "memory://" if settings.broker_url is None else settings.broker_url.get_secret_value(), settings.data_dir
)
app.conf.update(imports=["workers.tasks"], worker_pool="threads", worker_concurrency=2)
if settings.worker_teachers:
    app.conf.task_queues = None
    app.select_queues([queue_of(name) for name in settings.worker_teachers])

process: WorkerProcess | None = None


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        force=True,
    )
    logging.getLogger("celery.app.trace").setLevel(logging.WARNING)
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each call


@signals.worker_ready.connect
def _start(**_: Any) -> None:
    global process
    process = WorkerProcess(settings, app)
    process.start()


@signals.worker_shutting_down.connect
def _drain(**_: Any) -> None:
    """Runs in Celery's handler of the first signal: from here on a second one leaves at once."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, _leave_at_once)
    if process is not None:
        process.stop()


def _leave_at_once(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"second signal: leaving at once\n")
    os._exit(1)


@signals.worker_shutdown.connect
def _leave(**_: Any) -> None:
    if process is not None:
        process.stop()  # where Celery ends by itself, nobody has said so yet
        process.join()
