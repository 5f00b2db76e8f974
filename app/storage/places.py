"""Places where files lie: a local folder, or a bucket behind an S3 API. A file is there whole, or it is not there."""

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from app.errors import StorageError

PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Written:
    """What a finished file is: its size in bytes and the 32 raw bytes of its SHA-256."""

    n_bytes: int
    sha256: bytes


class NewFile(Protocol):
    """A file that is being written, under a name that nobody else sees. Every method raises `StorageError`."""

    @property
    def file(self) -> IO[bytes]:
        """To append to."""
        ...

    def finish(self) -> Written:
        """The file appears under its path, whole and durable."""
        ...

    def abandon(self) -> None:
        """Nothing was written; what still comes goes nowhere (a Parquet writer that is let go writes its end)."""
        ...


class Storage(Protocol):
    """Files by relative, `/`-separated path. Every method raises `StorageError`."""

    @property
    def url(self) -> str: ...

    def new_file(self, path: str) -> NewFile:
        """Begin a file that appears at `path` when it is finished, and never in part."""
        ...

    def write_atomically(self, path: str, writer: Callable[[IO[bytes]], None]) -> Written:
        """Give `writer` a file to append to; the path appears when it returns, durable, and never in part."""
        ...

    def open(self, path: str) -> IO[bytes]:
        """A seekable reader."""
        ...

    def size(self, path: str) -> int: ...

    def exists(self, path: str) -> bool: ...

    def age_seconds(self, path: str) -> float:
        """Seconds since the file was written, by this machine's clock."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file; one that is not there is no error."""
        ...

    def list(self, folder: str = "") -> Iterator[str]:
        """Paths of all whole files under a folder, sorted."""
        ...

    def copy(self, source: str, target: str) -> None:
        """A second file with the same bytes, whole or not there."""
        ...

    def delete_folder(self, folder: str) -> None: ...

    def unfinished(self, folder: str = "") -> Iterator[str]:
        """Paths of what is being written under a folder, and of what writers left behind that were killed."""
        ...

    def delete_unfinished(self, older_than_seconds: float) -> int:
        """Remove what writers left behind that were killed. Returns how many files that were."""
        ...


def open_storage(url: str) -> Storage:
    """The storage behind a URL: a folder's path, `file://…` or `s3://bucket/prefix`."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return LocalFolder(Path(url))
    if scheme == "file":
        return LocalFolder(Path(rest))
    if scheme == "s3" and rest.strip("/"):
        try:
            from app.storage.buckets import Bucket
        except ModuleNotFoundError as error:
            raise StorageError(
                f"storage at {url!r} needs the extra `s3`: pip install '.[s3]' in Retort's checkout "
                f"({error.name} is missing)"
            ) from error
        bucket, _, prefix = rest.partition("/")
        return Bucket(bucket, prefix.strip("/"))
    raise StorageError(f"storage cannot be at {url!r}: give a folder, file:///path or s3://bucket/prefix")


class HashingFile:
    """An append-only file that knows the size and SHA-256 of what went through it."""

    def __init__(self, target: IO[bytes], failed: Callable[[OSError], StorageError]) -> None:
        self._target = target
        self._failed = failed
        self._sha256 = hashlib.sha256()
        self._n_bytes = 0
        self._discarded = False
        self.closed = False

    def discard(self) -> None:
        """From now on nothing is written."""
        self._discarded = True

    def write(self, data: bytes | memoryview) -> int:
        self._sha256.update(data)
        n = memoryview(data).nbytes
        self._n_bytes += n
        if self._discarded:
            return n
        try:
            self._target.write(data)
        except OSError as error:
            raise self._failed(error) from error
        return n

    def tell(self) -> int:
        return self._n_bytes

    def flush(self) -> None:
        """The file is flushed when it is finished."""

    def close(self) -> None:
        """Whoever opened the target closes it."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def written(self) -> Written:
        return Written(self._n_bytes, self._sha256.digest())


def checked_path(path: str) -> PurePosixPath:
    """A path that stays inside its storage. Raises `StorageError` for `..`, an absolute path or an empty one."""
    pure = PurePosixPath(path)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\x00" in path or "\\" in path:
        raise StorageError(f"{path!r} is not a path inside the storage")
    return pure


