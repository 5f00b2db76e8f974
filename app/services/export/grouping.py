"""Rows of one split in portions that are cut at the same places however the rows came: a portion is a row group."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

PORTION_BYTES = 32 * 1024 * 1024
PORTION_ROWS = 65_536


class Portions:
    """Collects rows of a file. A portion ends with the row that reaches `PORTION_BYTES` or `PORTION_ROWS`, or where
    the file has its rows."""

    def __init__(self, rows_per_file: int) -> None:
        self._rows_per_file = rows_per_file
        self._waiting: list[pa.Table] = []
        self._n_rows = 0
        self._n_bytes = 0
        self._in_file = 0

    def add(self, table: pa.Table, sizes: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
        """Take rows in, give the portions that are full. The next one is asked for when the last one is written."""
        start = 0
        while start < table.num_rows:
            ends = np.cumsum(sizes[start:]) + self._n_bytes
            by_bytes = int(np.searchsorted(ends, PORTION_BYTES)) + 1
            room = min(PORTION_ROWS, self._rows_per_file - self._in_file) - self._n_rows
            n = min(by_bytes, room, table.num_rows - start)
            self._waiting.append(table.slice(start, n))
            self._n_rows += n
            self._n_bytes = int(ends[n - 1])
            start += n
            if n in (by_bytes, room):
                yield from self.rest()

    def rest(self) -> Iterator[pa.RecordBatch]:
        """What waits for more rows, if anything does: at the end of the rows."""
        if self._n_rows:
            whole = pa.concat_tables(self._waiting).combine_chunks().to_batches()
            self._in_file += self._n_rows
            self._waiting, self._n_rows, self._n_bytes = [], 0, 0
            yield from whole

    def new_file(self) -> None:
        """The next portion begins a file."""
        self._in_file = 0
