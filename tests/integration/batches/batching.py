"""Jobs in batch mode against a scripted batch API, worked on by runners in this process."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select, update

from app.db.batch_models import ProviderBatch
from app.db.models import Completion, Lane, Teacher
from app.db.session import reading, transaction
from app.domain.teacher import TeacherSpec
from app.services.batches import BatchConfig, BatchRunner
from app.storage.places import Storage, open_storage
from app.teachers import TeacherAccess, build_batches
from app.teachers.batches import BatchTeacher
from tests.fixtures.batch_apis import BatchStore, anthropic_batch_api, gemini_batch_api, openai_batch_api
from tests.fixtures.jobs import JobSetup, check_whole, job_row, make_job
from tests.fixtures.loopback import serving

ACCESS = TeacherAccess(allow_loopback=True)
PRICE = {
    "source": "teacher",
    "rates": [{"input": "1", "output": "2"}, {"input": "0.5", "output": "1", "batch": True}],
}
APIS: dict[str, tuple[Any, str, dict[str, Any]]] = {  # driver → (its API, its path, options)
    "openai": (openai_batch_api, "/v1", {"provider": "generic"}),
    "anthropic": (anthropic_batch_api, "/v1", {}),
    "gemini": (gemini_batch_api, "/v1beta", {}),
}


class World:
    """A provider with a store, a database, and jobs."""

    def __init__(self, database: Engine, folder: Path, driver: str, url: str, store: BatchStore) -> None:
        self.database = database
        self.storage: Storage = open_storage(str(folder / "storage"))
        self.driver = driver
        self.base_url = url + APIS[driver][1]
        self.store = store

    def job(self, **setup: Any) -> str:
        options = {**APIS[self.driver][2], **setup.pop("options", {})}
        sampling = setup.pop("sampling", {"temperature": 0.7, "max_tokens": 8})
        given = {"prompts": 20, "shard_size": 8, "sampling": sampling, **setup}
        job = make_job(self.database, JobSetup(base_url=self.base_url, driver=self.driver, **given))
        with transaction(self.database) as connection:
            connection.execute(update(Lane).where(Lane.job_id == job).values(execution="batch", price=PRICE))
            connection.execute(update(Teacher).values(options=options))
        return job

    def runner(
        self, worker: str = "w1", wrap: Callable[[BatchTeacher], Any] | None = None, **changes: Any
    ) -> BatchRunner:
        values: dict[str, Any] = {
            "worker_id": worker,
            "teachers": (),
            "lease_seconds": 5.0,
            "poll_seconds": 0.02,
            "look_seconds": 0.02,
            "park_seconds": 0.1,
            "rounds": 3,
            "flush_rows": 3,
            "compression_level": 1,
        }

        def build(spec: TeacherSpec) -> Any:
            made = build_batches(spec, ACCESS)
            return made if wrap is None else wrap(made)

        return BatchRunner(self.database, self.storage, build, BatchConfig(**(values | changes)))

    @contextmanager
    def running(self, worker: str = "w1", **changes: Any) -> Iterator[BatchRunner]:
        made = self.runner(worker, **changes)
        failure: list[BaseException] = []

        def work() -> None:
            try:
                asyncio.run(made.run())
            except BaseException as error:  # noqa: BLE001 - told at the block's end
                failure.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield made
        finally:
            made.stop()
            thread.join(30)
        assert not thread.is_alive()
        assert not failure, failure

    def status(self, job: str) -> str:
        return str(job_row(self.database, job).status)

    def ended(self, job: str) -> bool:
        return self.status(job) in ("completed", "failed", "cancelled")

    def batches(self) -> list[Any]:
        with reading(self.database) as connection:
            return list(connection.execute(select(ProviderBatch.__table__).order_by(ProviderBatch.id)))

    def rows(self) -> list[Any]:
        with reading(self.database) as connection:
            return list(
                connection.execute(
                    select(Completion.__table__).order_by(Completion.prompt_number, Completion.sample_index)
                )
            )

    def check(self, job: str) -> dict[str, int]:
        return check_whole(self.database, self.storage, job)

    def paid_twice(self) -> list[str]:
        """Samples that the provider answered more than once."""
        return [name for name, times in self.store.answered.items() if times > 1]


@contextmanager
def world(database: Engine, folder: Path, driver: str) -> Iterator[World]:
    store = BatchStore()
    with serving(lambda: APIS[driver][0](store)) as url:
        yield World(database, folder, driver, url, store)


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came of it in time"
        time.sleep(0.02)
