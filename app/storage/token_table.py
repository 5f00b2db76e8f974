"""Token columns as an Arrow table, one row per completion, and the codec of a checkpoint's part.

    prompt_number    int64
    sample_index     int16
    k                int16           candidates per position
    token_ids        list<int32>     [T]
    topk_ids         list<int32>     [T·k], position by position
    topk_logprobs    list<float32>   [T·k]
    sampled_logprob  list<float32>   [T]
    sampled_rank     list<int32>     [T]
    tail_logmass     list<float32>   [T]
    sampled          list<bool>      [T]
    prompt_ids       list<int32>     [P]

What each number means is said at `app.domain.columns.TokenColumns`.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from app.domain.columns import TokenColumns

SCHEMA: Final = pa.schema(
    [
        pa.field("prompt_number", pa.int64(), nullable=False),
        pa.field("sample_index", pa.int16(), nullable=False),
        pa.field("k", pa.int16(), nullable=False),
        *(
            pa.field(name, pa.list_(pa.field("element", value, nullable=False)), nullable=False)
            for name, value in (
                ("token_ids", pa.int32()),
                ("topk_ids", pa.int32()),
                ("topk_logprobs", pa.float32()),
                ("sampled_logprob", pa.float32()),
                ("sampled_rank", pa.int32()),
                ("tail_logmass", pa.float32()),
                ("sampled", pa.bool_()),
                ("prompt_ids", pa.int32()),
            )
        ),
    ]
)
_PER_TOKEN: Final = ("token_ids", "sampled_logprob", "sampled_rank", "tail_logmass", "sampled")
# A part is small: handing its buffers to a pool of threads costs more than compressing them.
_PART_OPTIONS: Final = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)


def token_table(rows: Sequence[tuple[int, int, TokenColumns]]) -> pa.Table:
    """(prompt number, sample index, columns) of each completion → a table in the same order."""
    if not rows:
        return SCHEMA.empty_table()
    columns = [row[2] for row in rows]
    lengths = np.array([len(c) for c in columns], np.int64)
    ks = np.array([c.k for c in columns], np.int16)
    token_offsets = offsets_of(lengths)
    candidate_offsets = offsets_of(lengths * ks)
    prompt_offsets = offsets_of(np.array([c.prompt_ids.shape[0] for c in columns], np.int64))
    arrays: dict[str, Any] = {
        "prompt_number": pa.array(np.array([row[0] for row in rows], np.int64)),
        "sample_index": pa.array(np.array([row[1] for row in rows], np.int16)),
        "k": pa.array(ks),
    }
    for name in _PER_TOKEN:
        arrays[name] = _lists(name, token_offsets, np.concatenate([getattr(c, name) for c in columns]))
    for name in ("topk_ids", "topk_logprobs"):
        flat = np.concatenate([getattr(c, name).reshape(-1) for c in columns])
        arrays[name] = _lists(name, candidate_offsets, flat)
    arrays["prompt_ids"] = _lists(
        "prompt_ids", prompt_offsets, np.concatenate([c.prompt_ids for c in columns])
    )
    return pa.Table.from_arrays([arrays[name] for name in SCHEMA.names], schema=SCHEMA)


def encode_part(table: pa.Table) -> bytes:
    """An Arrow IPC stream (lz4 buffers): what a checkpoint keeps until its shard ends."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=_PART_OPTIONS) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def decode_part(payload: bytes) -> pa.Table:
    """The table of `encode_part`."""
    with pa.ipc.open_stream(pa.py_buffer(payload)) as reader:
        return reader.read_all()


def columns_of(table: pa.Table, row: int) -> TokenColumns:
    """One completion's columns: read-only views where Arrow allows it."""
    k = table.column("k")[row].as_py()
    token_ids = _values(table, "token_ids", row)
    shape = (token_ids.shape[0], k)
    return TokenColumns(
        token_ids=token_ids,
        topk_ids=_values(table, "topk_ids", row).reshape(shape),
        topk_logprobs=_values(table, "topk_logprobs", row).reshape(shape),
        sampled_logprob=_values(table, "sampled_logprob", row),
        sampled_rank=_values(table, "sampled_rank", row),
        tail_logmass=_values(table, "tail_logmass", row),
        sampled=_values(table, "sampled", row),
        prompt_ids=_values(table, "prompt_ids", row),
    )


def _values(table: pa.Table, name: str, row: int) -> NDArray[Any]:
    values: NDArray[Any] = table.column(name)[row].values.to_numpy(zero_copy_only=False)
    return values


def offsets_of(lengths: NDArray[np.int64]) -> pa.Array:
    """List offsets of rows with so many items: int32 [rows + 1]."""
    ends = np.concatenate(([0], np.cumsum(lengths)))
    if ends[-1] >= 2**31:
        raise OverflowError("more than 2³¹ numbers in one table: make smaller ones")
    return pa.array(ends.astype(np.int32))


def _lists(name: str, offsets: pa.Array, values: NDArray[Any]) -> pa.Array:
    return pa.ListArray.from_arrays(offsets, pa.array(values), type=SCHEMA.field(name).type)
