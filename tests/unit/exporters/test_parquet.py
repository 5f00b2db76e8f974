"""A Parquet file is written by a thread of its own: nothing is lost, nothing is out of order, an error is told."""

import io
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.exporters.base import Counted
from app.exporters.parquet import ParquetShard

SCHEMA = pa.schema([("n", pa.int64())])


def rows(batch: pa.RecordBatch, counted: Counted) -> pa.Table:
    return pa.Table.from_batches([batch])


def batch(first: int, n: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(range(first, first + n), pa.int64())], schema=SCHEMA)


class Full(io.BytesIO):
    """A disk with room for a hundred bytes."""

    def write(self, data: object) -> int:
        if self.tell() + len(bytes(data)) > 100:  # type: ignore[call-overload]
            raise OSError(28, "no space left")
        return super().write(data)  # type: ignore[arg-type]


def test_batches_are_row_groups_in_their_order() -> None:
    target = io.BytesIO()
    shard = ParquetShard(target, SCHEMA, rows)
    for first in range(0, 5000, 1000):
        shard.write(batch(first, 1000))
    shard.settle()
    settled = target.tell()
    assert settled > 1000, "what is settled is in the file"
    shard.close()
    file = pq.ParquetFile(target)
    assert file.num_row_groups == 5
    assert file.read().column("n").to_pylist() == list(range(5000))
    assert shard.n_rows == 5000


@pytest.mark.parametrize(
    "call", [ParquetShard.settle, ParquetShard.close, lambda shard: shard.write(batch(5000, 1))]
)
def test_what_the_writing_thread_meets_is_told_to_the_next_call(call: Callable[[ParquetShard], None]) -> None:
    shard = ParquetShard(Full(), SCHEMA, rows)
    shard.write(batch(0, 5000))
    with pytest.raises(OSError, match="no space left"):
        call(shard)
