"""Arithmetic on list columns, whole columns at a time: no loop over rows."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def lengths(column: pa.Array) -> NDArray[np.int64]:
    """Items of each row's list; 0 where it is null. int64 [rows]."""
    return np.asarray(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), np.int64)


def flat(column: pa.Array) -> NDArray[Any]:
    """All rows' items, one after another; null lists have none."""
    values: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    return values


def validity(column: pa.Array) -> NDArray[np.bool_]:
    """True where a row is not null. bool [rows]."""
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), np.bool_)


def list_column(
    values: NDArray[Any] | pa.Array,
    counts: NDArray[np.int64],
    kind: pa.DataType,
    valid: NDArray[np.bool_] | None = None,
) -> pa.Array:
    """A list column from its flat items and the number of each row's; a row that is not `valid` has count 0."""
    offsets = pa.array(offsets_of(counts).astype(np.int32))
    items = values if isinstance(values, pa.Array) else pa.array(values)
    items = items.cast(kind.value_type)
    mask = None if valid is None or valid.all() else pa.array(~valid)
    return pa.ListArray.from_arrays(offsets, items, type=kind, mask=mask)


def offsets_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 and the running sums: int64 [rows + 1]. Raises `OverflowError` at 2³¹ items, more than a list column holds."""
    ends = np.zeros(counts.shape[0] + 1, np.int64)
    np.cumsum(counts, out=ends[1:])
    if ends[-1] >= 2**31:
        raise OverflowError("more than 2³¹ items in one batch")
    return ends


def positions(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """starts[i], starts[i] + 1 … for each row, `counts[i]` of them: where each row's items lie in a flat array."""
    total = int(counts.sum())
    before = np.repeat(offsets_of(counts)[:-1], counts)
    return np.arange(total, dtype=np.int64) - before + np.repeat(starts, counts)


def joined(
    first: NDArray[Any],
    first_counts: NDArray[np.int64],
    second: NDArray[Any],
    second_counts: NDArray[np.int64],
) -> NDArray[Any]:
    """Row by row the items of `first`, then those of `second`, flat. Counts: `first_counts + second_counts`."""
    ends = offsets_of(first_counts + second_counts)
    made = np.empty(int(ends[-1]), np.result_type(first, second))
    made[positions(ends[:-1], first_counts)] = first
    made[positions(ends[:-1] + first_counts, second_counts)] = second
    return made
