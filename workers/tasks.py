"""Thin tasks: a wake-up comes in, the engine looks into the database."""

from app.broker import WAKE
from workers import celery


@celery.app.task(name=WAKE, ignore_result=True)
def wake() -> None:
    if celery.process is not None:
        celery.process.wake()
