"""Profile `compact`: candidates' logprobs as steps of a stated size, their ids numbered by how often they come.

A row group is a table of `token_table.SCHEMA` in which two columns are replaced by three. Each has all values of the
row group in its first row and empty lists in the others:

    id_weight   list<int32>  [V]       for the token ids 0, 1, 2 …: the bit length of how often the id is a candidate
    topk_code   list<int32>  [Σ T·k]   a candidate's place among the ids when they are sorted by weight, greatest first,
                                       then by id; −1 where there is no candidate
    topk_step   list<int32>  [Σ T·k]   how many steps the candidate lies below the one before it in its position, the
                                       first one below 0; 0 where there is no candidate

Codes and steps lie rank by rank: the first candidates of all positions, then all second ones. `decoded` is the whole
reader. A step is twice the error bound: 1/64 nat for 1/128 nat. The sums are rounded, not the differences, so that
errors do not add up.
"""

from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from app.storage.token_table import SCHEMA, offsets_of

ERROR: Final = 1 / 128
"""The default bound of a stored logprob's error, in nats."""

_LIST: Final = pa.list_(pa.field("element", pa.int32(), nullable=False))
COLUMNS: Final = tuple(
    pa.field(name, _LIST, nullable=False) for name in ("id_weight", "topk_code", "topk_step")
)
COMPACT: Final = pa.schema([f for f in SCHEMA if f.name not in ("topk_ids", "topk_logprobs")] + list(COLUMNS))
_DEEPEST: Final = float(2**30)


def decoded(group: pa.Table, step: float) -> pa.Table:
    """A row group as it was before: ids as they are, logprobs within half a step, −1 and −inf where there is none."""
    weight, code, steps = (
        group.column(field.name).combine_chunks().flatten().to_numpy() for field in COLUMNS
    )
    counts, ks = _shape(group)
    order, first = _ranked(ks)
    codes, depth = np.empty_like(code), np.empty(code.shape, np.int64)
    codes[order], depth[order] = code, steps
    depth[first[1:]] -= np.add.reduceat(depth, first)[:-1] if first.size else 0  # each position begins at 0
    depth = np.cumsum(depth)
    ids = np.append(np.argsort(-weight, kind="stable").astype(np.int32), np.int32(-1))[codes]
    logprobs = np.where(codes < 0, np.float32(-np.inf), (depth * -step).astype(np.float32))
    made = {
        "topk_ids": _lists("topk_ids", counts, ids),
        "topk_logprobs": _lists("topk_logprobs", counts, logprobs),
    }
    return _table(SCHEMA, made, group)


def encoded(table: pa.Table, step: float) -> pa.Table:
    """A table of `SCHEMA` as one row group of `COMPACT`."""
    ids, logprobs = (
        table.column(n).combine_chunks().flatten().to_numpy() for n in ("topk_ids", "topk_logprobs")
    )
    _, ks = _shape(table)
    order, first = _ranked(ks)
    there = ids >= 0
    depth = np.rint(np.minimum(np.where(there, logprobs.astype(np.float64) / -step, 0.0), _DEEPEST))
    steps = np.diff(depth.astype(np.int64), prepend=0)
    steps[first] = depth[first].astype(np.int64)
    steps[~there] = 0  # the missing ones are a position's last
    weight = np.ceil(np.log2(np.bincount(ids[there]) + 1)).astype(np.int32)
    place = np.empty(weight.size + 1, np.int32)
    place[np.argsort(-weight, kind="stable")] = np.arange(weight.size, dtype=np.int32)
    place[-1] = -1
    values = (weight, place[ids][order], steps[order].astype(np.int32))
    made = {}
    for field, one in zip(COLUMNS, values, strict=True):
        counts = np.zeros(table.num_rows, np.int64)
        counts[:1] = one.size
        made[field.name] = pa.ListArray.from_arrays(offsets_of(counts), pa.array(one), type=field.type)
    return _table(COMPACT, made, table)


def _shape(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(candidates of each row, candidates of each position)."""
    k = table.column("k").to_numpy().astype(np.int64)
    tokens = table.column("token_ids").combine_chunks().value_lengths().to_numpy().astype(np.int64)
    return tokens * k, np.repeat(k, tokens)


def _ranked(ks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(for each place rank by rank, the place position by position; where each position's first candidate lies)."""
    first = np.cumsum(ks) - ks
    rank = np.arange(int(ks.sum())) - np.repeat(first, ks)
    return np.argsort(rank.astype(np.int16), kind="stable"), first[ks > 0]


def _lists(name: str, counts: NDArray[np.int64], values: NDArray[Any]) -> pa.Array:
    return pa.ListArray.from_arrays(offsets_of(counts), pa.array(values), type=SCHEMA.field(name).type)


def _table(schema: pa.Schema, made: dict[str, pa.Array], rest: pa.Table) -> pa.Table:
    arrays = [made[name] if name in made else rest.column(name) for name in schema.names]
    return pa.Table.from_arrays(arrays, schema=schema)
