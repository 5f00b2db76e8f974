"""The completions that an export reads: by keyset, in short reading transactions, up to a watermark."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, Dialect, Row, bindparam, func, select, tuple_

from app.db.models import (
    Completion,
    Counter,
    Job,
    Lane,
    Part,
    PromptRow,
    PromptSet,
    Segment,
    Shard,
    Stage,
    Teacher,
)
from app.db.session import db_now
from app.domain.lifecycle import CompletionStatus, ShardStatus

_COLUMNS = (
    Completion.prompt_number,
    Completion.teacher,
    Completion.sample_index,
    Completion.shard_id,
    Completion.parent_id,
    Completion.answer,
    Completion.reasoning,
    Completion.reasoning_source,
    Completion.reasoning_truncated,
    Completion.tool_calls,
    Completion.finish_reason,
    Completion.prompt_tokens,
    Completion.completion_tokens,
    Completion.reasoning_tokens,
    Completion.n_tokens,
    Completion.attempts,
    Completion.calls,
    Completion.latency_ms,
    Completion.content_hash,
    Completion.request_hash,
    Completion.response_hash,
    Completion.sampling,
    Completion.engine,
    Completion.prompt_license,
    Completion.teacher_license,
    Completion.created_at,
    PromptRow.body,
    PromptRow.source,
    PromptRow.custom_id,
    PromptRow.license_assumed,
    PromptRow.content_hash.label("prompt_hash"),
)
NAMES = tuple(column.key for column in _COLUMNS)
_TEXTS = tuple(NAMES.index(name) for name in ("answer", "reasoning", "body", "tool_calls", "sampling"))
_N_TOKENS, _PROMPT_TOKENS = NAMES.index("n_tokens"), NAMES.index("prompt_tokens")
_FETCH = 256

Columns = dict[str, list[Any]]
"""Rows as columns: `NAMES` → the values of one row after another."""

Place = tuple[int, int, int]  # prompt number, teacher, sample index
FIRST: Place = (-1, 0, 0)
_AFTER = ("after_prompt", "after_teacher", "after_sample")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which completed rows of a stage. Empty or None: any. `before`: the snapshot's watermark."""

    before: float
    lanes: tuple[int, ...] = ()
    prompt_licenses: tuple[str, ...] = ()
    teacher_licenses: tuple[str, ...] = ()
    finish_reasons: tuple[str, ...] = ()
    reasoning: bool | None = None
    truncated: bool | None = None


def watermark(connection: Connection, job_ids: Sequence[str]) -> float:
    """A time t of the database's clock: the rows with `created_at` < t are all there, and no other will ever join them.

    Called in a writing transaction. SQLite has one writer, us. PostgreSQL may have checkpoints under way that wrote
    rows before t and are not committed: each holds its shard's row locked, and we wait for those. A checkpoint that
    locks its shard after us writes its rows after t. (Only a database whose clock is set back could break this.)
    """
    before = connection.execute(select(db_now())).scalar_one()
    # Rows of the same tick were written before us: the next tick is the first that is ours alone.
    while (now := connection.execute(select(db_now())).scalar_one()) <= before:
        pass
    if connection.dialect.name == "postgresql":
        connection.execute(
            select(Shard.id)
            .where(Shard.job_id.in_(job_ids), Shard.status == ShardStatus.LEASED)
            .order_by(Shard.id)
            .with_for_update(read=True)
        ).all()
    return float(now)


@dataclass(frozen=True, slots=True)
class Query:
    """The rows of a stage behind a place, as SQL: compiled once, which costs as much as some hundred rows."""

    sql: str
    values: dict[str, Any]
    order: Sequence[str] | None  # SQLite's parameters have places, PostgreSQL's names
    cursor: tuple[str, ...]  # a cursor of the server streams


def compiled(
    dialect: Dialect, job_id: str, prompt_set_id: str, stage: int, wanted: Wanted, max_rows: int
) -> Query:
    """Rows in the order (prompt number, teacher, sample index), at most `max_rows`; see `page`."""
    key = tuple_(Completion.prompt_number, Completion.teacher, Completion.sample_index)
    after = [bindparam(name, 0, BigInteger) for name in _AFTER]
    query = (
        select(*_COLUMNS)
        .join(
            PromptRow,
            (PromptRow.prompt_set_id == prompt_set_id) & (PromptRow.number == Completion.prompt_number),
        )
        .where(
            Completion.job_id == job_id,
            Completion.stage == stage,
            Completion.prompt_number >= after[0],
            key > tuple_(*after),
            Completion.status == CompletionStatus.COMPLETED,
            Completion.created_at < wanted.before,
        )
        .order_by(Completion.prompt_number, Completion.teacher, Completion.sample_index)
        .limit(max_rows)
    )
    for column, values in (
        (Completion.teacher, wanted.lanes),
        (Completion.prompt_license, wanted.prompt_licenses),
        (Completion.teacher_license, wanted.teacher_licenses),
        (Completion.finish_reason, wanted.finish_reasons),
    ):
        if values:
            query = query.where(column.in_(values))
    if wanted.reasoning is not None:
        has = Completion.reasoning.is_not(None)
        query = query.where(has if wanted.reasoning else ~has)
    if wanted.truncated is not None:
        query = query.where(Completion.reasoning_truncated.is_(wanted.truncated))
    made = query.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    return Query(
        str(made),
        dict(made.construct_params()),
        getattr(made, "positiontup", None),
        ("rows",) if dialect.name == "postgresql" else (),
    )


