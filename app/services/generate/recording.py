"""Outcomes to checkpoints, and a shard's end: its parts become one segment, then its pointer is committed."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import orjson
from pydantic import JsonValue
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.db import checkpoints, shards
from app.db.checkpoints import COLUMNS, AlreadyRecorded, ShardBatch
from app.db.lanes import LaneSpec
from app.db.session import passes, reading, transaction
from app.domain.lifecycle import CompletionStatus, Execution
from app.domain.prices import nano
from app.services.generate.calls import Outcome
from app.services.generate.work import ShardRun
from app.storage.places import Storage
from app.storage.segments import Profile, SegmentFile, read_segment, write_segment
from app.storage.token_table import decode_part, encode_part, token_table
from app.teachers.base import Generation
from app.teachers.prices import price_of, prompt_tokens_billed

log = logging.getLogger(__name__)


def checkpoint(database: Engine, owner: str, stripe: int, outcomes: Sequence[Outcome]) -> set[shards.Lease]:
    """Record finished samples in one transaction. Returns the leases that took theirs.

    What a commit whose answer was lost has written is left out. A sample that cannot be written becomes a failed row,
    and the others are written all the same. Raises `DBAPIError` where waiting helps.
    """
    try:
        return _record(database, owner, stripe, outcomes)
    except AlreadyRecorded:
        left = _unrecorded(database, outcomes)
        if len(left) == len(outcomes):
            raise
        log.warning("%d samples were recorded by a commit whose answer was lost", len(outcomes) - len(left))
        return _record(database, owner, stripe, left, outcomes)
    except Exception as error:
        if isinstance(error, DBAPIError) and passes(error):
            raise
        if len(outcomes) > 1:
            middle = len(outcomes) // 2
            first = checkpoint(database, owner, stripe, outcomes[:middle])
            second = checkpoint(database, owner, stripe, outcomes[middle:])
            return (first - {outcome.unit.run.claim.lease for outcome in outcomes[middle:]}) | second
        log.exception("an answer cannot be recorded: it becomes a failed row")
        return _record(database, owner, stripe, [_unrecordable(outcomes[0], error)])


def _record(
    database: Engine,
    owner: str,
    stripe: int,
    outcomes: Sequence[Outcome],
    asked: Sequence[Outcome] | None = None,
) -> set[shards.Lease]:
    """`asked`: outcomes whose shards are checked too, though nothing of them is to be written."""
    grouped: dict[ShardRun, list[Outcome]] = {
        outcome.unit.run: [] for outcome in (asked or outcomes) if not outcome.unit.run.lost
    }
    for outcome in outcomes:
        if outcome.unit.run in grouped:
            grouped[outcome.unit.run].append(outcome)
    if not grouped:
        return set()
    batches = [_batch(run, found) for run, found in grouped.items()]
    with transaction(database) as connection:
        return checkpoints.record(connection, owner, stripe, batches)


def _unrecorded(database: Engine, outcomes: Sequence[Outcome]) -> list[Outcome]:
    there: dict[ShardRun, set[tuple[int, int]]] = {}
    with reading(database) as connection:
        for run in {outcome.unit.run for outcome in outcomes}:
            there[run] = checkpoints.recorded(connection, run.claim, run.claim.epoch)
    return [
        outcome
        for outcome in outcomes
        if (outcome.unit.prompt_number, outcome.sample_index) not in there[outcome.unit.run]
    ]


def _unrecordable(outcome: Outcome, error: Exception) -> Outcome:
    why = getattr(error, "orig", None) or error
    return replace(
        outcome,
        generation=None,
        error_kind="unrecordable",
        error_detail=f"the answer cannot be stored: {type(why).__name__}: {why}"[:4000],
    )


def _batch(run: ShardRun, outcomes: list[Outcome]) -> ShardBatch:
    claim = run.claim
    run.sequence += 1
    batch = ShardBatch(claim.shard_id, claim.epoch, run.sequence, claim.job_id, claim.teacher)
    batch.rows = [_row(outcome) for outcome in outcomes]
    tokens = [
        (outcome.unit.prompt_number, outcome.sample_index, outcome.generation.tokens)
        for outcome in outcomes
        if outcome.generation is not None and outcome.generation.tokens is not None
    ]
    if tokens:
        batch.part = encode_part(token_table(tokens))
    tally = batch.tally
    for outcome in outcomes:
        made = outcome.generation
        tally.retries += outcome.attempts - 1
        tally.calls += outcome.attempts - 1 + (1 if made is None else made.calls)
        if made is None:
            tally.failed += 1
            continue
        tally.completed += 1
        tally.prompt_tokens += prompt_tokens_billed(made.usage) or 0
        tally.completion_tokens += made.usage.completion_tokens or 0
        cost = _cost(run.lane, made)
        tally.cost_nanousd += cost or 0
        tally.unpriced += cost is None
    return batch


def _cost(lane: LaneSpec, made: Generation) -> int | None:
    return nano(price_of(lane.price, made.usage, batch=lane.execution == Execution.BATCH))


def _json(value: JsonValue | list[dict[str, JsonValue]]) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


def _text(value: str | None) -> str | None:
    """PostgreSQL's text has no U+0000, and lone surrogates are no UTF-8: both become U+FFFD."""
    if value is None or (value.isprintable() and value.isascii()):
        return value
    return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode() if _odd(value) else value


