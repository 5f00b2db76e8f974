"""A data file is written by a thread of its own: nothing is lost, nothing is out of order, an error is told."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pytest

from app.services.export.reading import START
from app.services.export.writing import OpenFile, pages_kept
from app.storage.places import LocalFolder
from tests.unit.exporters.batches import batch, opened, row

KEPT: Any = SimpleNamespace(parts=lambda portion: (None, {"t | CC0-1.0": portion.num_rows}, {}))


def portion(first: int, n: int) -> pa.Table:
    """Rows in two chunks, as pages bring them."""
    one = batch([row(np.random.default_rng(0), 2, 1)] * n)
    place = {
        "prompt_number": pa.array(range(first, first + n), pa.int64()),
        **{name: pa.array([0] * n, pa.int16()) for name in ("stage", "lane", "sample_index")},
        "job": pa.array(["job_1"] * n),
        "prompt_license_assumed": pa.array([False] * n),
    }
    for name, values in place.items():
        one = one.set_column(one.schema.get_field_index(name), name, values)
    return pa.Table.from_batches([one.slice(0, n // 2), one.slice(n // 2)])


def a_file(folder: Path, wrap: Callable[[IO[bytes]], IO[bytes]] = lambda file: file) -> OpenFile:
    new = LocalFolder(folder).new_file("train.jsonl")
    return OpenFile("train.jsonl", new, opened("jsonl").open(wrap(new.file), "train"), KEPT)


def full(file: IO[bytes]) -> Any:
    def write(data: bytes) -> int:
        raise OSError(28, "no space left")

    return SimpleNamespace(write=write)


def test_portions_are_in_the_file_in_their_order(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    assert (file.n_taken, file.place) == (0, START)
    for first in range(0, 50, 10):
        file.write(portion(first, 10))
    assert (file.n_taken, file.place) == (50, ("job_1", 0, 49, 0, 0))
    file.settle()
    file.close()
    written = file.written()
    assert file.closed
    lines = (tmp_path / "train.jsonl").read_bytes()
    assert written.n_bytes == len(lines) == file.n_bytes
    assert lines.count(b"\n") == file.shard.n_rows == 50
    assert file.counts["part"] == {"t | CC0-1.0": 50}
    assert sum(member["n_rows"] for member in file.members.rows()) == 50


def closed(file: OpenFile) -> None:
    file.close()
    file.written()


@pytest.mark.parametrize("call", [OpenFile.settle, closed, lambda file: file.write(portion(10, 2))])
def test_what_the_thread_meets_is_told_to_the_next_call(
    tmp_path: Path, call: Callable[[OpenFile], object]
) -> None:
    file = a_file(tmp_path, full)
    file.write(portion(0, 10))
    with pytest.raises(OSError, match="no space left"):
        call(file)
    file.abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_closed_is_given_up_without_a_trace_of_it_where_closing_fails(tmp_path: Path) -> None:
    file = a_file(tmp_path, full)
    file.write(portion(0, 10))
    file.close()
    file.abandon()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wanted", [None, "mimalloc"])
def test_arrow_takes_its_memory_where_it_is_kept_unless_told_otherwise(
    wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pa.default_memory_pool()
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)
    if wanted is not None:
        monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", wanted)
    pa.set_memory_pool(pa.mimalloc_memory_pool())
    try:
        with pages_kept():
            assert pa.default_memory_pool().backend_name == (wanted or "system")
    finally:
        pa.set_memory_pool(before)