class LocalFolder:
    """A folder of this machine (or one mounted on it)."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def url(self) -> str:
        return str(self._root)

    def path(self, path: str) -> Path:
        """Where a file lies on this machine."""
        return self._root / checked_path(path)

    def new_file(self, path: str) -> NewFile:
        return _LocalNewFile(self._root, path, self.path(path))

    def write_atomically(self, path: str, writer: Callable[[IO[bytes]], None]) -> Written:
        return written_whole(self, path, writer)

    def open(self, path: str) -> IO[bytes]:
        try:
            return self.path(path).open("rb")
        except OSError as error:
            raise self._missing(path, error) from error

    def size(self, path: str) -> int:
        try:
            return self.path(path).stat().st_size
        except OSError as error:
            raise self._missing(path, error) from error

    def exists(self, path: str) -> bool:
        return self.path(path).is_file()

    def age_seconds(self, path: str) -> float:
        try:
            return time.time() - self.path(path).stat().st_mtime
        except OSError as error:
            raise self._missing(path, error) from error

    def delete(self, path: str) -> None:
        try:
            self.path(path).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{path} cannot be deleted: {error.strerror or error}") from error

    def list(self, folder: str = "") -> Iterator[str]:
        yield from (path for path in self._all(folder) if not path.endswith(PARTIAL))

    def unfinished(self, folder: str = "") -> Iterator[str]:
        yield from (path for path in self._all(folder) if path.endswith(PARTIAL))

    def _all(self, folder: str) -> Iterator[str]:
        start = self.path(folder) if folder else self._root
        yield from sorted(f.relative_to(self._root).as_posix() for f in start.rglob("*") if f.is_file())

    def copy(self, source: str, target: str) -> None:
        final = self.path(target)
        partial = _partial(final)
        try:
            _make_folder(final.parent)
            os.link(self.path(source), partial)  # finished files never change: two names may share the bytes
            partial.replace(final)
            _sync_folder(final.parent)
        except OSError:
            # Not every file system has links; what else was wrong shows here again.
            with self.open(source) as file:
                self.write_atomically(target, lambda out: shutil.copyfileobj(file, out, 1 << 20))

    def delete_folder(self, folder: str) -> None:
        try:
            shutil.rmtree(self.path(folder))
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"{folder} cannot be deleted: {error.strerror or error}") from error

    def delete_unfinished(self, older_than_seconds: float) -> int:
        n = 0
        for file in self._root.rglob(f"*{PARTIAL}"):
            try:
                if time.time() - file.stat().st_mtime > older_than_seconds:
                    file.unlink()
                    n += 1
            except FileNotFoundError:
                continue  # it was finished, or somebody else was faster
        return n

    def _missing(self, path: str, error: OSError) -> StorageError:
        return StorageError(f"{path} cannot be read under {self._root}: {error.strerror or error}")


def written_whole(storage: Storage, path: str, writer: Callable[[IO[bytes]], None]) -> Written:
    """`write_atomically` in terms of `new_file`."""
    new = storage.new_file(path)
    try:
        writer(new.file)
    except BaseException:
        new.abandon()
        raise
    return new.finish()


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.{secrets.token_hex(6)}{PARTIAL}")


class _LocalNewFile:
    """Beside its final place until it is synced; a full disk shows as `StorageError` from any of its methods."""

    def __init__(self, root: Path, path: str, final: Path) -> None:
        self._said = f"{path} cannot be written under {root}"
        self._final = final
        self._partial = _partial(final)
        try:
            _make_folder(final.parent)
            self._target = self._partial.open("xb", buffering=1 << 20)
        except OSError as error:
            raise self._failed(error) from error
        self._hashing = HashingFile(self._target, self._failed)

    @property
    def file(self) -> IO[bytes]:
        return self._hashing  # type: ignore[return-value] # all of it that a writer uses

    def finish(self) -> Written:
        try:
            self._target.flush()
            os.fsync(self._target.fileno())
            self._target.close()
            self._partial.replace(self._final)
            _sync_folder(self._final.parent)
        except OSError as error:
            self.abandon()
            raise self._failed(error) from error
        return self._hashing.written()

    def abandon(self) -> None:
        self._hashing.discard()
        with suppress(OSError):  # closing flushes: on a full disk it fails, and closes all the same
            self._target.close()
        self._partial.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(f"{self._said}: {error.strerror or error}")


def _make_folder(folder: Path) -> None:
    """Make a folder so that it survives a power cut: each new one is synced into its parent."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
