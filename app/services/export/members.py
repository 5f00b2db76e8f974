"""Which completions are in a file: collected while it is written, stored with its row."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from app.domain.membership import packed

_PLACE = ("stage", "lane", "sample_index")
_Key = tuple[str, int, int, int]  # job, stage, lane, sample index


class Members:
    """Prompt numbers by job, stage, teacher and sample index. Rows that a format dropped count as members."""

    def __init__(self) -> None:
        self._numbers: dict[_Key, list[NDArray[np.int64]]] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        numbers = _column(batch, "prompt_number")
        jobs = batch.column("job").dictionary_encode()
        key = jobs.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        for name in _PLACE:
            key = (key << 16) + _column(batch, name)
        order = np.argsort(key, kind="stable")
        key, numbers = key[order], numbers[order]
        names = jobs.dictionary.to_pylist()
        starts = np.flatnonzero(np.diff(key, prepend=-1))
        for one, mine in zip(key[starts].tolist(), np.split(numbers, starts)[1:], strict=True):
            place = (names[one >> 48], one >> 32 & 0xFFFF, one >> 16 & 0xFFFF, one & 0xFFFF)
            self._numbers.setdefault(place, []).append(mine)

    def rows(self) -> list[dict[str, Any]]:
        """For `export_member`, without the export and the file."""
        return [
            {
                "job_id": job,
                "stage": stage,
                "teacher": lane,
                "sample_index": sample,
                "chunk": chunk,
                "n_rows": n_rows,
                "bits": bits,
            }
            for (job, stage, lane, sample), numbers in self._numbers.items()
            for chunk, (n_rows, bits) in packed(np.concatenate(numbers)).items()
        ]


def _column(batch: pa.RecordBatch, name: str) -> "NDArray[np.int64]":
    found: NDArray[np.int64] = batch.column(name).to_numpy(zero_copy_only=False).astype(np.int64)
    return found
