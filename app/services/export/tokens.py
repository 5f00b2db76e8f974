"""Token columns of a page of rows: taken out of segments and parts, a row group in memory at a time and shard."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sqlalchemy import Connection

from app.db import export_rows as rows
from app.db.export_rows import Columns
from app.errors import StorageError
from app.exporters import lists
from app.exporters.batch import TOKENS
from app.storage.places import Storage
from app.storage.segment_reader import SegmentReader
from app.storage.segments import rounded
from app.storage.token_table import SCHEMA, decode_part

Keys = NDArray[np.int64]
_FP16 = "float16"


def _keys(prompt_numbers: Any, sample_indices: Any) -> Keys:
    """One number a row, in the order of (prompt number, sample index)."""
    found: Keys = (np.asarray(prompt_numbers, np.int64) << 16) + np.asarray(sample_indices, np.int64)
    return found


class Tokens:
    """Reads forwards: what a page's shards had open stays open for the next page, which mostly goes on in them."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._open: dict[str, _Segment] = {}

    def columns(self, connection: Connection, page: Columns) -> list[pa.ChunkedArray]:
        """The columns of `TOKENS` of these rows, null where the teacher told no tokens. Raises `StorageError`."""
        try:
            return self._columns(connection, page)
        except StorageError:
            connection.rollback()  # a shard's segment was rewritten a moment ago: its new pointer is read
            self.close()
            return self._columns(connection, page)

    def _columns(self, connection: Connection, page: Columns) -> list[pa.ChunkedArray]:
        shards = np.array(page["shard_id"], np.int64)
        told = lists.validity(pa.array(page["n_tokens"], pa.int32()))
        wanted: list[int] = np.unique(shards[told]).tolist()
        # Parts first: a shard that is compacted in between has its rows in both, never in neither.
        parts = rows.parts(connection, wanted) if wanted else {}
        paths = rows.segments(connection, wanted) if wanted else {}
        for passed in set(self._open) - set(paths.values()):
            self._open.pop(passed).close()
        own = _keys(page["prompt_number"], page["sample_index"])
        where = np.full(shards.size, -1, np.int64)
        tables: list[pa.Table] = []
        n = 0
        for shard_id in wanted:
            at = np.flatnonzero(told & (shards == shard_id))
            keys = own[at]
            for table in self._tables(paths.get(shard_id), parts.get(shard_id, []), keys):
                found, position = _positions(keys, table)
                if found.any():
                    tables.append(_picked(table, position[found]))
                    where[at[found]] = n + np.arange(int(found.sum()))
                    n += int(found.sum())
            lost = at[where[at] < 0]
            if lost.size:
                first = int(lost[0])
                raise StorageError(
                    f"the token columns of prompt {page['prompt_number'][first]}, "
                    f"sample {page['sample_index'][first]} of shard {shard_id} are in no segment"
                )
        return _taken(tables, where)

    def _tables(self, path: str | None, parts: list[bytes], keys: Keys) -> Iterator[pa.Table]:
        for part in parts:
            # As the segment will have them: the bytes of an export do not tell whether a shard had ended.
            yield _with_dtype(rounded(decode_part(part)), _FP16)
        if path is not None:
            yield from self._segment(path).groups(keys)

    def _segment(self, path: str) -> "_Segment":
        found = self._open.get(path)
        if found is None:
            found = self._open[path] = _Segment(self._storage, path)
        return found

    def close(self) -> None:
        for segment in self._open.values():
            segment.close()
        self._open.clear()


class _Segment:
    """A segment that keeps the row group which was read last."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._reader = SegmentReader(storage, path)
        self._last: tuple[int, pa.Table] | None = None
        told = self._reader.metadata
        self._dtype = f"steps of {told['logprob_step']}" if told["profile"] == "compact" else _FP16

    def groups(self, keys: Keys) -> Iterator[pa.Table]:
        """The row groups that may hold some of these rows."""
        first, last = int(keys.min()) >> 16, int(keys.max()) >> 16
        for number, (low, high) in enumerate(self._reader.bounds):
            if high >= first and low <= last:
                yield self._group(number)

    def _group(self, number: int) -> pa.Table:
        if self._last is None or self._last[0] != number:
            self._last = None
            self._last = (number, _with_dtype(self._reader.group(number), self._dtype))
        return self._last[1]

    def close(self) -> None:
        self._reader.close()


def _with_dtype(table: pa.Table, dtype: str) -> pa.Table:
    repeated = pa.array([dtype]).take(pa.array(np.zeros(table.num_rows, np.int32)))
    return table.append_column("lp_dtype", repeated)


def _picked(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """These rows of a table; without a copy where they follow one another, as they mostly do."""
    first = int(rows[0])
    if (rows == np.arange(first, first + rows.size)).all():
        return table.slice(first, rows.size)
    return table.take(pa.array(rows))


def _positions(keys: Keys, table: pa.Table) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """For each key: whether the table has it, and in which row."""
    own = _keys(table.column("prompt_number").to_numpy(), table.column("sample_index").to_numpy())
    if not own.size:
        return np.zeros(keys.shape, np.bool_), np.zeros(keys.shape, np.int64)
    order = np.argsort(own, kind="stable")
    at = np.minimum(np.searchsorted(own[order], keys), own.size - 1)
    return own[order][at] == keys, order[at]


_SOURCES = {"lp_k": "k"}
_EMPTY = SCHEMA.empty_table().append_column("lp_dtype", pa.array([], pa.string()))


def _taken(tables: list[pa.Table], where: NDArray[np.int64]) -> list[pa.ChunkedArray]:
    """Columns in the order of the page: row i is row `where[i]` of the tables one after another, null for −1.

    Nothing is copied where the tables are in order: the numbers are copied once, into a portion.
    """
    table = pa.concat_tables(tables) if tables else _EMPTY
    there = where >= 0
    if not (there.all() and (where == np.arange(where.size)).all()):
        table = table.combine_chunks().take(pa.array(where, mask=~there))
    return [table.column(_SOURCES.get(field.name, field.name)).cast(field.type) for field in TOKENS]


def token_sizes(columns: Sequence[pa.ChunkedArray]) -> NDArray[np.int64]:
    """Bytes that each row's token columns take in memory."""
    total = np.zeros(len(columns[0]), np.int64)
    for column, field in zip(columns, TOKENS, strict=True):
        if pa.types.is_list(field.type):
            width = 1 if field.type.value_type == pa.bool_() else 4
            total = total + width * pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    return total
