"""A Parquet data file: one batch, one row group; signal columns split by byte, low-cardinality text by dictionary."""

from collections.abc import Callable, Collection
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.exporters.base import Counted
from app.exporters.sequences import cut

_BUFFER = 4 * 1024 * 1024


class ParquetShard(Counted):
    """`convert` gives a batch's rows in `schema`, fewer than its rows where some do not fit."""

    def __init__(
        self,
        file: IO[bytes],
        schema: pa.Schema,
        convert: Callable[[pa.RecordBatch, Counted], pa.Table],
        repeated: Collection[str] = (),
        level: int = 3,
    ) -> None:
        super().__init__()
        self._convert = convert
        # Python is called a few times for each row group: every call waits for whoever holds the interpreter.
        self._sink = pa.BufferedOutputStream(pa.PythonFile(file, mode="w"), _BUFFER)
        self._writer = pq.ParquetWriter(self._sink, schema, **parquet_options(schema, repeated, level))

    def write(self, batch: pa.RecordBatch) -> None:
        table = self._convert(batch, self)
        if table.num_rows:
            self._writer.write_table(table, row_group_size=table.num_rows)
            self._sink.flush()  # so that the file's size is what it holds
        self.n_rows += table.num_rows

    def close(self) -> None:
        self._writer.close()
        self._sink.flush()


class SlicedShard(ParquetShard):
    """For formats that lay candidates out for every token: a batch is converted slice by slice, each a row group."""

    def __init__(
        self,
        file: IO[bytes],
        schema: pa.Schema,
        convert: Callable[[pa.RecordBatch, Counted], pa.Table],
        k: int,
    ) -> None:
        super().__init__(file, schema, convert)
        self._k = k

    def write(self, batch: pa.RecordBatch) -> None:
        for part in cut(batch, self._k):
            super().write(part)


def parquet_options(schema: pa.Schema, repeated: Collection[str], level: int) -> dict[str, Any]:
    """How columns are laid down: zstd; lists of 4-byte numbers split by byte; `repeated` text by dictionary."""
    split = {
        f"{field.name}.list.element": "BYTE_STREAM_SPLIT"
        for field in schema
        if pa.types.is_list(field.type) and field.type.value_type in (pa.int32(), pa.float32(), pa.int64())
    }
    return {
        "compression": "zstd",
        "compression_level": level,
        "use_dictionary": sorted(repeated) or False,
        "column_encoding": split,
        "data_page_version": "2.0",
        "data_page_size": 1024 * 1024,
    }
