"""Claim, flush and fence: every interleaving up to a depth, over the real statements on a real database.

Two workers take, answer, record, die and lose their leases; time passes for one lease at a time. All states that can be
reached are visited, breadth first; each is a database image with what the workers have in memory. The same exploration
is run on broken variants, and must find each of them: no fence, a flush that does not check the token, a fence that
answers by shard, leases by the worker's own clock.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, StaticPool, create_engine, event, func, select, update

from app.db import checkpoints, session, shards
from app.db.checkpoints import COLUMNS, ShardBatch, Tally
from app.db.models import Base, Completion, Counter, Job, Shard
from app.db.session import reading, transaction
from app.domain.lifecycle import CompletionStatus
from tests.fixtures.jobs import JobSetup, make_job

WORKERS = "ab"
LEASE = 1000.0
PROMPTS = 2  # in one shard
DEPTH = 8  # a missing fence shows after six steps


@dataclass(frozen=True, order=True)
class Hold:
    """What a worker knows of a lease. It can hold a shard twice, before it knows that its first lease ran out."""

    worker: str
    lease: shards.Lease
    missing: tuple[int, ...]
    buffer: tuple[int, ...] = ()


Holds = tuple[Hold, ...]
Step = tuple[str, Holds]  # what was done, and what the workers hold then


@dataclass(frozen=True)
class State:
    image: bytes
    holds: Holds
    path: tuple[str, ...]


class Violated(Exception):
    """A promise does not hold; the text tells the way there."""


class Model:
    """One in-memory database that is put into each state in turn."""

    def __init__(self) -> None:
        self.engine: Engine = create_engine("sqlite://", poolclass=StaticPool)
        event.listen(
            self.engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None)
        )
        event.listen(self.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        Base.metadata.create_all(self.engine)
        self.job = make_job(self.engine, JobSetup(prompts=PROMPTS, shard_size=PROMPTS))
        self.raw: Any = self.engine.raw_connection().driver_connection
        self.sequence = 0
        self.acting = ""

    def explore(self, depth: int) -> int:
        """Visit every state within so many steps. Returns their number; raises `Violated`."""
        begin = State(self.raw.serialize(), (), ())
        seen = {self._key(begin.holds)}
        open_states = deque([begin])
        while open_states:
            state = open_states.popleft()
            try:
                for what, holds in self._steps(state):
                    key = self._key(holds)
                    if key in seen:
                        continue
                    seen.add(key)
                    path = (*state.path, what)
                    self._check(holds)
                    if len(path) < depth:
                        open_states.append(State(self.raw.serialize(), holds, path))
            except (AssertionError, checkpoints.AlreadyRecorded) as error:
                raise Violated(f"{error}, after {', '.join(state.path)} and one step more") from error
        return len(seen)

    def _key(self, holds: Holds) -> tuple[Any, ...]:
        """What of a state matters: no times, no serial numbers."""
        with reading(self.engine) as connection:
            shard = connection.execute(
                select(Shard.status, Shard.owner, Shard.epoch, Shard.lease_until < session.db_now())
            ).one()
            rows = connection.execute(
                select(Completion.prompt_number, Completion.epoch).order_by(Completion.prompt_number)
            ).all()
            status = connection.execute(select(Job.status)).scalar_one()
        views = [
            (shard[0], shard[1] and names[shard[1]], shard[2], shard[3], tuple(map(tuple, rows)), status,
             tuple(sorted(replace(hold, worker=names[hold.worker]) for hold in holds)))
            for names in ({"a": "a", "b": "b"}, {"a": "b", "b": "a"})
        ]  # fmt: skip
        return min(views, key=repr)  # the two workers are alike

    # -- what may happen, in any order -------------------------------------------------------------------------

    def _steps(self, state: State) -> Iterator[Step]:
        """Every step from here; the database is in the state after it while it is looked at."""
        holds = state.holds
        steps: list[Callable[[], Step | None]] = [partial(self._lapse, holds)]
        for hold in holds:
            steps += [partial(self._answer, holds, hold), partial(self._end, holds, hold)]
        for worker in WORKERS:
            steps += [partial(step, holds, worker) for step in (self._claim, self._beat, self._die)]
            steps += [partial(self._flush, holds, worker, how) for how in ("flush", "flush, answer lost")]
        for step in steps:
            self.raw.deserialize(state.image)
            done = step()
            if done is not None:
                yield done

    def _claim(self, holds: Holds, worker: str) -> Step | None:
        self.acting = worker
        with reading(self.engine) as connection:
            before = connection.execute(
                select(Shard.status, Shard.epoch, Shard.lease_until, session.db_now().label("now"))
            ).one()
            found = shards.candidates(connection, ())
        if not found:
            return None
        with transaction(self.engine) as connection:
            claim = shards.claim(connection, found[0], worker, LEASE, 1.0)
        if claim is None:
            return None
        assert before.status == "ready" or before.lease_until < before.now, "a live lease was taken"
        assert claim.epoch == before.epoch + 1
        with reading(self.engine) as connection:
            done = checkpoints.recorded(connection, claim)
        missing = tuple(number for number in range(PROMPTS) if (number, 0) not in done)
        return f"{worker} claims", (*holds, Hold(worker, claim.lease, missing))

    def _answer(self, holds: Holds, hold: Hold) -> Step | None:
        if not hold.missing:
            return None
        answered = replace(hold, missing=hold.missing[1:], buffer=(*hold.buffer, hold.missing[0]))
        return f"{hold.worker} answers", _with(holds, hold, answered)

    def _flush(self, holds: Holds, worker: str, what: str) -> Step | None:
        """All that the worker has, in one checkpoint. Its commit may be done and the answer to it lost."""
        mine = [hold for hold in holds if hold.worker == worker and hold.buffer]
        if not mine:
            return None
        with reading(self.engine) as connection:
            current = connection.execute(select(Shard.owner, Shard.id, Shard.epoch, Shard.status)).one()
        try:
            ours = self._record(worker, mine)
        except checkpoints.AlreadyRecorded:  # as `recording.checkpoint` does it
            ours = self._record(worker, [self._unrecorded(hold) for hold in mine])
        for hold in mine:
            valid = (current.owner, (current.id, current.epoch)) == (worker, hold.lease)
            assert (hold.lease in ours) == (valid and current.status == "leased"), (
                "written without the fencing token"
            )
            if what == "flush":
                holds = _with(holds, hold, replace(hold, buffer=()) if hold.lease in ours else None)
        return f"{worker}: {what}", holds

    def _record(self, worker: str, mine: list[Hold]) -> set[shards.Lease]:
        batches = []
        for hold in mine:
            self.sequence += 1
            batch = ShardBatch(*hold.lease, self.sequence, self.job, 0)
            batch.rows = [completion_row(self.job, hold.lease, number) for number in hold.buffer]
            batch.tally = Tally(completed=len(hold.buffer), calls=len(hold.buffer))
            batches.append(batch)
        with transaction(self.engine) as connection:
            return checkpoints.record(connection, worker, 0, batches)

    def _unrecorded(self, hold: Hold) -> Hold:
        claim = shards.Claim(*hold.lease, self.job, 0, 0, 0, PROMPTS, PROMPTS, 0)
        with reading(self.engine) as connection:
            there = checkpoints.recorded(connection, claim, hold.lease[1])
        return replace(hold, buffer=tuple(number for number in hold.buffer if (number, 0) not in there))

    def _end(self, holds: Holds, hold: Hold) -> Step | None:
        """Finish the shard, or give it back."""
        if hold.buffer:
            return None
        with transaction(self.engine) as connection:
            if hold.missing:
                shards.release(connection, hold.worker, *hold.lease, "released", None)
            else:
                shards.finish(connection, hold.worker, *hold.lease, None)
        return f"{hold.worker} {'releases' if hold.missing else 'finishes'}", _with(holds, hold, None)

    def _beat(self, holds: Holds, worker: str) -> Step | None:
        mine = [hold for hold in holds if hold.worker == worker]
        if not mine:
            return None
        with transaction(self.engine) as connection:
            ours = shards.extend(connection, worker, [hold.lease for hold in mine], LEASE)
        for hold in mine:
            if hold.lease not in ours:
                holds = _with(holds, hold, None)
        return f"{worker}'s heart beats", holds

    def _die(self, holds: Holds, worker: str) -> Step | None:
        """kill -9: what was not flushed is gone; the lease lapses later."""
        left = tuple(hold for hold in holds if hold.worker != worker)
        return None if left == holds else (f"{worker} dies", left)

    def _lapse(self, holds: Holds) -> Step:
        """A worker is stopped for longer than its lease; it does not know."""
        with transaction(self.engine) as connection:
            connection.execute(update(Shard).where(Shard.status == "leased").values(lease_until=1.0))
        return "the lease lapses", holds

    # -- what must hold at every commit ------------------------------------------------------------------------

    def _check(self, holds: Holds) -> None:
        with reading(self.engine) as connection:
            rows = connection.execute(select(func.count()).select_from(Completion)).scalar_one()
            shard = connection.execute(select(Shard.n_completed, Shard.status, Shard.owner)).one()
            counted = connection.execute(select(func.coalesce(func.sum(Counter.completed), 0))).scalar_one()
            status = connection.execute(select(Job.status)).scalar_one()
        assert rows == shard.n_completed == counted, "counters differ from a recount"
        assert (shard.status == "finished") == (status == "completed"), "the job ends with its shard"
        if shard.status == "finished":
            assert rows == PROMPTS, "finished without all rows"


def _with(holds: Holds, old: Hold, new: Hold | None) -> Holds:
    others = tuple(hold for hold in holds if hold is not old)
    return others if new is None else (*others, new)


def completion_row(job: str, lease: shards.Lease, number: int) -> tuple[Any, ...]:
    values: dict[str, Any] = dict.fromkeys(COLUMNS)
    values |= {
        "job_id": job,
        "stage": 0,
        "prompt_number": number,
        "teacher": 0,
        "sample_index": 0,
        "shard_id": lease[0],
        "status": str(CompletionStatus.COMPLETED),
        "reasoning_truncated": False,
        "attempts": 1,
        "calls": 1,
        "latency_ms": 1,
        "epoch": lease[1],
        "content_hash": b"",
        "prompt_license": "CC0-1.0",
    }
    return tuple(values[name] for name in COLUMNS)


@pytest.fixture
def model() -> Iterator[Model]:
    made = Model()
    yield made
    made.engine.dispose()


def test_no_interleaving_loses_or_doubles_anything(model: Model) -> None:
    assert model.explore(DEPTH) > 500  # states that differ by more than the workers' names


@contextmanager
def broken(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, variant: Callable[..., Any]
) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(module, name, variant)
        yield


_held = shards.held


def _everything_is_ours(
    connection: Connection, owner: str, leases: Collection[shards.Lease]
) -> set[shards.Lease]:
    """No fence at all."""
    return set(leases)


def _no_epoch(connection: Connection, owner: str, leases: Collection[shards.Lease]) -> set[shards.Lease]:
    """Checks that the shard is leased, not under which epoch: a flush without the token."""
    rows = connection.execute(
        select(Shard.id).where(Shard.id.in_([shard_id for shard_id, _ in leases]), Shard.status == "leased")
    )
    leased = set(rows.scalars())
    return {lease for lease in leases if lease[0] in leased}


def _by_shard(connection: Connection, owner: str, leases: Collection[shards.Lease]) -> set[shards.Lease]:
    """Checks owner and epoch, but answers by shard: an older lease of the same worker passes with the newer one."""
    ours = {shard_id for shard_id, _ in _held(connection, owner, leases)}
    return {lease for lease in leases if lease[0] in ours}


@pytest.mark.parametrize("variant", [_everything_is_ours, _no_epoch, _by_shard])
def test_the_exploration_finds_a_broken_fence(
    model: Model, monkeypatch: pytest.MonkeyPatch, variant: Callable[..., Any]
) -> None:
    with broken(monkeypatch, checkpoints, "held", variant), pytest.raises(Violated):
        model.explore(DEPTH)


def test_the_exploration_finds_leases_by_the_workers_clock(model: Model) -> None:
    now = str(session.db_now().compile(model.engine))

    def by_own_clock(_: object, __: object, sql: str, values: Any, *___: object) -> tuple[str, Any]:
        if sql.startswith("SELECT shard.status"):  # the exploration's own looks
            return sql, values
        return sql.replace(now, f"({time.time() + (3600 if model.acting == 'b' else 0)})"), values

    event.listen(model.engine, "before_cursor_execute", by_own_clock, retval=True)
    with pytest.raises(Violated, match="a live lease was taken"):
        model.explore(DEPTH)
