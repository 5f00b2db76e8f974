"""The checkpoint: finished samples become rows and counters move, in one short, fenced transaction."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import Connection, Executable, Integer, bindparam, cast, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.db.models import Completion, Counter, Job, Lane, Pace, Part, PromptRow, Segment, Shard
from app.db.session import db_now
from app.db.shards import Claim, Lease, held, run
from app.domain.clock import PACE_SECONDS
from app.domain.lifecycle import CompletionStatus

STRIPES = 8

COLUMNS = tuple(
    column.name
    for column in Completion.__table__.columns
    if column.name not in ("parent_id", "removed_by", "created_at")
)
_KEY = ("job_id", "stage", "prompt_number", "teacher", "sample_index")


@dataclass(slots=True)
class Tally:
    """What a checkpoint adds to the counters of one job and teacher."""

    completed: int = 0
    failed: int = 0
    reused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0
    retries: int = 0
    cost_nanousd: int = 0
    unpriced: int = 0


@dataclass(slots=True)
class ShardBatch:
    """The finished samples of one shard. `rows` are tuples in the order of `COLUMNS`."""

    shard_id: int
    epoch: int
    sequence: int
    job_id: str
    teacher: int
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    part: bytes | None = None
    tally: Tally = field(default_factory=Tally)

    @property
    def lease(self) -> Lease:
        return (self.shard_id, self.epoch)


class AlreadyRecorded(Exception):
    """Some rows of a checkpoint are there: its commit was done, and the answer to it was lost. Nothing was written."""


def record(connection: Connection, owner: str, stripe: int, batches: Sequence[ShardBatch]) -> set[Lease]:
    """Write the batches whose leases are still ours. Returns those leases; the others' work is dropped.

    Only a row that waits for a retry is replaced. Counters move by the rows really written, so that they equal a
    recount at every commit. Raises `AlreadyRecorded`.
    """
    ours = held(connection, owner, [batch.lease for batch in batches])
    kept = [batch for batch in batches if batch.lease in ours and batch.rows]
    if not kept:
        return ours
    rows = [row for batch in kept for row in batch.rows]
    written = _insert(connection, rows)
    if written != len(rows):
        raise AlreadyRecorded(f"a checkpoint of {len(rows)} new rows wrote {written}")
    connection.execute(
        _COUNT_SHARD,
        [{"shard": b.shard_id, "done": b.tally.completed, "failures": b.tally.failed} for b in kept],
    )
    parts = [
        {"shard_id": b.shard_id, "epoch": b.epoch, "sequence": b.sequence, "payload": b.part}
        for b in kept
        if b.part is not None
    ]
    if parts:
        connection.execute(insert(Part), parts)
    for (job_id, teacher), tally in _by_lane(kept).items():
        _count(connection, job_id, teacher, stripe, tally)
        asked = tally.completed - tally.reused  # a teacher answered
        if asked and connection.execute(_UNPARK, {"job": job_id, "position": teacher}).rowcount:
            run(connection, job_id, teacher)
    return ours


_COUNT_SHARD = (
    update(Shard)
    .where(Shard.id == bindparam("shard"))
    .values(
        n_completed=Shard.n_completed + bindparam("done"),
        n_failed=Shard.n_failed + bindparam("failures"),
        claims_without_progress=0,
    )
)

_UNPARK = (
    update(Lane)
    .where(
        Lane.job_id == bindparam("job"),
        Lane.teacher == bindparam("position"),
        Lane.parked_reason.is_not(None),
    )
    .values(parked_reason=None, parked_kind=None, parked_until=None)
)


def _insert_sql(dialect: str) -> str:
    """One statement text per dialect, made once: a driver's executemany of tuples costs a third of SQLAlchemy's."""
    mark, now = ("?", "((julianday('now') - 2440587.5) * 86400.0)")
    if dialect == "postgresql":
        mark, now = "%s", "extract(epoch from clock_timestamp())::double precision"
    replaced = [name for name in COLUMNS if name not in _KEY]
    assignments = ", ".join(f"{name} = excluded.{name}" for name in [*replaced, "created_at"])
    return (  # every word of it is a constant of this module
        f"INSERT INTO completion ({', '.join(COLUMNS)}, created_at) "  # noqa: S608
        f"VALUES ({', '.join([mark] * len(COLUMNS))}, {now}) "
        f"ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET {assignments} "
        f"WHERE completion.status = '{CompletionStatus.RETRY}'"
    )


_INSERT_SQL = {name: _insert_sql(name) for name in ("sqlite", "postgresql")}


def _insert(connection: Connection, rows: list[tuple[Any, ...]]) -> int:
    if not rows:
        return 0
    return connection.exec_driver_sql(_INSERT_SQL[connection.dialect.name], rows).rowcount


def _by_lane(batches: Sequence[ShardBatch]) -> dict[tuple[str, int], Tally]:
    lanes: dict[tuple[str, int], Tally] = {}
    for batch in batches:
        total = lanes.setdefault((batch.job_id, batch.teacher), Tally())
        for name in Tally.__slots__:
            setattr(total, name, getattr(total, name) + getattr(batch.tally, name))
    return lanes


def _count(connection: Connection, job_id: str, teacher: int, stripe: int, tally: Tally) -> None:
    counter, pace = _counting(connection.dialect.name)
    place = {"job_id": job_id, "stripe": stripe}
    values = {name: getattr(tally, name) for name in Tally.__slots__}
    connection.execute(counter, {**place, "teacher": teacher, **values})
    made = tally.completed + tally.failed - tally.reused  # what is reused tells nothing of the pace
    tokens = 0 if tally.reused else tally.completion_tokens
    if made:
        connection.execute(pace, {**place, "rows": made, "tokens": tokens})


@cache
def _counting(dialect: str) -> tuple[Executable, Executable]:
    """The statements that move counter and pace, built once: building them costs more than running them."""
    upsert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    counter = upsert(Counter)
    added = {name: getattr(Counter, name) + counter.excluded[name] for name in Tally.__slots__}
    steps = db_now() / PACE_SECONDS
    pace = upsert(Pace).values(step=cast(func.floor(steps) if dialect == "postgresql" else steps, Integer))
    return (
        counter.on_conflict_do_update(index_elements=["job_id", "teacher", "stripe"], set_=added),
        pace.on_conflict_do_update(
            index_elements=["job_id", "step", "stripe"],
            set_={"rows": Pace.rows + pace.excluded.rows, "tokens": Pace.tokens + pace.excluded.tokens},
        ),
    )


@dataclass(frozen=True, slots=True)
class PromptToAnswer:
    number: int
    body: bytes
    license: str


def prompts_of(
    connection: Connection, job_id: str, first: int, end: int, teacher_name: str
) -> list[PromptToAnswer]:
    """The prompts [first, end) of a job's set that this teacher is to answer."""
    rows = connection.execute(
        select(PromptRow.number, PromptRow.body, PromptRow.license, PromptRow.teacher)
        .where(
            PromptRow.prompt_set_id == select(Job.prompt_set_id).where(Job.id == job_id).scalar_subquery(),
            PromptRow.number >= first,
            PromptRow.number < end,
            PromptRow.removed_by.is_(None),
        )
        .order_by(PromptRow.number)
    )
    return [
        PromptToAnswer(number, body, license)
        for number, body, license, teacher in rows
        if teacher is None or teacher == teacher_name
    ]


