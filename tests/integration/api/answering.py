"""A worker's part, played by hand with the engine's own functions: claim, record, write the segment, finish."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sqlalchemy import Engine

from app.db import checkpoints, lanes, shards
from app.db.checkpoints import COLUMNS, ShardBatch
from app.db.session import reading, transaction
from app.db.shards import Claim
from app.domain.columns import TokenColumns, token_columns
from app.domain.fingerprints import sha256
from app.storage.places import Storage
from app.storage.segments import write_segment
from app.storage.token_table import decode_part, encode_part, token_table

WORKER = "by hand"

# (prompt number, sample index) → kind of error, or None: it is answered.
Fate = Callable[[int, int], str | None]


def claimed(engine: Engine, job_id: str) -> list[Claim]:
    """All shards of the job that can be claimed, under our lease."""
    found: list[Claim] = []
    while True:
        with transaction(engine) as connection:
            lanes = [lane for lane in shards.candidates(connection, ()) if lane.job_id == job_id]
            claim = shards.claim(connection, lanes[0], WORKER, 3600, 1) if lanes else None
        if claim is None:
            return found
        found.append(claim)


def tokens_of(number: int, index: int) -> TokenColumns:
    """Three tokens with two candidates each, different for every completion."""
    ids = np.array([[number, 7], [index, 8], [9, 10]], np.int32)
    logprobs = np.array([[-0.25, -2.0], [-0.5, -1.5], [-0.125, -np.inf]], np.float32)
    sampled = np.array([-0.25, -1.5, -0.125], np.float32)
    drawn = np.array([number, 8, 9], np.int32)
    return token_columns(drawn, ids, logprobs, sampled, k=2, prompt_ids=np.array([1, 2], np.int32))


def record(engine: Engine, claim: Claim, n: int, fate: Fate, sequence: int = 1, tokens: bool = True) -> None:
    """One checkpoint with all that is missing of a shard."""
    with reading(engine) as connection:
        done = checkpoints.recorded(connection, claim)
        lane = lanes.load(connection, claim.job_id, claim.teacher)
        prompts = checkpoints.prompts_of(
            connection, claim.job_id, claim.first_prompt, claim.end_prompt, lane.spec.name
        )
    licences = {prompt.number: prompt.license for prompt in prompts}
    batch = ShardBatch(claim.shard_id, claim.epoch, sequence, claim.job_id, claim.teacher)
    columns = []
    for number in licences:
        for index in range(n):
            if (number, index) in done:
                continue
            error = fate(number, index)
            batch.rows.append(_row(claim, number, index, error, tokens, licences[number]))
            batch.tally.calls += 1
            if error is None:
                batch.tally.completed += 1
                batch.tally.prompt_tokens += 5
                batch.tally.completion_tokens += 3
                columns.append((number, index, tokens_of(number, index)))
            else:
                batch.tally.failed += 1
    if tokens and columns:
        batch.part = encode_part(token_table(columns))
    with transaction(engine) as connection:
        assert checkpoints.record(connection, WORKER, 0, [batch]) == {claim.lease}


def finish(engine: Engine, storage: Storage, claim: Claim) -> None:
    """The shard's parts become its segment, and it is finished."""
    with reading(engine) as connection:
        parts = checkpoints.parts_of(connection, claim.shard_id)
    segment = None
    if parts:
        path = f"segments/{claim.job_id}/{claim.shard_id}-e{claim.epoch}.parquet"
        segment = write_segment(storage, path, [decode_part(part) for part in parts], {})
    with transaction(engine) as connection:
        segment_id = None
        if segment is not None:
            segment_id = checkpoints.add_segment(
                connection,
                claim.shard_id,
                1,
                segment.path,
                segment.sha256,
                segment.n_bytes,
                segment.n_rows,
                segment.k,
            )
        assert shards.finish(connection, WORKER, claim.shard_id, claim.epoch, segment_id)


def work_off(engine: Engine, storage: Storage, job_id: str, n: int = 1, fate: Fate = lambda *_: None) -> None:
    """The whole job, to its end."""
    for claim in claimed(engine, job_id):
        record(engine, claim, n, fate)
        finish(engine, storage, claim)


def _row(
    claim: Claim, number: int, index: int, error: str | None, tokens: bool, licence: str
) -> tuple[Any, ...]:
    good = error is None
    values: dict[str, Any] = dict.fromkeys(COLUMNS)
    values |= {
        "job_id": claim.job_id,
        "stage": claim.stage,
        "prompt_number": number,
        "teacher": claim.teacher,
        "sample_index": index,
        "shard_id": claim.shard_id,
        "status": "completed" if good else "failed",
        "answer": f"answer {number}.{index}" if good else None,
        "reasoning_truncated": False,
        "finish_reason": "stop" if good else None,
        "prompt_tokens": 5 if good else None,
        "completion_tokens": 3 if good else None,
        "n_tokens": 3 if good and tokens else None,
        "attempts": 1,
        "calls": 1,
        "latency_ms": 12,
        "epoch": claim.epoch,
        "content_hash": sha256(b"%d.%d" % (number, index)),
        "prompt_license": licence,
        "teacher_license": "Apache-2.0",
        "error_kind": error,
        "error_detail": None if good else "it went wrong",
    }
    return tuple(values[name] for name in COLUMNS)