def _odd(value: str) -> bool:
    if "\x00" in value:
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


_in_order: Callable[[dict[str, Any]], tuple[Any, ...]] = itemgetter(*COLUMNS)


def _row(outcome: Outcome) -> tuple[Any, ...]:
    unit, made = outcome.unit, outcome.generation
    claim, lane = unit.run.claim, unit.run.lane
    if made is None:
        status, usage, n_tokens = CompletionStatus.FAILED, None, None
    else:
        status, usage = CompletionStatus.COMPLETED, made.usage
        n_tokens = None if made.tokens is None else len(made.tokens)
    values = {
        "job_id": claim.job_id,
        "stage": claim.stage,
        "prompt_number": unit.prompt_number,
        "teacher": claim.teacher,
        "sample_index": outcome.sample_index,
        "shard_id": claim.shard_id,
        "status": str(status),
        "answer": _text(made.answer) if made else None,
        "reasoning": _text(made.reasoning) if made else None,
        "reasoning_source": made.reasoning_source if made else None,
        "reasoning_truncated": made.reasoning_truncated if made else False,
        "tool_calls": _json(made.tool_calls) if made else None,
        "finish_reason": made.finish_reason if made else None,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "reasoning_tokens": usage.reasoning_tokens if usage else None,
        "cached_tokens": usage.cached_tokens if usage else None,
        "cost_nanousd": _cost(lane, made) if made else None,
        "n_tokens": n_tokens,
        "attempts": outcome.attempts,
        "calls": outcome.attempts - 1 + (made.calls if made else 1),
        "latency_ms": outcome.latency_ms,
        "epoch": claim.epoch,
        "content_hash": unit.content_hash(outcome.sample_index),
        "request_hash": made.request_hash if made else None,
        "response_hash": made.response_hash if made else None,
        "sampling": unit.sampling_json,
        "engine": made.engine if made else None,
        "provider_extra": _json(made.provider_extra) if made else None,
        "prompt_license": unit.prompt_license,
        "teacher_license": lane.license,
        "reused_from": None,
        "error_kind": outcome.error_kind,
        "error_detail": _text(outcome.error_detail),
    }
    return _in_order(values)


def finish_shard(
    database: Engine,
    storage: Storage,
    owner: str,
    run: ShardRun,
    binding: dict[str, JsonValue],
    level: int,
    profile: Profile,
    still_ours: Callable[[], bool],
) -> str:
    """Compact a shard whose samples are all recorded, and mark it finished.

    The file is written and synced before its pointer is committed; its name holds the epoch, so that a worker whose
    lease ran out never touches its successor's. Returns `finished`; `lost` where another worker owns the shard;
    `short` where rows are missing again (failed ones were asked for a second time): then the shard goes on.
    """
    claim = run.claim
    with reading(database) as connection:
        parts = checkpoints.parts_of(connection, claim.shard_id)
        old = checkpoints.segment_of(connection, claim.shard_id)
    written = None
    generation = 1 if old is None else old[1] + 1
    if parts:
        with transaction(database) as connection:
            shards.begin_finalizing(connection, claim.job_id)
        tables = [decode_part(part) for part in parts]
        if old is not None:
            tables.insert(0, read_segment(storage, old[0]))
        path = f"segments/{claim.job_id}/{claim.shard_id:08d}-e{claim.epoch}-g{generation}.parquet"
        written = write_segment(storage, path, tables, binding, level, profile)
    outcome = _commit_end(database, owner, claim, generation, written) if still_ours() else "lost"
    if written is not None:
        # The loser's file is an orphan at once; a superseded generation is one from now on.
        gone = written.path if outcome != "finished" else (old[0] if old is not None else None)
        if gone is not None:
            storage.delete(gone)
    return outcome


class _Short(Exception):
    """Rolls the transaction back: the shard is ours, but not all of its rows are there."""


def _commit_end(
    database: Engine, owner: str, claim: shards.Claim, generation: int, written: SegmentFile | None
) -> str:
    try:
        with transaction(database) as connection:
            if not shards.held(connection, owner, [claim.lease]):
                return "lost"
            segment_id = None
            if written is not None:
                segment_id = checkpoints.add_segment(
                    connection,
                    claim.shard_id,
                    generation,
                    written.path,
                    written.sha256,
                    written.n_bytes,
                    written.n_rows,
                    written.k,
                )
            if not shards.finish(connection, owner, claim.shard_id, claim.epoch, segment_id):
                raise _Short
    except _Short:
        return "short"
    return "finished"
