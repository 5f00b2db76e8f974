"""Segments: the token columns of one shard as an immutable Parquet file that any tool reads.

The columns and their meaning: `app.storage.token_table`. Everything is exact but the candidates' logprobs:

    fp16      float32 rounded to the nearest fp16 value: the error is ≤ 1/256 nat down to −16, ≤ 1/128 down to −32
    compact   steps of a stated size, ids numbered by how often they come (`app.storage.compact`): the error is at most
              `logprob_error` anywhere, 1/128 nat unless another one was asked for

The file's key-value metadata holds, as JSON under `retort`, the profile and what the numbers are bound to.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import JsonValue

from app.errors import StorageError
from app.storage import compact
from app.storage.places import Storage
from app.storage.segment_reader import METADATA_KEY, SegmentReader
from app.storage.token_table import SCHEMA, offsets_of

FORMAT: Final = "retort-segment-1"
GROUP_BYTES: Final = 32 * 1024 * 1024
"""Uncompressed size that a row group aims at: a reader holds one at a time."""

_SPLIT: Final = (
    "token_ids",
    "topk_ids",
    "topk_logprobs",
    "topk_code",
    "topk_step",
    "id_weight",
    "sampled_logprob",
    "sampled_rank",
    "tail_logmass",
)

_NOISE: Final = ("topk_code.list.element", "topk_step.list.element")
"""Next to nothing repeats in them: looking for repetitions, as higher levels do, makes them larger."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How candidates' logprobs are kept. `error`: the bound of `compact` in nats; a step is twice that."""

    name: Literal["fp16", "compact"] = "fp16"
    error: float = compact.ERROR

    @property
    def step(self) -> float:
        return 2 * self.error

    def told(self) -> dict[str, JsonValue]:
        """For a segment's metadata."""
        if self.name == "fp16":
            return {"profile": "fp16"}
        return {"profile": "compact", "logprob_error": self.error, "logprob_step": self.step}


FP16: Final = Profile()


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
    profile: Profile = FP16,
) -> SegmentFile:
    """Write the completions of `tables` as one segment, sorted by (prompt number, sample index).

    `metadata` binds the numbers to what they mean (tokenizer, template, engine, sampling). Equal input gives equal
    bytes, and what was read from a segment is written again without further loss. Raises `StorageError`, also for a
    completion that is there twice.
    """
    table = merged(tables)
    k = int(pc.max(table.column("k")).as_py() or 0)
    bound: dict[str, JsonValue] = {**metadata, "format": FORMAT, "k": k, **profile.told()}
    plain = compact.COMPACT if profile.name == "compact" else SCHEMA
    schema = plain.with_metadata({METADATA_KEY: orjson.dumps(bound, option=orjson.OPT_SORT_KEYS)})

    def write(file: IO[bytes]) -> None:
        with pq.ParquetWriter(file, schema, **writer_options(level, schema)) as writer:
            for group in groups(table):
                laid = compact.encoded(group, profile.step) if profile.name == "compact" else rounded(group)
                writer.write_table(laid.cast(schema), row_group_size=max(1, group.num_rows))

    written = storage.write_atomically(path, write)
    return SegmentFile(path, written.sha256, written.n_bytes, table.num_rows, k)


def read_segment(storage: Storage, path: str) -> pa.Table:
    """The whole segment in the columns of `token_table.SCHEMA`. Raises `StorageError` where it cannot be read."""
    with SegmentReader(storage, path) as reader:
        groups = [reader.group(number) for number in range(len(reader.bounds))]
    return pa.concat_tables(groups) if groups else SCHEMA.empty_table()


def segment_metadata(storage: Storage, path: str) -> dict[str, JsonValue]:
    """What the segment says its numbers are bound to."""
    with SegmentReader(storage, path) as reader:
        return reader.metadata


def rewrite_segment(
    storage: Storage, path: str, target: str, without: Collection[tuple[int, int]], level: int = 9
) -> SegmentFile:
    """A segment's next generation at `target`: the same less the completions `without`, (prompt number, sample index).

    Profile and binding stay, and no number that stays changes. Whoever asks commits the pointer and deletes `path`.
    """
    with SegmentReader(storage, path) as reader:
        groups = [_less(reader.group(number), without) for number in range(len(reader.bounds))]
        metadata = reader.metadata
    profile = FP16
    if metadata["profile"] == "compact":
        profile = Profile("compact", float(str(metadata["logprob_error"])))
    return write_segment(storage, target, groups, metadata, level, profile)


def _less(table: pa.Table, without: Collection[tuple[int, int]]) -> pa.Table:
    places = zip(
        table.column("prompt_number").to_pylist(), table.column("sample_index").to_pylist(), strict=True
    )
    return table.filter(pa.array([place not in without for place in places], pa.bool_()))


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


def writer_options(level: int, schema: pa.Schema) -> dict[str, Any]:
    """How the signal columns are laid down: bytes of equal place together, no dictionary, zstd."""
    leaves = [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in schema]
    return {
        "compression": "zstd",
        "compression_level": {path: 1 if path in _NOISE else level for path in leaves},
        "use_dictionary": False,
        "column_encoding": {
            f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in _SPLIT if name in schema.names
        },
        "data_page_version": "2.0",
        "data_page_size": 4 * 1024 * 1024,
        "write_statistics": ["prompt_number", "sample_index"],
        "store_schema": True,
    }


def round_to_fp16(values: "np.ndarray[Any, np.dtype[np.float32]]") -> "np.ndarray[Any, np.dtype[np.float32]]":
    """float32 values at the nearest fp16 value; below its range (−65,504) they become −inf."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def rounded(table: pa.Table) -> pa.Table:
    """The same with candidates' logprobs as the profile `fp16` keeps them."""
    place = table.schema.get_field_index("topk_logprobs")
    field = SCHEMA.field("topk_logprobs")
    lists = table.column(place).combine_chunks()
    values = pa.array(round_to_fp16(lists.flatten().to_numpy()))
    counts = lists.value_lengths().to_numpy().astype(np.int64)
    return table.set_column(
        place, field, pa.ListArray.from_arrays(offsets_of(counts), values, type=field.type)
    )
