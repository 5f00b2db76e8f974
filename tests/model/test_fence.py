"""Claim, flush and fence as a state machine over the real statements on a real database.

Hypothesis explores interleavings of two workers, lapsed leases and late flushes. The same machine is run on broken
variants, and must find each of them: no fence, a flush that does not check, leases by the worker's own clock.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import booleans, data, integers, sampled_from
from sqlalchemy import Connection, event, func, literal, select, update

from app.db import checkpoints, shards
from app.db.checkpoints import COLUMNS, ShardBatch, Tally
from app.db.migrate import upgrade
from app.db.models import Completion, Counter, Job, Shard
from app.db.session import connect, reading, transaction
from app.domain.lifecycle import CompletionStatus
from tests.fixtures.jobs import JobSetup, make_job

LEASE = 1000.0
PROMPTS, SHARD = 6, 3


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        file = Path(folder) / "template.db"
        upgrade(f"sqlite:///{file}")
        made = connect(f"sqlite:///{file}")
        make_job(made, JobSetup(prompts=PROMPTS, shard_size=SHARD))
        made.dispose()
        yield file


class Machine(RuleBasedStateMachine):
    """Two workers take, answer and record; time passes for one lease at a time."""

    template: Path

    @initialize()
    def open(self) -> None:
        self.file = self.template.with_name(f"{id(self)}.db")
        for suffix in ("", "-wal"):
            source = Path(f"{self.template}{suffix}")
            if source.exists():
                shutil.copyfile(source, f"{self.file}{suffix}")
        self.engine = connect(f"sqlite:///{self.file}")
        event.listen(self.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
        self.holds: dict[tuple[str, int], tuple[shards.Claim, list[int]]] = {}
        self.buffers: dict[tuple[str, int], list[int]] = {}
        self.sequence = 0
        with reading(self.engine) as connection:
            self.job = connection.execute(select(Job.id)).scalar_one()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            try:
                self._drain()
            finally:
                self.engine.dispose()
                for file in self.file.parent.glob(f"{self.file.name}*"):
                    file.unlink()

    # -- what may happen, in any order -------------------------------------------------------------------------

    @rule(worker=sampled_from("ab"))
    def claim(self, worker: str) -> None:
        with reading(self.engine) as connection:
            before = {s.id: s for s in connection.execute(select(Shard.__table__))}
            found = shards.candidates(connection, ())
            now = connection.execute(select(shards_now())).scalar_one()
        for lane in found:
            with transaction(self.engine) as connection:
                claim = shards.claim(connection, lane, worker, LEASE, 1.0)
            if claim is None:
                continue
            old = before[claim.shard_id]
            assert old.status == "ready" or (old.status == "leased" and old.lease_until < now), (
                "a live lease was taken"
            )
            assert claim.epoch == old.epoch + 1
            with reading(self.engine) as connection:
                done = checkpoints.recorded(connection, self.job, 0, 0, claim.first_prompt, claim.end_prompt)
            missing = [p for p in range(claim.first_prompt, claim.end_prompt) if (p, 0) not in done]
            self.holds[worker, claim.shard_id] = (claim, missing)
            self.buffers[worker, claim.shard_id] = []
            return

    @precondition(lambda self: self.holds)
    @rule(data=data())
    def answer(self, data: Any) -> None:
        key = data.draw(sampled_from(sorted(self.holds)))
        _, missing = self.holds[key]
        if missing:
            self.buffers[key].append(missing.pop(0))

    @precondition(lambda self: any(self.buffers.values()))
    @rule(data=data(), succeeds=booleans())
    def flush(self, data: Any, succeeds: bool) -> None:
        key = data.draw(sampled_from(sorted(k for k, v in self.buffers.items() if v)))
        self._flush(key, succeeds)

    @precondition(lambda self: self.holds)
    @rule(data=data())
    def lease_lapses(self, data: Any) -> None:
        """The worker is stopped for longer than its lease; it does not know."""
        _, shard_id = data.draw(sampled_from(sorted(self.holds)))
        with transaction(self.engine) as connection:
            connection.execute(
                update(Shard).where(Shard.id == shard_id, Shard.status == "leased").values(lease_until=1.0)
            )

    @precondition(lambda self: self.holds)
    @rule(data=data())
    def die(self, data: Any) -> None:
        """kill -9: what was not flushed is gone; the lease lapses later."""
        worker, _ = data.draw(sampled_from(sorted(self.holds)))
        for key in [k for k in self.holds if k[0] == worker]:
            del self.holds[key], self.buffers[key]
            with transaction(self.engine) as connection:
                connection.execute(
                    update(Shard)
                    .where(Shard.id == key[1], Shard.owner == worker, Shard.status == "leased")
                    .values(lease_until=1.0)
                )

    @precondition(lambda self: self.holds)
    @rule(data=data())
    def finish_or_release(self, data: Any) -> None:
        key = data.draw(sampled_from(sorted(self.holds)))
        claim, missing = self.holds[key]
        if self.buffers[key]:
            return
        with transaction(self.engine) as connection:
            if missing:
                shards.release(connection, key[0], claim.shard_id, claim.epoch, "released", None)
            else:
                shards.finish(connection, key[0], claim.shard_id, claim.epoch, None)
        del self.holds[key], self.buffers[key]

    @rule(prompt=integers(0, PROMPTS - 1))
    def heartbeat(self, prompt: int) -> None:
        for worker in "ab":
            held = [(c.shard_id, c.epoch) for (w, _), (c, _m) in self.holds.items() if w == worker]
            with transaction(self.engine) as connection:
                ours = shards.extend(connection, worker, held, LEASE)
            for shard_id, _ in held:
                if shard_id not in ours:
                    del self.holds[worker, shard_id], self.buffers[worker, shard_id]

    # -- what must hold at every commit ------------------------------------------------------------------------

    @invariant()
    def counters_equal_a_recount(self) -> None:
        if not hasattr(self, "engine"):
            return
        with reading(self.engine) as connection:
            rows = dict(
                connection.execute(
                    select(Completion.shard_id, func.count()).group_by(Completion.shard_id)
                ).all()
            )
            for shard in connection.execute(select(Shard.__table__)):
                assert shard.n_completed == rows.get(shard.id, 0)
            counted = connection.execute(select(func.coalesce(func.sum(Counter.completed), 0))).scalar_one()
            assert counted == sum(rows.values())

    # -- pieces ------------------------------------------------------------------------------------------------

    def _flush(self, key: tuple[str, int], succeeds: bool = True) -> None:
        worker, shard_id = key
        claim, _ = self.holds[key]
        numbers = self.buffers[key]
        self.sequence += 1
        batch = ShardBatch(shard_id, claim.epoch, self.sequence, self.job, 0)
        batch.rows = [_row(self.job, shard_id, claim.epoch, number) for number in numbers]
        batch.tally = Tally(completed=len(numbers), calls=len(numbers))
        with reading(self.engine) as connection:
            current = connection.execute(select(Shard.epoch, Shard.owner).where(Shard.id == shard_id)).one()
        ours = False
        try:
            with transaction(self.engine) as connection:
                ours = shard_id in checkpoints.record(connection, worker, 0, [batch])
                if not succeeds:
                    raise _CommitFails
        except _CommitFails:
            return  # the buffer is kept, and written again later
        assert ours == (tuple(current) == (claim.epoch, worker)), "written without holding the fencing token"
        if ours:
            self.buffers[key] = []
        else:
            del self.holds[key], self.buffers[key]

    def _drain(self) -> None:
        """Whatever happened: one worker that goes on alone ends the job, each prompt answered once."""
        self.holds.clear()
        self.buffers.clear()
        with transaction(self.engine) as connection:
            connection.execute(update(Shard).where(Shard.status == "leased").values(lease_until=1.0))
        for _ in range(PROMPTS):
            self.claim("z")
            for key in list(self.holds):
                claim, missing = self.holds[key]
                self.buffers[key] = list(missing)
                missing.clear()
                if self.buffers[key]:
                    self._flush(key)
                with transaction(self.engine) as connection:
                    assert shards.finish(connection, key[0], claim.shard_id, claim.epoch, None)
                del self.holds[key], self.buffers[key]
        with reading(self.engine) as connection:
            numbers = connection.execute(
                select(Completion.prompt_number).order_by(Completion.prompt_number)
            ).scalars()
            assert list(numbers) == list(range(PROMPTS))
            assert connection.execute(select(Job.status)).scalar_one() == "completed"
        self.counters_equal_a_recount()


class _CommitFails(Exception):
    pass


def shards_now() -> Any:
    from app.db.session import db_now

    return db_now()


def _row(job: str, shard_id: int, epoch: int, number: int) -> tuple[Any, ...]:
    values: dict[str, Any] = dict.fromkeys(COLUMNS)
    values |= {
        "job_id": job,
        "stage": 0,
        "prompt_number": number,
        "teacher": 0,
        "sample_index": 0,
        "shard_id": shard_id,
        "status": str(CompletionStatus.COMPLETED),
        "reasoning_truncated": False,
        "attempts": 1,
        "calls": 1,
        "latency_ms": 1,
        "epoch": epoch,
        "content_hash": b"",
        "prompt_license": "CC0-1.0",
    }
    return tuple(values[name] for name in COLUMNS)


def explore(template: Path, examples: int) -> None:
    Machine.template = template
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),
            report_multiple_bugs=False,
            print_blob=False,
            database=None,
        ),
    )


def test_no_interleaving_loses_or_doubles_anything(template: Path) -> None:
    explore(template, 60)


@contextmanager
def broken(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, variant: Callable[..., Any]
) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(module, name, variant)
        yield


def _everything_is_ours(connection: Connection, owner: str, claims: list[tuple[int, int]]) -> set[int]:
    return {shard_id for shard_id, _ in claims}


def _owner_alone(connection: Connection, owner: str, claims: list[tuple[int, int]]) -> set[int]:
    """Checks that the shard is leased by somebody, not by which epoch: a flush without the token."""
    rows = connection.execute(
        select(Shard.id).where(Shard.id.in_([c[0] for c in claims]), Shard.status == "leased")
    )
    return set(rows.scalars())


def test_the_machine_finds_a_missing_fence(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        broken(monkeypatch, checkpoints, "held", _everything_is_ours),
        pytest.raises((AssertionError, RuntimeError)),
    ):
        explore(template, 200)


def test_the_machine_finds_a_flush_that_does_not_check(
    template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        broken(monkeypatch, checkpoints, "held", _owner_alone),
        pytest.raises((AssertionError, RuntimeError)),
    ):
        explore(template, 200)


def test_the_machine_finds_leases_by_the_workers_clock(
    template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    an_hour_ahead = lambda: literal(time.time() + 3600)  # noqa: E731
    with broken(monkeypatch, shards, "db_now", an_hour_ahead), pytest.raises((AssertionError, RuntimeError)):
        explore(template, 200)
