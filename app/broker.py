"""How Celery is set up, for those who send wake-ups and those who receive them. Read by the roots only.

A message is a wake-up without content. Acknowledgement is early on purpose: with `acks_late` a worker whose broker
restarts under it dies, and nothing is gained, since a lost wake-up costs one poll interval at most.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from app.services.ports import BrokerProblem, ForgetWakeUps, Wake

log = logging.getLogger(__name__)

WAKE = "retort.wake"
QUEUE = "retort"
_MANY = 100


def queue_of(teacher: str | None) -> str:
    """One queue per teacher, beside the common one that every unbound worker listens to."""
    return QUEUE if teacher is None else f"{QUEUE}.{teacher}"


def celery_app(broker_url: str, data_dir: Path) -> Celery:
    """A Celery app for this broker: Redis or Valkey, RabbitMQ, or `filesystem://` in the data folder."""
    made = Celery("retort", broker=broker_url)
    made.conf.update(
        task_ignore_result=True,
        task_acks_late=False,
        task_publish_retry=False,  # the API never blocks on the broker
        task_default_queue=QUEUE,
        task_create_missing_queues=True,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=False,
        worker_send_task_events=False,
        # Its queue is named after the machine: on RabbitMQ, a second worker there could not start.
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=3,
        broker_transport_options=_transport_options(broker_url, data_dir),
    )
    return made


def _transport_options(broker_url: str, data_dir: Path) -> dict[str, object]:
    scheme = broker_url.partition(":")[0]
    if scheme == "filesystem":
        folder = data_dir.absolute() / "broker"
        for name in ("messages", "processed", "control"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        return {
            "data_folder_in": str(folder / "messages"),
            "data_folder_out": str(folder / "messages"),
            "processed_folder": str(folder / "processed"),
            "control_folder": str(folder / "control"),
            "polling_interval": 0.1,
        }
    if scheme.startswith(("redis", "socket", "unix")) or "+socket" in scheme:
        return {
            "visibility_timeout": 3600,
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": scheme == "redis" or scheme == "rediss",
            "health_check_interval": 25,
        }
    return {}


def wake_through(celery: Celery) -> Wake:
    """A wake that publishes and forgets: a broker that is away costs a warning, never an error."""

    def wake(teacher: str | None) -> None:
        try:
            celery.send_task(WAKE, queue=queue_of(teacher), expires=60, ignore_result=True)
        except (OperationalError, OSError) as error:
            log.warning("no wake-up sent, workers will find the work when they next look: %s", error)

    return wake


def forget_through(celery: Celery) -> ForgetWakeUps:
    """Empties queues in which many wake-ups lie: whoever listens takes them as they come, so nobody does.

    They expire after a minute, but Redis and the file system keep what has expired until somebody reads it.
    """

    def forget(teachers: Sequence[str]) -> int:
        dropped = 0
        with celery.connection_for_write() as connection:
            away: tuple[type[BaseException], ...] = (*connection.connection_errors, OperationalError, OSError)
            try:
                for name in (QUEUE, *map(queue_of, teachers)):
                    with suppress(*connection.channel_errors), connection.channel() as opened:
                        channel: Any = opened
                        if channel.queue_declare(queue=name, passive=True).message_count > _MANY:
                            dropped += channel.queue_purge(name) or 0
            except away as error:
                log.warning("old wake-ups stay for now: %s", error)
        return dropped

    return forget


def problem_of(celery: Celery) -> BrokerProblem:
    """A check that opens one connection and says in a sentence why it could not."""

    def problem() -> str | None:
        try:
            with celery.connection_for_write(connect_timeout=2) as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=2)
        except (OperationalError, OSError) as error:
            return f"does not answer: {error}"
        return None

    return problem
