"""A Parquet file: a batch is a row group, and in the file when it was written."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from app.exporters.base import Counted
from app.exporters.parquet import ParquetShard

SCHEMA = pa.schema([("n", pa.int64())])


def rows(batch: pa.RecordBatch, counted: Counted) -> pa.Table:
    return pa.Table.from_batches([batch])


def batch(first: int, n: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(range(first, first + n), pa.int64())], schema=SCHEMA)


def test_batches_are_row_groups_in_their_order() -> None:
    target = io.BytesIO()
    shard = ParquetShard(target, SCHEMA, rows)
    for first in range(0, 5000, 1000):
        shard.write(batch(first, 1000))
    assert target.tell() > 1000, "what was written is in the file"
    shard.close()
    file = pq.ParquetFile(target)
    assert file.num_row_groups == 5
    assert file.read().column("n").to_pylist() == list(range(5000))
    assert shard.n_rows == 5000
