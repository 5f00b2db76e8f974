"""An export is made: files under a lease, each kept when it is finished, all of them told in one last commit.

Every attempt writes into a folder of its own, `exports/ID/eEPOCH`, so that a zombie never overwrites its successor's
files. A file's row is committed when the file is synced; the next attempt goes on behind it. At the end the files of
earlier attempts are brought into the last one's folder, which then holds the export and nothing else.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import JsonValue
from sqlalchemy import Connection, Engine, Row
from sqlalchemy.exc import DBAPIError

from app.db import audit
from app.db import exports as rows
from app.db.exports import ExportClaim, FinishedFile, Progress
from app.db.session import reading, transaction
from app.domain.fingerprints import new_id, sha256
from app.domain.lifecycle import ExportStatus
from app.domain.sampling import IntendedUse
from app.domain.splits import SPLITS
from app.errors import InvalidInput, PolicyRefusal, StorageError
from app.exporters import DataFile, Exporter, Summary, exporter, signing
from app.exporters.counts import Counts, add, in_order
from app.exporters.manifest import as_json
from app.policy.decisions import Decision, require_allowed
from app.policy.notice import StudentNotice, student_notice
from app.policy.rules import Moment, PolicyRules
from app.services.export import beside, judging
from app.services.export.facts import JobFacts, facts
from app.services.export.grouping import Portions
from app.services.export.judging import Sieve, by_part, verdict
from app.services.export.reading import START, Page, Place, Source
from app.services.export.spec import FileSize, Layout, Selection
from app.services.export.writing import OpenFile, pages_kept
from app.services.policy import Judge, keep, keep_refusal
from app.storage.places import Storage

log = logging.getLogger(__name__)

_ATTEMPTS = 5  # with an error of ours, before the export fails
_DEATHS = 20  # of the worker without a word and without a file finished
_PARK_SECONDS = 15.0


class _Gone(Exception):
    """Another worker makes this export now, it was cancelled, or this worker was asked to stop."""


def folder_of(export_id: str) -> str:
    """Where all attempts at an export write."""
    return f"exports/{export_id}"


def run_next(
    database: Engine,
    storage: Storage,
    worker_id: str,
    lease_seconds: float,
    stopped: Callable[[], bool],
    park_seconds: float = _PARK_SECONDS,
    rules: PolicyRules | None = None,
    signing_key: bytes | None = None,
) -> bool:
    """Make one export that waits. False: there was none. Every error ends as a status with its reason.

    `signing_key`: PEM; with it the manifest is signed.
    """
    with transaction(database) as connection:
        claim = rows.claim(connection, worker_id, lease_seconds)
    if claim is None:
        return False
    if claim.attempts > _DEATHS:
        _leave(
            database, claim, ExportStatus.FAILED, f"its worker died {_DEATHS} times without finishing a file"
        )
        _clear(database, storage, claim.export_id)
        return True
    try:
        with pages_kept(), _Lease(database, claim, lease_seconds, stopped) as lease:
            _Attempt(database, storage, claim, lease, rules or PolicyRules(), signing_key).write()
    except _Gone:
        # Cancelled or deleted: the folder goes. Another worker's: not one row is ours any more, and nothing happens.
        if stopped() and _leave(database, claim, ExportStatus.READY, None):
            return True
    except PolicyRefusal as error:
        with reading(database) as connection:
            export = rows.row_of(connection, claim.export_id)
        keep_refusal(database, export.project_id, export.created_by, error, claim.export_id)
        _leave(database, claim, ExportStatus.FAILED, error.detail)
    except InvalidInput as error:
        _leave(database, claim, ExportStatus.FAILED, error.detail)
    except StorageError as error:
        log.warning("export %s waits for the storage: %s", claim.export_id, error.detail)
        _leave(database, claim, ExportStatus.PARKED, error.detail, park_seconds)
    except DBAPIError:
        raise
    except Exception as error:
        log.exception("export %s, attempt %d", claim.export_id, claim.attempts)
        reason = f"internal error: {type(error).__name__}: {error}"
        if claim.attempts >= _ATTEMPTS:
            _leave(database, claim, ExportStatus.FAILED, reason)
        else:
            _leave(database, claim, ExportStatus.PARKED, reason, park_seconds)
    _clear(database, storage, claim.export_id)
    return True


def _leave(
    database: Engine,
    claim: ExportClaim,
    status: ExportStatus,
    error: str | None,
    again_in: float | None = None,
) -> bool:
    with transaction(database) as connection:
        left = rows.leave(connection, claim, status, error, again_in)
        if left and status == ExportStatus.FAILED:
            project_id = rows.row_of(connection, claim.export_id).project_id
            audit.append(connection, project_id, "system", [audit.Event("export.fail", claim.export_id)])
        return left


def _clear(database: Engine, storage: Storage, export_id: str) -> None:
    """What was written of an export that will never be whole serves nobody, and no takedown looks for it."""
    with reading(database) as connection:
        status = rows.row_of(connection, export_id).status
    if status in (ExportStatus.CANCELLED, ExportStatus.DELETED, ExportStatus.FAILED):
        try:
            storage.delete_folder(folder_of(export_id))
        except StorageError as error:
            log.warning("files of export %s are left to the next tidying: %s", export_id, error.detail)


class _Lease:
    """Prolongs the lease and shows progress, from a thread: a slow upload does not lose the export."""

    def __init__(
        self, database: Engine, claim: ExportClaim, seconds: float, stopped: Callable[[], bool]
    ) -> None:
        self.progress = Progress(0, 0, 0, None)
        self._database = database
        self._claim = claim
        self._seconds = seconds
        self._stopped = stopped
        self._lost = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="export-lease", daemon=True)

    def __enter__(self) -> "_Lease":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def check(self) -> None:
        if self._lost.is_set() or self._stopped():
            raise _Gone

    def _beat(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 4)):
            try:
                with transaction(self._database) as connection:
                    if not rows.beat(connection, self._claim, self.progress, self._seconds):
                        self._lost.set()
                        return
            except DBAPIError as error:
                log.warning("the lease of export %s is not prolonged: %s", self._claim.export_id, error.orig)


def _told(file: FinishedFile) -> dict[str, JsonValue]:
    return {
        "name": file.name,
        "n_bytes": file.n_bytes,
        "n_rows": file.n_rows,
        "split": file.split,
        "sha256": file.sha256.hex(),
    }


class _Attempt:
    """One claim's work."""

    def __init__(
        self,
        database: Engine,
        storage: Storage,
        claim: ExportClaim,
        lease: _Lease,
        rules: PolicyRules,
        signing_key: bytes | None,
    ) -> None:
        self._database = database
        self._storage = storage
        self._claim = claim
        self._lease = lease
        self._folder = f"{folder_of(claim.export_id)}/e{claim.epoch}"
        with reading(database) as connection:
            self._export: Row[Any] = rows.row_of(connection, claim.export_id)
            self._selection = Selection.model_validate(self._export.selection)
            self._layout = Layout.model_validate(self._export.layout or {})
            self._jobs: list[JobFacts] = facts(connection, self._selection)
            self._finished = rows.finished(connection, claim.export_id)
            self._use = IntendedUse.model_validate(self._export.intended_use)
            self._kinds, self._verdict = verdict(
                connection,
                self._export.project_id,
                self._jobs,
                self._selection,
                self._use,
                self._export.on_refusal,
                rules,
            )
            self._judge = Judge.of(connection, self._export.project_id, rules)
        self._signing_key = signing_key
        self._sieve = Sieve(self._kinds, self._verdict.left_out)
        self._exporter: Exporter = exporter(self._export.format, self._export.options)
        self._exporter.check([binding for job in self._jobs for binding in job.bindings()])
        self._open: dict[str, OpenFile] = {}
        self._closing: dict[str, OpenFile] = {}
        self._portions = {split: Portions(self._size.rows) for split in SPLITS}
        self._began = time.monotonic()
        self._n_seen = 0

    @property
    def _size(self) -> FileSize:
        return self._layout.file_size

    def write(self) -> None:
        done = self._places()
        source = Source(
            self._database,
            self._storage,
            self._jobs,
            self._selection,
            self._layout.split,
            beside.snapshot_at(self._export),
            self._exporter.needs_tokens,
        )
        try:
            for page in source.pages(done):
                self._take(page)
                self._show()
            for split, portions in self._portions.items():
                if portions.n_rows:
                    self._settle(split)
                    self._write(split, portions.cut())
            if not self._finished and not self._open:
                self._begin(SPLITS[0])  # no rows are a file without rows
            for split in list(self._open):
                self._finish(split)
            for split in list(self._closing):
                self._keep_file(split)
        finally:
            for file in (*self._open.values(), *self._closing.values()):
                file.abandon()
            for file in self._closing.values():  # whole, perhaps, and told to nobody
                with suppress(StorageError):
                    self._storage.delete(f"{self._folder}/{file.name}")
        self._complete()

    def _places(self) -> dict[str, Place]:
        """The last row that is in a finished file, of each split."""
        found: dict[str, Place] = {}
        for file in self._finished:
            if file.place is not None and file.split is not None:
                job, *rest = file.place
                place = (str(job), int(rest[0]), int(rest[1]), int(rest[2]), int(rest[3]))
                found[file.split] = max(found.get(file.split, START), place)
        return found

    def _take(self, page: Page) -> None:
        self._lease.check()
        for split in [split for split, file in self._closing.items() if file.closed]:
            self._keep_file(split)
        self._n_seen += page.seen
        if self._layout.split.trivial:
            parts = [(SPLITS[0], page.table, page.sizes)] if page.table.num_rows else []
        else:
            parts = []
            for split in SPLITS:
                mine = pc.equal(page.table.column("split"), split)
                chosen = mine.to_numpy(zero_copy_only=False)
                if chosen.any():
                    parts.append((split, page.table.filter(mine), page.sizes[chosen]))
        for split, table, sizes in parts:
            portions = self._portions[split]
            portions.add(table, sizes)
            while portions.full:
                self._settle(split)
                if portions.full:  # a file that began has room for more
                    self._write(split, portions.cut())

    def _settle(self, split: str) -> None:
        """Wait for what is being written: its file's size decides into which file the next portion goes."""
        file = self._open.get(split)
        if file is not None:
            file.settle()
            if file.n_bytes >= self._size.bytes:
                self._finish(split)

    def _write(self, split: str, portion: pa.Table) -> None:
        self._lease.check()
        file = self._open.get(split) or self._begin(split)
        file.write(portion)
        if file.n_taken >= self._size.rows:
            self._finish(split)

    def _begin(self, split: str) -> OpenFile:
        if split in self._closing:
            self._keep_file(split)
        number = sum(file.split == split for file in self._finished)
        name = f"{split}-{number:05d}{self._exporter.suffix}"
        new = self._storage.new_file(f"{self._folder}/{name}")
        self._open[split] = OpenFile(name, new, self._exporter.open(new.file, split), self._sieve)
        return self._open[split]

    def _finish(self, split: str) -> None:
        """The file has its rows. While it is encoded and synced, the next one's are read."""
        file = self._closing[split] = self._open.pop(split)
        file.close()
        self._portions[split].new_file()

    def _keep_file(self, split: str) -> None:
        """The file is whole: synced first, its row committed then."""
        file = self._closing[split]
        written = file.written()
        del self._closing[split]
        counts: dict[str, Any] = {**in_order(file.counts), "dropped": dict(file.shard.dropped)}
        made = FinishedFile(
            name=file.name,
            path=f"{self._folder}/{file.name}",
            n_bytes=written.n_bytes,
            sha256=written.sha256,
            n_rows=file.shard.n_rows,
            split=split,
            place=list(file.place),
            counts=counts,
        )
        with transaction(self._database) as connection:
            done = [*self._finished, made]
            n_rows, n_bytes = sum(one.n_rows or 0 for one in done), sum(one.n_bytes for one in done)
            if not rows.add_file(connection, self._claim, made, file.members.rows(), n_rows, n_bytes):
                raise _Gone
        self._finished.append(made)

    def _show(self) -> None:
        n_rows = sum(file.n_rows or 0 for file in self._finished)
        under_way = [*self._open.values(), *self._closing.values()]
        n_rows += sum(file.shard.n_rows for file in under_way)
        n_bytes = sum(file.n_bytes for file in self._finished)
        n_bytes += sum(file.n_bytes for file in under_way)
        rate = self._n_seen / max(0.001, time.monotonic() - self._began)
        self._lease.progress = Progress(n_rows, self._n_seen, n_bytes, rate)

    def _complete(self) -> None:
        for file in self._finished:
            if file.path != f"{self._folder}/{file.name}":
                self._storage.copy(file.path, f"{self._folder}/{file.name}")
        data = sorted(self._finished, key=lambda file: (SPLITS.index(file.split or SPLITS[0]), file.name))
        with reading(self._database) as connection:
            exact = self._kinds.exact(by_part(data, "part"))
            decision = self._judge.decide(connection, self._use, exact, Moment.EXPORT)
            head = audit.head(connection, self._export.project_id)
        decision_id = new_id("dec")
        require_allowed(decision, decision_id)
        summary = self._summary(data, student_notice(decision))
        others = [
            self._put(name, content) for name, content in beside.beside(self._exporter, summary).items()
        ]
        told = beside.manifest(
            self._export,
            summary,
            [_told(file) for file in [*data, *others]],
            judging.told(decision_id, decision, self._verdict.decision, by_part(data, "left_out")),
            {"sequence": head.sequence, "hash": head.hash.hex()},
            None if self._signing_key is None else signing.public_key_of(self._signing_key),
        )
        manifest = as_json(told)
        others.append(self._put(signing.MANIFEST, manifest))
        if self._signing_key is not None:
            others.append(self._put(signing.SIGNATURE, signing.sign(manifest, self._signing_key)))
        self._lease.check()
        moved = [replace(file, path=f"{self._folder}/{file.name}") for file in data]
        with transaction(self._database) as connection:
            if not rows.complete(connection, self._claim, self._folder, told, [*moved, *others], decision_id):
                raise _Gone
            self._record(connection, decision, decision_id, manifest)
        for earlier in {file.path.rpartition("/")[0] for file in data} - {self._folder}:
            self._storage.delete_folder(earlier)

    def _record(self, connection: Connection, decision: Decision, decision_id: str, manifest: bytes) -> None:
        """The decision by what was really written, and the event, in the transaction that completes the export."""
        export = self._export
        keep(connection, export.project_id, export.created_by, decision_id, decision, export.id)
        event = audit.Event(
            "export.complete",
            export.id,
            {"manifest_sha256": sha256(manifest).hex(), "decision": decision_id},
        )
        audit.append(connection, export.project_id, "system", [event])

    def _put(self, name: str, content: bytes) -> FinishedFile:
        path = f"{self._folder}/{name}"

        def write(file: Any) -> None:
            file.write(content)

        done = self._storage.write_atomically(path, write)
        return FinishedFile(name, path, done.n_bytes, done.sha256)

    def _summary(self, data: list[FinishedFile], notice: StudentNotice) -> Summary:
        counts: Counts = {}
        for file in data:
            add(counts, file.counts or {})
        return Summary(
            name=self._export.name,
            format=self._export.format,
            options=self._export.options,
            selection=self._export.selection,
            split=self._layout.split.model_dump(mode="json"),
            intended_use=self._export.intended_use,
            schema=self._exporter.schema(),
            files=tuple(
                DataFile(file.name, file.split or "", file.n_rows or 0, file.n_bytes, file.sha256.hex())
                for file in data
            ),
            bindings=tuple(binding for job in self._jobs for binding in job.bindings()),
            jobs=tuple(job.told for job in self._jobs),
            counts=in_order(counts),
            notice=notice,
        )
