"""A folder and a bucket: a file is there whole, or it is not there. What both do is tested on both."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.errors import StorageError
from app.storage.places import LocalFolder, Storage, open_storage


def writes(content: bytes) -> Callable[[IO[bytes]], None]:
    def write(file: IO[bytes]) -> None:
        file.write(content)

    return write


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "new" / "place"))
    return open_storage(request.getfixturevalue("bucket_url"))


def test_a_file_and_its_digest(storage: Storage) -> None:
    written = storage.write_atomically("deep/er/a.bin", writes(b"abc"))
    assert (written.n_bytes, written.sha256) == (3, hashlib.sha256(b"abc").digest())
    with storage.open("deep/er/a.bin") as file:
        file.seek(1)
        assert file.read() == b"bc"
        assert (file.seek(-2, 2), file.read(1), file.tell()) == (1, b"b", 2)
    assert storage.size("deep/er/a.bin") == 3
    assert 0 <= storage.age_seconds("deep/er/a.bin") + 2 < 60
    storage.delete("deep/er/a.bin")
    storage.delete("deep/er/a.bin")
    assert not storage.exists("deep/er/a.bin")
    for ask in (storage.open, storage.size, storage.age_seconds):
        with pytest.raises(StorageError, match=r"deep/er/a\.bin cannot be read under"):
            ask("deep/er/a.bin")


def test_lists_are_whole_and_sorted_and_folders_go_as_one(storage: Storage) -> None:
    names = ["a/b", "a-b/c", "a/c/d", "b", "aa/x"]
    for name in names:
        storage.write_atomically(name, writes(name.encode()))
    assert list(storage.list()) == sorted(names)
    assert list(storage.list("a")) == ["a/b", "a/c/d"]
    assert list(storage.list("absent")) == []
    storage.delete_folder("a")
    storage.delete_folder("a")
    assert list(storage.list()) == ["a-b/c", "aa/x", "b"]


def test_a_large_file_goes_up_in_parts_and_is_read_in_ranges(storage: Storage) -> None:
    content = bytes(range(256)) * 80_000  # 20 MB
    new = storage.new_file("large")
    for start in range(0, len(content), 3_000_000):
        new.file.write(content[start : start + 3_000_000])
        assert not storage.exists("large")
    assert new.file.tell() == len(content)
    assert new.finish().sha256 == hashlib.sha256(content).digest()
    with storage.open("large") as file:
        assert file.seek(12_345_678) == 12_345_678
        assert file.read(1000) == content[12_345_678:12_346_678]
        assert hashlib.file_digest(file, "sha256").digest() == hashlib.sha256(content[12_346_678:]).digest()  # type: ignore[arg-type]


def test_parquet_is_written_and_read(storage: Storage) -> None:
    table = pa.table({"a": list(range(1000)), "b": ["x"] * 1000})
    storage.write_atomically("t.parquet", lambda file: pq.write_table(table, file, row_group_size=100))
    with storage.open("t.parquet") as file:
        assert pq.ParquetFile(file).read_row_group(7).column("a").to_pylist() == list(range(700, 800))


def test_a_parquet_writer_that_is_let_go_leaves_nothing(storage: Storage) -> None:
    new = storage.new_file("t.parquet")
    writer = pq.ParquetWriter(new.file, pa.schema([("a", pa.int64())]))
    writer.write_table(pa.table({"a": [1]}))
    new.abandon()
    del writer
    assert list(storage.list()) == []


def test_a_writer_that_fails_leaves_what_was_there(storage: Storage) -> None:
    storage.write_atomically("a", writes(b"old"))

    def fails(file: IO[bytes]) -> None:
        file.write(b"half")
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        storage.write_atomically("a", fails)
    with storage.open("a") as file:
        assert file.read() == b"old"
    assert list(storage.list()) == ["a"]
    if isinstance(storage, LocalFolder):
        assert [file.name for file in Path(storage.url).iterdir()] == ["a"]


@pytest.mark.parametrize("path", ["../a", "/etc/passwd", "", "a/../../b", "a\\..\\b", "a\x00b"])
def test_no_path_leaves_the_storage(storage: Storage, path: str) -> None:
    with pytest.raises(StorageError, match="not a path inside"):
        storage.write_atomically(path, writes(b""))
    with pytest.raises(StorageError, match="not a path inside"):
        storage.open(path)


def test_copies_are_files_of_their_own(storage: Storage) -> None:
    storage.write_atomically("a", writes(b"x"))
    storage.copy("a", "b/c")
    storage.delete("a")
    with storage.open("b/c") as file:
        assert file.read() == b"x"


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(StorageError, match="s3://bucket"):
        open_storage("ftp://somewhere")
    with pytest.raises(StorageError, match="s3://bucket"):
        open_storage("s3://")
    assert open_storage("file:///tmp/x").url == "/tmp/x"
    assert open_storage("s3://bucket/a/b/").url == "s3://bucket/a/b"


def test_a_bucket_that_is_not_there_says_so(bucket_url: str) -> None:
    with pytest.raises(StorageError, match=r"under s3://no-such-bucket/x: .*not found"):
        open_storage("s3://no-such-bucket/x").write_atomically("a", writes(b""))


def test_a_place_that_cannot_be_written_says_which(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        LocalFolder(tmp_path / "file").write_atomically("a", writes(b""))
