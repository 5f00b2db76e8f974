"""Rows of one split in portions that are cut at the same places however the rows came: a portion is a row group."""

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
        self._sizes: list[NDArray[np.int64]] = []
        self.n_rows = 0  # that wait
        self._n_bytes = 0
        self._in_file = 0

    def add(self, table: pa.Table, sizes: NDArray[np.int64]) -> None:
        """Take rows in. `sizes`: bytes that each takes, roughly."""
        self._waiting.append(table)
        self._sizes.append(sizes)
        self.n_rows += table.num_rows
        self._n_bytes += int(sizes.sum())

    @property
    def full(self) -> bool:
        """Whether there is a whole portion. A new file can only make it wait for more."""
        return self._n_bytes >= PORTION_BYTES or self.n_rows >= self._room

    @property
    def _room(self) -> int:
        return min(PORTION_ROWS, self._rows_per_file - self._in_file)

    def cut(self) -> pa.Table:
        """The next portion, or what there is of it. Some row must wait."""
        sizes = np.concatenate(self._sizes)
        by_bytes = int(np.searchsorted(np.cumsum(sizes), PORTION_BYTES)) + 1
        n = min(by_bytes, self._room, self.n_rows)
        table = pa.concat_tables(self._waiting)
        self._waiting, self._sizes = [table.slice(n)], [sizes[n:]]
        self.n_rows -= n
        self._n_bytes -= int(sizes[:n].sum())
        self._in_file += n
        return table.slice(0, n)

    def new_file(self) -> None:
        """The next portion begins a file."""
        self._in_file = 0
