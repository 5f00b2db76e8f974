"""Backups: the database as it was at one moment, and every file that it points to, in one folder; and back again.

A backup is whole when its `backup.json` is there: that is written last.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.db import copies
from app.db.migrate import current, is_known, upgrade
from app.db.session import connect, transaction
from app.domain.version import code_version
from app.errors import Conflict, InvalidInput, StorageError
from app.storage.places import LocalFolder, Storage

_NOTE = "backup.json"
_DATABASE = "database"
_STORAGE = "storage"
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds. `files`: of the storage; None where they were left out. `parts`: SHA-256 of the database's
    files, by name.
    """

    made_at: str
    version: str
    revision: str
    database: str
    files: int | None
    n_bytes: int
    parts: dict[str, str]


def back_up(url: str, storage: Storage, folder: Path, with_files: bool) -> Backup:
    """Make a backup in a folder that is not there yet, or is empty, while the service runs.

    A file that a takedown or a retry replaced between the database's copy and its own makes the copy begin again.
    Raises `Conflict` for a folder in use, `StorageError` for a file that is missing or damaged.
    """
    revision = current(url)
    if revision is None:
        raise Conflict("the database has no schema yet: there is nothing to back up")
    if folder.exists() and any(folder.iterdir()):
        raise Conflict(f"{folder} is not empty: name a new folder for each backup")
    target = LocalFolder(folder / _STORAGE)
    database = connect(url)
    try:
        for tries in range(1, _TRIES + 1):
            shutil.rmtree(folder / _DATABASE, ignore_errors=True)
            (folder / _DATABASE).mkdir(parents=True)
            try:
                with copies.copied(database, folder / _DATABASE) as connection:
                    files = list(copies.pointers(connection))
                if with_files:
                    for path, sha256 in files:
                        _copy(storage, target, path, sha256)
                break
            except StorageError:
                if tries == _TRIES:
                    raise
        kind = database.dialect.name
    finally:
        database.dispose()
    if with_files:
        wanted = {path for path, _ in files}
        for path in [path for path in target.list() if path not in wanted]:
            target.delete(path)  # of an earlier try
    made = Backup(
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        version=code_version(),
        revision=revision,
        database=kind,
        files=len(files) if with_files else None,
        n_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        parts={file.name: _sha256(file) for file in sorted((folder / _DATABASE).iterdir())},
    )
    _write_note(folder, made)
    return made


def _copy(storage: Storage, target: LocalFolder, path: str, sha256: bytes) -> None:
    if target.exists(path):
        return
    with storage.open(path) as file:
        written = target.write_atomically(path, lambda out: shutil.copyfileobj(file, out, 1 << 20))
    if written.sha256 != sha256:
        target.delete(path)
        raise StorageError(f"{path} is damaged: its SHA-256 is {written.sha256.hex()}, not {sha256.hex()}")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write_note(folder: Path, made: Backup) -> None:
    with (folder / f"{_NOTE}.partial").open("w") as file:
        json.dump(asdict(made), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    (folder / f"{_NOTE}.partial").replace(folder / _NOTE)


def read_note(folder: Path) -> Backup:
    """What the folder holds. Raises `InvalidInput` where that is no whole backup."""
    try:
        return Backup(**json.loads((folder / _NOTE).read_text()))
    except FileNotFoundError:
        raise InvalidInput(f"{folder} holds no whole backup: {_NOTE} is missing") from None
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{folder / _NOTE} cannot be read: {error}") from None


def restore(url: str, storage: Storage, folder: Path) -> Backup:
    """Put a backup into an empty database and an empty storage, and bring it to this version's schema.

    Nobody holds anything afterwards: what was under lease is made anew from its last checkpoint. Raises `InvalidInput`
    for a backup that is damaged or of another kind of database, `Conflict` where something would be overwritten.
    """
    made = read_note(folder)
    database = connect(url)
    try:
        if database.dialect.name != made.database:
            raise InvalidInput(
                f"the backup is of {made.database}, and this database is {database.dialect.name}"
            )
        if not is_known(made.revision):
            raise InvalidInput(
                f"a newer version made the backup (schema {made.revision}): restore it with that one"
            )
        for name, digest in made.parts.items():
            file = folder / _DATABASE / name
            if not file.is_file() or _sha256(file) != digest:
                raise InvalidInput(f"{file} is missing or damaged: its SHA-256 is not the one that was noted")
        copies.check_empty(database)
        if made.files is not None:
            _put_files_back(storage, LocalFolder(folder / _STORAGE))
        if made.database == "postgresql":
            upgrade(url, made.revision)
        copies.put_back(database, folder / _DATABASE)
        upgrade(url)
        with transaction(database) as connection:
            copies.release_everything(connection)
    finally:
        database.dispose()
    return made


def _put_files_back(storage: Storage, source: LocalFolder) -> None:
    """Files have names that never come twice, so one that is there already is the same one."""
    for path in source.list():
        if not storage.exists(path):
            with source.open(path) as file:
                storage.write_atomically(path, lambda out, file=file: shutil.copyfileobj(file, out, 1 << 20))  # type: ignore[misc]