def recorded(connection: Connection, claim: Claim, epoch: int | None = None) -> set[tuple[int, int]]:
    """(prompt number, sample index) of the shard's samples that need no further call; `epoch`: those made under it."""
    query = select(Completion.prompt_number, Completion.sample_index).where(
        Completion.job_id == claim.job_id,
        Completion.stage == claim.stage,
        Completion.prompt_number >= claim.first_prompt,
        Completion.prompt_number < claim.end_prompt,
        Completion.teacher == claim.teacher,
        Completion.status != CompletionStatus.RETRY,
    )
    if epoch is not None:
        query = query.where(Completion.epoch == epoch)
    return {(number, index) for number, index in connection.execute(query)}


def parts_of(connection: Connection, shard_id: int) -> list[bytes]:
    """The token columns of a shard's checkpoints, in the order of writing."""
    return list(
        connection.execute(
            select(Part.payload).where(Part.shard_id == shard_id).order_by(Part.epoch, Part.sequence)
        ).scalars()
    )


def segment_of(connection: Connection, shard_id: int) -> tuple[str, int, bytes] | None:
    """(path, generation, sha256) of a shard's segment, where it has one."""
    row = connection.execute(
        select(Segment.path, Segment.generation, Segment.sha256)
        .join(Shard, Shard.segment_id == Segment.id)
        .where(Shard.id == shard_id)
    ).one_or_none()
    return None if row is None else (row.path, row.generation, row.sha256)


def add_segment(
    connection: Connection,
    shard_id: int,
    generation: int,
    path: str,
    sha256: bytes,
    n_bytes: int,
    n_rows: int,
    k: int,
) -> int:
    """Record a segment whose file is already synced; its parts are no longer needed. Returns its id."""
    connection.execute(delete(Part).where(Part.shard_id == shard_id))
    made = connection.execute(
        insert(Segment)
        .values(
            shard_id=shard_id,
            generation=generation,
            path=path,
            sha256=sha256,
            n_bytes=n_bytes,
            n_rows=n_rows,
            k=k,
            created_at=db_now(),
        )
        .returning(Segment.id)
    ).scalar_one()
    return made