def page(connection: Connection, query: Query, after: Place, max_bytes: int, bytes_per_token: int) -> Columns:
    """The next rows behind a place.

    Ends at the query's limit, or where about `max_bytes` of text and tokens are reached; at the end it is empty.
    """
    found: Columns = {name: [] for name in NAMES}
    columns = list(found.values())
    n, size, portion = 0, 0, 8
    with _plain(connection, query, after) as cursor:
        while size < max_bytes and (rows := cursor.fetchmany(portion)):
            n += len(rows)
            turned = list(zip(*rows, strict=True))
            for column, values in zip(columns, turned, strict=True):
                column.extend(values)
            size += _size(turned, bytes_per_token)
            # So few tuples live at a time that the garbage collector never comes to look at them.
            del rows, turned
            portion = min(_FETCH, 2 * portion, 1 + (max_bytes - size) * n // max(size, 1))
    return found


@contextmanager
def _plain(connection: Connection, query: Query, after: Place) -> Iterator[Any]:
    """The driver's own cursor, streaming: SQLAlchemy's rows would cost as much as the query, and again as garbage."""
    values = query.values | dict(zip(_AFTER, after, strict=True))
    if not connection.in_transaction():
        connection.begin()
    with closing(connection.connection.cursor(*query.cursor)) as cursor:
        cursor.execute(query.sql, values if query.order is None else [values[name] for name in query.order])
        yield cursor


def _size(columns: Sequence[Sequence[Any]], bytes_per_token: int) -> int:
    texts = sum(sum(map(len, filter(None, columns[i]))) for i in _TEXTS)
    if not bytes_per_token:
        return texts
    tokens = sum(sum(filter(None, columns[i])) for i in (_N_TOKENS, _PROMPT_TOKENS))
    return texts + tokens * bytes_per_token


def jobs(connection: Connection, job_ids: Sequence[str]) -> list[Row[Any]]:
    return list(connection.execute(select(Job.__table__).where(Job.id.in_(job_ids)).order_by(Job.id)))


def lanes(connection: Connection, job_ids: Sequence[str]) -> list[Row[Any]]:
    return list(
        connection.execute(
            select(
                Lane.__table__,
                Teacher.base_url,
                Teacher.past_hosts,
                Teacher.trained_on.label("trained_on_by_now"),
            )
            .join(Teacher, Teacher.id == Lane.teacher_id)
            .where(Lane.job_id.in_(job_ids))
            .order_by(Lane.job_id, Lane.teacher)
        )
    )


def stages(connection: Connection, job_ids: Sequence[str]) -> list[Row[Any]]:
    return list(
        connection.execute(
            select(Stage.__table__).where(Stage.job_id.in_(job_ids)).order_by(Stage.job_id, Stage.position)
        )
    )


def prompt_set(connection: Connection, prompt_set_id: str) -> Row[Any]:
    return connection.execute(select(PromptSet.__table__).where(PromptSet.id == prompt_set_id)).one()


def totals(connection: Connection, job_id: str) -> dict[str, int]:
    """All that a job cost, failed and retried calls included."""
    names = ("completed", "failed", "reused", "prompt_tokens", "completion_tokens", "calls", "retries")
    row = connection.execute(
        select(*(func.coalesce(func.sum(getattr(Counter, name)), 0) for name in names)).where(
            Counter.job_id == job_id
        )
    ).one()
    return dict(zip(names, map(int, row), strict=True))


def completed(connection: Connection, job_ids: Sequence[str]) -> dict[tuple[str, int], int]:
    """(job, lane) → completed rows, from the counters."""
    found = connection.execute(
        select(Counter.job_id, Counter.teacher, func.sum(Counter.completed))
        .where(Counter.job_id.in_(job_ids))
        .group_by(Counter.job_id, Counter.teacher)
    )
    return {(job_id, teacher): int(count) for job_id, teacher, count in found}


def parts(connection: Connection, shard_ids: Sequence[int]) -> dict[int, list[bytes]]:
    """Token columns that are in no segment yet, of each shard."""
    found: dict[int, list[bytes]] = {}
    for shard_id, payload in connection.execute(
        select(Part.shard_id, Part.payload)
        .where(Part.shard_id.in_(shard_ids))
        .order_by(Part.shard_id, Part.epoch, Part.sequence)
    ):
        found.setdefault(shard_id, []).append(payload)
    return found


def segments(connection: Connection, shard_ids: Sequence[int]) -> dict[int, str]:
    """Path of the segment, of the shards that have one."""
    found = connection.execute(
        select(Shard.id, Segment.path)
        .join(Segment, Segment.id == Shard.segment_id)
        .where(Shard.id.in_(shard_ids))
    )
    return {shard_id: path for shard_id, path in found}  # noqa: C416 - rows, typed
