"""Segments: the token columns of one shard as an immutable Parquet file that any tool reads.

Profile `fp16`: candidates' logprobs are float32 rounded to the nearest fp16 value (error ≤ 1/256 nat down to −16,
≤ 1/128 down to −32), everything else exact. The columns and their meaning: `app.storage.token_table`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import JsonValue

from app.errors import StorageError
from app.storage.places import Storage
from app.storage.token_table import SCHEMA

FORMAT: Final = "retort-segment-1"
METADATA_KEY: Final = b"retort"
GROUP_BYTES: Final = 32 * 1024 * 1024
"""Uncompressed size that a row group aims at: a reader holds one at a time."""

_SPLIT: Final = ("token_ids", "topk_ids", "topk_logprobs", "sampled_logprob", "sampled_rank", "tail_logmass")


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A written segment. `sha256` is the 32 raw bytes of the digest over the file."""

    path: str
    sha256: bytes
    n_bytes: int
    n_rows: int
    k: int


def write_segment(
    storage: Storage,
    path: str,
    tables: Sequence[pa.Table],
    metadata: Mapping[str, JsonValue],
    level: int = 9,
) -> SegmentFile:
    """Write the completions of `tables` as one segment, sorted by (prompt number, sample index).

    `metadata` binds the numbers to what they mean (tokenizer, template, engine, sampling); it goes into the file's
    key-value metadata as JSON under `retort`. Equal input gives equal bytes. Raises `StorageError`, also for a
    completion that is there twice.
    """
    table = merged(tables)
    k = int(pc.max(table.column("k")).as_py() or 0)
    bound: dict[str, JsonValue] = {**metadata, "format": FORMAT, "profile": "fp16", "k": k}
    rounded = table.set_column(
        table.schema.get_field_index("topk_logprobs"), SCHEMA.field("topk_logprobs"), _rounded(table)
    )

    def write(file: IO[bytes]) -> None:
        schema = SCHEMA.with_metadata({METADATA_KEY: orjson.dumps(bound, option=orjson.OPT_SORT_KEYS)})
        with pq.ParquetWriter(file, schema, **writer_options(level)) as writer:
            for group in groups(rounded):
                writer.write_table(group.cast(schema), row_group_size=max(1, group.num_rows))

    written = storage.write_atomically(path, write)
    return SegmentFile(path, written.sha256, written.n_bytes, table.num_rows, k)


def read_segment(storage: Storage, path: str) -> pa.Table:
    """The whole segment in the columns of `token_table.SCHEMA`. Raises `StorageError` where it cannot be read."""
    with storage.open(path) as file:
        try:
            return pq.ParquetFile(file).read().replace_schema_metadata(None).cast(SCHEMA)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StorageError(f"segment {path} is damaged: {error}") from error


def segment_metadata(storage: Storage, path: str) -> dict[str, JsonValue]:
    """What the segment says its numbers are bound to."""
    with storage.open(path) as file:
        try:
            found = pq.ParquetFile(file).schema_arrow.metadata or {}
            value: dict[str, JsonValue] = orjson.loads(found[METADATA_KEY])
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise StorageError(f"{path} is not a segment: {error}") from error
    return value


def verify_segment(storage: Storage, path: str, sha256: bytes) -> None:
    """Raises `StorageError` unless the file's bytes are the ones that were committed."""
    with storage.open(path) as file:
        digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type] # every reader here has readinto
    found = digest.digest()
    if found != sha256:
        raise StorageError(f"segment {path} is damaged: SHA-256 {found.hex()} instead of {sha256.hex()}")


def merged(tables: Sequence[pa.Table]) -> pa.Table:
    """One table of all completions, sorted by (prompt number, sample index). Raises `StorageError` on a double."""
    table = pa.concat_tables([t.cast(SCHEMA) for t in tables]) if tables else SCHEMA.empty_table()
    numbers = table.column("prompt_number").to_numpy()
    indices = table.column("sample_index").to_numpy()
    order = np.lexsort((indices, numbers))
    numbers, indices = numbers[order], indices[order]
    double = np.flatnonzero((numbers[1:] == numbers[:-1]) & (indices[1:] == indices[:-1]))
    if double.size:
        row = int(double[0])
        raise StorageError(f"prompt {numbers[row]}, sample {indices[row]} has token columns twice")
    if (order[1:] > order[:-1]).all():
        return table.combine_chunks()
    return table.take(pa.array(order)).combine_chunks()


def groups(table: pa.Table) -> Iterator[pa.Table]:
    """Consecutive slices of about `GROUP_BYTES`, at least one row each; none for an empty table."""
    if table.num_rows == 0:
        return
    per_row = sum(
        (
            pc.list_value_length(table.column(field.name)).to_numpy().astype(np.int64) * 4
            for field in table.schema
            if pa.types.is_list(field.type)
        ),
        start=np.zeros(table.num_rows, np.int64),
    )
    ends = np.cumsum(per_row)
    start = 0
    while start < table.num_rows:
        before = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + GROUP_BYTES, side="right")))
        yield table.slice(start, end - start)
        start = end


def writer_options(level: int) -> dict[str, Any]:
    """How the signal columns are laid down: bytes of equal place together, no dictionary, zstd."""
    return {
        "compression": "zstd",
        "compression_level": level,
        "use_dictionary": False,
        "column_encoding": {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in _SPLIT},
        "data_page_version": "2.0",
        "data_page_size": 4 * 1024 * 1024,
        "write_statistics": ["prompt_number", "sample_index"],
        "store_schema": True,
    }


def round_to_fp16(values: "np.ndarray[Any, np.dtype[np.float32]]") -> "np.ndarray[Any, np.dtype[np.float32]]":
    """float32 values at the nearest fp16 value; below its range (−65,504) they become −inf."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def _rounded(table: pa.Table) -> pa.ChunkedArray:
    lists = [
        pa.ListArray.from_arrays(
            chunk.offsets,
            pa.array(round_to_fp16(chunk.values.to_numpy())),
            type=SCHEMA.field("topk_logprobs").type,
        )
        for chunk in table.column("topk_logprobs").chunks
    ]
    return pa.chunked_array(lists, type=SCHEMA.field("topk_logprobs").type)
