"""A segment, row group by row group, in the columns of `token_table.SCHEMA` whatever its profile."""

from collections.abc import Collection
from types import TracebackType
from typing import IO, Final

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import JsonValue

from app.errors import StorageError
from app.storage import compact
from app.storage.places import Storage
from app.storage.token_table import SCHEMA

METADATA_KEY: Final = b"retort"


class SegmentReader:
    """An open segment. `bounds`: lowest and highest prompt number of each row group. Raises `StorageError`."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._path = path
        self._file: IO[bytes] = storage.open(path)
        try:
            self._parquet = pq.ParquetFile(self._file)
            told = (self._parquet.schema_arrow.metadata or {})[METADATA_KEY]
            self.metadata: dict[str, JsonValue] = orjson.loads(told)
            self.bounds = [self._bounds(i) for i in range(self._parquet.metadata.num_row_groups)]
        except KeyError as error:
            self._file.close()
            raise StorageError(
                f"{path} is not a segment: it does not say what its numbers are bound to"
            ) from error
        except (pa.ArrowException, OSError, ValueError) as error:
            self._file.close()
            raise self._damaged(error) from error

    def _bounds(self, number: int) -> tuple[int, int]:
        column = self._parquet.schema_arrow.get_field_index("prompt_number")
        found = self._parquet.metadata.row_group(number).column(column).statistics
        return int(found.min), int(found.max)

    def group(self, number: int) -> pa.Table:
        """A row group, decoded."""
        try:
            read = self._parquet.read_row_group(number).replace_schema_metadata(None)
            if self.metadata["profile"] == "compact":
                return compact.decoded(read, float(str(self.metadata["logprob_step"])))
            return read.cast(SCHEMA)
        except (pa.ArrowException, OSError, ValueError, LookupError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> StorageError:
        return StorageError(f"segment {self._path} is damaged: {error}")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "SegmentReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def rows_of(storage: Storage, path: str, prompt_numbers: Collection[int]) -> pa.Table:
    """The rows of these prompts: only row groups that may have some are read. Raises `StorageError`."""
    wanted = pa.array(sorted(set(prompt_numbers)), pa.int64())
    if not len(wanted):
        return SCHEMA.empty_table()
    first, last = wanted[0].as_py(), wanted[-1].as_py()
    found = []
    with SegmentReader(storage, path) as reader:
        for number, (low, high) in enumerate(reader.bounds):
            if low <= last and high >= first:
                group = reader.group(number)
                found.append(group.filter(pc.is_in(group.column("prompt_number"), wanted)))
    return pa.concat_tables(found) if found else SCHEMA.empty_table()
