"""An engine in a thread of the test, with a teacher in this process. What it raises fails the test."""

import asyncio
import hashlib
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from sqlalchemy import Engine, event

from app.domain.columns import TokenColumns, token_columns
from app.services.generate.config import EngineConfig, RetryPolicy
from app.services.generate.engine import GenerationEngine
from app.services.generate.replicas import BuildTeacher
from app.storage.places import Storage
from app.teachers.base import Capabilities, GenerateRequest, Generation, TeacherSpec, Usage
from app.teachers.base import Teacher as AnyTeacher
from tests.fixtures.jobs import job_row

Hook = Callable[[str, int], None]


class Teacher:
    """Answers from the prompt's hash; `hook(prompt, call number)` may raise."""

    def __init__(self, delay: float = 0.0, hook: Hook | None = None, native_n: bool = False) -> None:
        self.delay = delay
        self.hook = hook or (lambda prompt, call: None)
        self.native_n = native_n
        self.engine = "test 1"
        self.calls: Tally[str] = Tally()
        self.in_flight = self.peak = 0
        self.order: list[str] = []

    async def capabilities(self) -> Capabilities:
        return Capabilities(
            True, self.engine, "null", max_top_logprobs=20, token_ids=True, native_n=self.native_n
        )

    async def generate(self, request: GenerateRequest) -> list[Generation]:
        prompt = str(request.messages[-1]["content"])
        self.calls[prompt] += 1
        self.order.append(prompt)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            self.hook(prompt, self.calls[prompt])
            await asyncio.sleep(self.delay)
            return [self.sample(prompt, index, request.top_logprobs) for index in request.sample_indices]
        finally:
            self.in_flight -= 1

    def sample(self, prompt: str, index: int, k: int) -> Generation:
        digest = hashlib.sha256(f"{prompt}{index}".encode()).digest()
        ids = np.frombuffer(digest[:8], np.uint8).astype(np.int32)
        tokens: TokenColumns | None = None
        if k:
            lp = (np.full((8, k), -3.0) - np.arange(k)).astype(np.float32)
            near = (ids[:, None] + np.arange(k)).astype(np.int32)
            tokens = token_columns(ids, near, lp, lp[:, 0], k)
        return Generation(index, digest.hex(), "stop", digest, digest, Usage(3, 8), tokens=tokens)

    async def score(self, prompt_ids: list[int], token_ids: list[int], top_logprobs: int) -> TokenColumns:
        raise NotImplementedError

    async def aclose(self) -> None:
        pass


def config(worker: str = "w1", **changes: object) -> EngineConfig:
    values: dict[str, object] = {
        "worker_id": worker,
        "host": "h",
        "pid": 1,
        "version": "0",
        "teachers": (),
        "max_in_flight": 32,
        "lease_seconds": 6.0,
        "flush_seconds": 0.02,
        "flush_rows": 16,
        "poll_seconds": 0.05,
        "park_seconds": 0.3,
        "shard_attempts": 3,
        "grace_seconds": 2.0,
        "retry": RetryPolicy(3, 0.01, 5.0),
        "compression_level": 1,
    }
    return EngineConfig(**(values | changes))  # type: ignore[arg-type]


@contextmanager
def running(
    database: Engine, storage: Storage, teacher: AnyTeacher | BuildTeacher, **changes: object
) -> Iterator[GenerationEngine]:
    def build(spec: TeacherSpec) -> AnyTeacher:
        return teacher(spec) if callable(teacher) else teacher

    made = GenerationEngine(database, storage, build, config(**changes))  # type: ignore[arg-type]
    failure: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(made.run())
        except BaseException as error:  # noqa: BLE001 - told by the fixture's end
            failure.append(error)

    thread = threading.Thread(target=work)

    def not_in_the_loop(*_: object) -> None:
        if threading.current_thread() is thread:
            failure.append(AssertionError("the event loop touched the database"))

    event.listen(database, "before_cursor_execute", not_in_the_loop)
    thread.start()
    try:
        yield made
    finally:
        made.stop()
        thread.join(20)
        event.remove(database, "before_cursor_execute", not_in_the_loop)
    assert not thread.is_alive()
    assert not failure, failure


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came of it in time"
        time.sleep(0.02)


def status(database: Engine, job: str) -> str:
    return str(job_row(database, job).status)


def finish(database: Engine, job: str, seconds: float = 30.0) -> None:
    until(lambda: status(database, job) in ("completed", "failed", "cancelled"), seconds)
