"""A local folder: a file is there whole, or it is not there."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from app.errors import StorageError
from app.storage.places import LocalFolder, open_storage


def writes(content: bytes) -> Callable[[IO[bytes]], None]:
    def write(file: IO[bytes]) -> None:
        file.write(content)

    return write


def test_a_file_and_its_digest(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "new" / "place"))
    written = storage.write_atomically("deep/er/a.bin", writes(b"abc"))
    assert (written.n_bytes, written.sha256) == (3, hashlib.sha256(b"abc").digest())
    with storage.open("deep/er/a.bin") as file:
        file.seek(1)
        assert file.read() == b"bc"
    assert storage.size("deep/er/a.bin") == 3
    assert list(storage.list()) == ["deep/er/a.bin"]
    storage.delete("deep/er/a.bin")
    storage.delete("deep/er/a.bin")
    assert not storage.exists("deep/er/a.bin")


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    storage = LocalFolder(tmp_path)
    storage.write_atomically("a", writes(b"old"))

    def fails(file: IO[bytes]) -> None:
        file.write(b"half")
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        storage.write_atomically("a", fails)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("path", ["../a", "/etc/passwd", "", "a/../../b", "a\\..\\b", "a\x00b"])
def test_no_path_leaves_the_storage(tmp_path: Path, path: str) -> None:
    storage = LocalFolder(tmp_path)
    with pytest.raises(StorageError, match="not a path inside"):
        storage.write_atomically(path, writes(b""))
    with pytest.raises(StorageError, match="not a path inside"):
        storage.open(path)


def test_copies_are_files_of_their_own(tmp_path: Path) -> None:
    storage = LocalFolder(tmp_path)
    storage.write_atomically("a", writes(b"x"))
    storage.copy("a", "b/c")
    storage.delete("a")
    with storage.open("b/c") as file:
        assert file.read() == b"x"


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(StorageError, match="s3://bucket"):
        open_storage("ftp://somewhere")
    assert open_storage("file:///tmp/x").url == "/tmp/x"


def test_a_place_that_cannot_be_written_says_which(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        LocalFolder(tmp_path / "file").write_atomically("a", writes(b""))
