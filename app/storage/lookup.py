"""A few completions' token columns out of a segment, without reading the whole file."""

from collections.abc import Collection

import pyarrow as pa
import pyarrow.parquet as pq

from app.errors import StorageError
from app.storage.places import Storage
from app.storage.token_table import SCHEMA


def rows_of(storage: Storage, path: str, prompt_numbers: Collection[int]) -> pa.Table:
    """The rows of these prompts: only row groups whose statistics admit them are read. Raises `StorageError`."""
    with storage.open(path) as file:
        try:
            found = pq.read_table(file, filters=[("prompt_number", "in", sorted(set(prompt_numbers)))])
            return found.replace_schema_metadata(None).cast(SCHEMA)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StorageError(f"segment {path} is damaged: {error}") from error
