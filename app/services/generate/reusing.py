"""`reuse: true`: samples that an earlier job of the project has are copied, and nobody is asked for them.

Equal is what has the same content hash: teacher identity, prompt, sampling parameters, sample index. The copy is a row
of its own, with its own tokens, that names where it came from; it cost nothing and no call.
"""

import logging
from collections import deque

import pyarrow as pa
from sqlalchemy import Engine

from app.db import checkpoints
from app.db.checkpoints import COLUMNS, ShardBatch
from app.db.reusing import Equal, equal_rows
from app.db.session import reading, transaction
from app.errors import StorageError
from app.services.generate.work import ShardRun, Unit
from app.storage.places import Storage
from app.storage.segments import read_segment
from app.storage.token_table import SCHEMA, encode_part

log = logging.getLogger(__name__)

Sample = tuple[int, int]  # prompt number, sample index


def take(database: Engine, storage: Storage, owner: str, stripe: int, run: ShardRun) -> bool:
    """Record what can be reused, in one fenced transaction, and take it out of the run. False: the lease is lost.

    Reads and writes files and the database: not for the event loop. The run is in nobody else's hands yet.
    """
    claim, lane = run.claim, run.lane
    asked = {unit.content_hash(index) for unit in run.pending for index in unit.sample_indices}
    with reading(database) as connection:
        equal = equal_rows(connection, lane.project_id, claim.job_id, claim.teacher, sorted(asked))
    found: dict[Sample, Equal] = {}
    for unit in run.pending:  # equal prompts may stand twice in a set: each gets the sample
        for index in unit.sample_indices:
            if (same := equal.get(unit.content_hash(index))) is not None:
                found[(unit.prompt_number, index)] = same
    tables = _tokens(storage, found)
    if not found:
        return True
    run.sequence += 1
    batch = ShardBatch(claim.shard_id, claim.epoch, run.sequence, claim.job_id, claim.teacher)
    for unit in run.pending:
        for index in unit.sample_indices:
            if (same := found.get((unit.prompt_number, index))) is not None:
                batch.rows.append(_copy(run, unit, index, same))
                batch.tally.prompt_tokens += same.row.prompt_tokens or 0
                batch.tally.completion_tokens += same.row.completion_tokens or 0
    batch.tally.completed = batch.tally.reused = len(batch.rows)
    if tables:
        batch.part = encode_part(pa.concat_tables(tables))
    with transaction(database) as connection:
        if not checkpoints.record(connection, owner, stripe, [batch]):
            return False
    log.info("shard %d: %d samples are reused", claim.shard_id, len(batch.rows))
    _take_out(run, set(found))
    return True


def _tokens(storage: Storage, found: dict[Sample, Equal]) -> list[pa.Table]:
    """Token columns of the samples, numbered anew. What cannot be read is taken out of `found`: it is asked for."""
    by_segment: dict[str, list[tuple[Sample, Equal]]] = {}
    for sample, same in found.items():
        if same.segment is not None:
            by_segment.setdefault(same.segment, []).append((sample, same))
    tables = []
    for path, samples in by_segment.items():
        try:
            table = read_segment(storage, path)
        except StorageError as error:  # a takedown may have replaced it just now
            log.warning("nothing is reused of %s: %s", path, error.detail)
            table = SCHEMA.empty_table()
        numbers = zip(table["prompt_number"].to_pylist(), table["sample_index"].to_pylist(), strict=True)
        places = {key: place for place, key in enumerate(numbers)}
        taken: list[tuple[Sample, int]] = []
        for sample, same in samples:
            place = places.get((same.row.prompt_number, same.row.sample_index))
            if place is None:
                del found[sample]
            else:
                taken.append((sample, place))
        if taken:
            part = table.take(pa.array([place for _, place in taken]))
            part = part.set_column(
                0, SCHEMA.field(0), pa.array([s[0] for s, _ in taken], SCHEMA.field(0).type)
            )
            part = part.set_column(
                1, SCHEMA.field(1), pa.array([s[1] for s, _ in taken], SCHEMA.field(1).type)
            )
            tables.append(part)
    return tables


def _copy(run: ShardRun, unit: Unit, index: int, same: Equal) -> tuple[object, ...]:
    claim = run.claim
    values = {name: getattr(same.row, name) for name in COLUMNS}
    values |= {
        "job_id": claim.job_id,
        "stage": claim.stage,
        "prompt_number": unit.prompt_number,
        "teacher": claim.teacher,
        "sample_index": index,
        "shard_id": claim.shard_id,
        "cost_nanousd": 0,
        "attempts": 0,
        "calls": 0,
        "latency_ms": 0,
        "epoch": claim.epoch,
        "sampling": unit.sampling_json,
        "prompt_license": unit.prompt_license,
        "teacher_license": run.lane.license,
        "reused_from": same.origin,
    }
    return tuple(values[name] for name in COLUMNS)


def _take_out(run: ShardRun, done: set[Sample]) -> None:
    left: deque[Unit] = deque()
    for unit in run.pending:
        missing = tuple(i for i in unit.sample_indices if (unit.prompt_number, i) not in done)
        if missing:
            unit.sample_indices = missing
            left.append(unit)
    run.pending = left
    run.n_missing -= len(done)
