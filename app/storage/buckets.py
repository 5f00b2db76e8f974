"""A bucket behind an S3 API: AWS, MinIO, Ceph, R2 and the like, through obstore.

Credentials, region and endpoint come from the usual variables: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
`AWS_REGION`, `AWS_ENDPOINT_URL`, or the machine's role. An object appears when its upload is completed, never in part.
An upload that was cut off leaves parts that nobody sees: give the bucket a rule that aborts incomplete uploads.
"""

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import IO, Any, Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from app.errors import StorageError
from app.storage.places import NewFile, Written, checked_path, written_whole

_PART: Final = 8 * 1024 * 1024
"""Size of an uploaded part."""

_READ: Final = 256 * 1024
"""What a reader fetches at least; a larger read is one request of its size."""

_UPLOADS: Final = 4
_LISTED: Final = 1000


class Bucket:
    """See `app.storage.places.Storage`."""

    def __init__(self, bucket: str, prefix: str) -> None:
        """Talks to nobody. Raises `StorageError` for a name that is none."""
        self._url = f"s3://{bucket}/{prefix}".rstrip("/")
        with self._told(""):
            self._store = S3Store(
                bucket,
                prefix=prefix or None,
                client_options={"allow_http": True, "timeout": "60s", "connect_timeout": "10s"},
                retry_config={"max_retries": 6, "retry_timeout": timedelta(seconds=60)},
            )

    @property
    def url(self) -> str:
        return self._url

    def new_file(self, path: str) -> NewFile:
        return _Upload(self._store, _key(path), self._failed)

    def write_atomically(self, path: str, writer: Callable[[IO[bytes]], None]) -> Written:
        return written_whole(self, path, writer)

    def open(self, path: str) -> IO[bytes]:
        # A ranged reader of our own: what obstore's returns is neither `bytes` nor has it `readinto`.
        raw = _Object(self._store, _key(path), self.size(path), self._failed)
        return io.BufferedReader(raw, _READ)

    def size(self, path: str) -> int:
        return int(self._head(path)["size"])

    def exists(self, path: str) -> bool:
        try:
            with self._told(path, missing=False):
                obstore.head(self._store, _key(path))
        except FileNotFoundError:
            return False
        return True

    def age_seconds(self, path: str) -> float:
        return time.time() - float(self._head(path)["last_modified"].timestamp())

    def delete(self, path: str) -> None:
        with self._told(path, missing=False):
            try:
                obstore.delete(self._store, _key(path))
            except FileNotFoundError:
                return

    def list(self, folder: str = "") -> Iterator[str]:
        prefix = f"{_key(folder)}/" if folder else None
        with self._told(folder):
            for portion in obstore.list(self._store, prefix, chunk_size=_LISTED):
                yield from (str(found["path"]) for found in portion)

    def copy(self, source: str, target: str) -> None:
        with self._told(source):
            obstore.copy(self._store, _key(source), _key(target))

    def delete_folder(self, folder: str) -> None:
        found = list(self.list(folder))
        for start in range(0, len(found), _LISTED):
            with self._told(folder, missing=False):
                obstore.delete(self._store, found[start : start + _LISTED])

    def unfinished(self, folder: str = "") -> Iterator[str]:
        """None: what is not finished is no object."""
        return iter(())

    def delete_unfinished(self, older_than_seconds: float) -> int:
        """Nothing: parts of an upload are the bucket's own, and a rule of its own takes them away."""
        return 0

    def _head(self, path: str) -> Any:
        with self._told(path):
            return obstore.head(self._store, _key(path))

    @contextmanager
    def _told(self, path: str, missing: bool = True) -> Iterator[None]:
        """Every foreign error in our words; `missing=False` leaves a missing file to the caller."""
        try:
            yield
        except FileNotFoundError as error:
            if not missing:
                raise
            raise StorageError(f"{path} cannot be read under {self._url}: no such file") from error
        except (BaseError, OSError, ValueError) as error:
            raise self._failed(path, error) from error

    def _failed(self, path: str, error: Exception) -> StorageError:
        # obstore's messages are long: the first line says what it is.
        said = str(error).strip().partition("\n")[0][:500]
        return StorageError(f"{path or 'the storage'} under {self._url}: {said or type(error).__name__}")


def _key(path: str) -> str:
    return checked_path(path).as_posix()


class _Object(io.RawIOBase):
    """An object's bytes by ranges. It never changes: every file here is written once."""

    def __init__(
        self, store: S3Store, key: str, size: int, failed: Callable[[str, Exception], StorageError]
    ) -> None:
        self._store = store
        self._key = key
        self._size = size
        self._failed = failed
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        try:
            found = obstore.get_range(self._store, self._key, start=self._at, length=wanted)
        except (BaseError, OSError, ValueError) as error:
            raise self._failed(self._key, error) from error
        buffer[: len(found)] = memoryview(found)
        self._at += len(found)
        return len(found)


class _Upload:
    """A multipart upload, hashed on the way. A small file is one request."""

    def __init__(self, store: S3Store, key: str, failed: Callable[[str, Exception], StorageError]) -> None:
        self._key = key
        self._failed = failed
        self._sha256 = hashlib.sha256()
        self._n_bytes = 0
        self._discarded = False
        self._writer = obstore.open_writer(store, key, buffer_size=_PART, max_concurrency=_UPLOADS)
        self.closed = False

    @property
    def file(self) -> IO[bytes]:
        return self  # type: ignore[return-value] # all of it that a writer uses

    def write(self, data: bytes | memoryview) -> int:
        n = memoryview(data).nbytes
        self._n_bytes += n
        if self._discarded:
            return n
        self._sha256.update(data)
        try:
            self._writer.write(data)
        except (BaseError, OSError, ValueError) as error:
            raise self._failed(self._key, error) from error
        return n

    def tell(self) -> int:
        return self._n_bytes

    def flush(self) -> None:
        """The object is whole when it is finished."""

    def close(self) -> None:
        """Not the object's end: that is `finish`."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def finish(self) -> Written:
        try:
            self._writer.close()
        except (BaseError, OSError, ValueError) as error:
            raise self._failed(self._key, error) from error
        return Written(self._n_bytes, self._sha256.digest())

    def abandon(self) -> None:
        self._discarded = True  # never closed, so never completed
