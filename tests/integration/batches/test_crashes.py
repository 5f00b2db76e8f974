"""A worker that dies before or after any commit and any request to its provider: nothing lost, nothing paid twice."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from app.db.session import connect
from app.teachers.batches import BatchTeacher

from .batching import World, until, world

_ASKED = ("submit", "find", "look", "fetch", "cancel", "forget")


class Killed(BaseException):
    """Nothing of the worker runs any more: whatever it tries from now on raises this again."""


class Bomb:
    """Goes off at the n-th event and from then on at every one."""

    def __init__(self, fuse: int) -> None:
        self.fuse = fuse
        self.seen = 0
        self.places: list[str] = []

    def tick(self, place: str) -> None:
        self.seen += 1
        self.places.append(place)
        if self.seen >= self.fuse:
            raise Killed(place)


class Wired:
    """A batch API of which each request may be the last thing that the worker does, before it or after it."""

    def __init__(self, inner: BatchTeacher, bomb: Bomb) -> None:
        self._inner, self._bomb = inner, bomb

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in _ASKED:
            return found

        async def asked(*given: Any) -> Any:
            self._bomb.tick(f"before {name}")
            result = await found(*given)
            self._bomb.tick(f"after {name}")
            return result

        return asked


@pytest.fixture
def provider(database_url: str, tmp_path: Path) -> Iterator[World]:
    """One provider that tells its batches by a mark, and one that does not."""
    database = connect(database_url)
    with world(database, tmp_path, "openai" if database_url.startswith("sqlite") else "anthropic") as made:
        yield made
    database.dispose()


def die_at(provider: World, url: str, fuse: int) -> tuple[str, Bomb]:
    """A job, and a worker that works on it until its bomb goes off (or the job has ended)."""
    provider.store.fate = lambda custom_id, body, times: (
        "500" if custom_id.split("-")[2] == "4" and not times else "ok"
    )
    job = provider.job(prompts=6, shard_size=3)
    bomb = Bomb(fuse)
    victim = connect(url)
    event.listen(victim, "commit", lambda connection: bomb.tick("commit"))
    runner = World(victim, Path("/"), provider.driver, provider.base_url, provider.store).runner(
        "victim", wrap=lambda teacher: Wired(teacher, bomb), lease_seconds=0.4, flush_rows=2
    )
    runner._collecting._storage = provider.storage

    async def work() -> None:
        try:
            while not provider.ended(job):
                if not (await runner.step() or await runner.plan()):
                    await asyncio.sleep(0.02)
        finally:
            await runner._lanes.aclose()  # as the kernel closes what a dead process had open

    try:
        asyncio.run(work())
    except Killed:
        pass
    finally:
        victim.dispose()
    return job, bomb


def survives(provider: World, url: str, fuse: int) -> bool:
    """Whether the worker died; the job is done all the same, by another one."""
    job, bomb = die_at(provider, url, fuse)
    with provider.running("survivor", lease_seconds=5.0):
        until(lambda: provider.ended(job))
        until(
            lambda: all(batch.status in ("collected", "failed", "cancelled") for batch in provider.batches())
        )
    assert provider.check(job) == {"completed": 6, "failed": 0, "segments": 0}, bomb.places[-1]
    twice = [name.split("-")[1] for name in provider.paid_twice()]
    assert twice in ([], ["4"]), f"paid twice: {provider.paid_twice()} after {bomb.places}"
    return bomb.seen >= fuse


@pytest.mark.parametrize("fuse", [5, 9, 14])
def test_a_worker_that_dies_at_some_step(provider: World, database_url: str, fuse: int) -> None:
    assert survives(provider, database_url, fuse)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_worker_that_dies_at_every_step(provider: World, database_url: str) -> None:
    fuse = 1
    while survives(provider, database_url, fuse):
        provider.store.batches.clear()
        provider.store.answered.clear()
        with provider.database.connect() as connection:
            for table in (
                "provider_batch",
                "completion",
                "counter",
                "pace",
                "shard_attempt",
                "shard",
                "lane",
                "stage",
            ):
                connection.exec_driver_sql(f"DELETE FROM {table}")  # noqa: S608 - names of tables
            connection.exec_driver_sql("DELETE FROM job")
            connection.commit()
        fuse += 1
    assert fuse > 20, "the bomb goes off in many places"
