"""JSON lines: columns as Python values, row by row, and a data file of them."""

from collections.abc import Callable, Iterable, Iterator
from itertools import starmap
from typing import IO, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from app.exporters import lists
from app.exporters.base import Counted

_AT_ONCE = 1024
_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY


def values_of(column: pa.Array) -> list[Any]:
    """A column as Python values, about ten times as fast as `to_pylist`. Lists of numbers become numpy arrays;
    a time becomes ISO 8601 text with milliseconds, as JSON has it."""
    kind = column.type
    if pa.types.is_list(kind):
        return _lists(column)
    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        fields = [values_of(column.field(i)) for i in range(kind.num_fields)]
        return [dict(zip(names, row, strict=True)) for row in zip(*fields, strict=True)]
    if pa.types.is_timestamp(kind):
        return values_of(pc.strftime(column, format="%Y-%m-%dT%H:%M:%SZ"))
    if pa.types.is_string(kind) or not column.null_count:
        found: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
        return found
    filled: list[Any] = column.fill_null(0).to_numpy(zero_copy_only=False).tolist()
    return [value if valid else None for value, valid in zip(filled, lists.validity(column), strict=True)]


def _lists(column: pa.Array) -> list[Any]:
    items: Any = column.flatten()
    numeric = pa.types.is_primitive(items.type) and not pa.types.is_timestamp(items.type)
    items = np.ascontiguousarray(lists.flat(column)) if numeric else values_of(items)
    ends = lists.offsets_of(lists.lengths(column)).tolist()
    valid = lists.validity(column).tolist()
    return [
        items[start:end] if there else None
        for start, end, there in zip(ends[:-1], ends[1:], valid, strict=True)
    ]


def rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows as dictionaries, in order."""
    names = batch.schema.names
    columns = [values_of(column) for column in batch.columns]
    return starmap(lambda *row: dict(zip(names, row, strict=True)), zip(*columns, strict=True))


class LinesShard(Counted):
    """A file of JSON lines. `convert` gives the objects of a batch, fewer than its rows where some do not fit."""

    def __init__(
        self, file: IO[bytes], convert: Callable[[pa.RecordBatch, Counted], Iterable[dict[str, Any]]]
    ) -> None:
        super().__init__()
        self._file = file
        self._convert = convert

    def write(self, batch: pa.RecordBatch) -> None:
        for start in range(0, batch.num_rows, _AT_ONCE):
            rows = self._convert(batch.slice(start, _AT_ONCE), self)
            lines = [orjson.dumps(row, option=_OPTIONS) for row in rows]
            self._file.write(b"".join(lines))
            self.n_rows += len(lines)

    def close(self) -> None:
        """Nothing is held back."""
