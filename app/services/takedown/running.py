"""A takedown is carried out, step by step; each step changes nothing where it was done before, so that one that was
killed begins again and ends the same.

1. The prompts' text goes. From then on nobody who claims a shard sees them.
2. Shard by shard: whoever holds it is fenced; rows, parts and the pointer to the rewritten segment change in one
   transaction; the old file is deleted.
3. Exports that are being made begin again; those that were made are listed, and withdrawn where that was asked for.
4. Free pages and logs of the database are emptied.
"""

import logging
import re
from bisect import bisect_left
from collections.abc import Callable

import pyarrow as pa
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.db import audit, exports, stripping, takedowns
from app.db import lineage as lineage_rows
from app.db.session import reading, session, transaction
from app.db.stripping import Moved, NewSegment, Standing
from app.db.takedowns import TakedownClaim
from app.domain.lifecycle import ExportStatus
from app.errors import StorageError
from app.services.export import folder_of
from app.services.takedown.purging import Busy, purge
from app.storage.places import Storage
from app.storage.segments import rewrite_segment
from app.storage.token_table import decode_part, encode_part

log = logging.getLogger(__name__)

_PROMPTS_AT_ONCE = 500
_AGAIN_SECONDS = 15.0
_ATTEMPT = re.compile(r"exports/[^/]+/e(\d+)/")
_FILE = re.compile(r"segments/[^/]+/\.?(\d+)-e(\d+)-")


class _Gone(Exception):
    """Another worker has the takedown now, or this one was asked to stop."""


def run_next(
    database: Engine,
    storage: Storage,
    worker_id: str,
    lease_seconds: float,
    stopped: Callable[[], bool],
    again_seconds: float = _AGAIN_SECONDS,
) -> bool:
    """Carry out one takedown that waits. False: there was none."""
    with transaction(database) as connection:
        claim = takedowns.claim(connection, worker_id, lease_seconds)
    if claim is None:
        return False
    try:
        _Takedown(database, storage, claim, lease_seconds, stopped).run()
    except _Gone:
        with transaction(database) as connection:
            takedowns.put_off(connection, claim, None, 0)
    except DBAPIError:
        raise  # the lease runs out, or we claim it again
    except (StorageError, Busy, OSError) as error:
        reason = error.detail if isinstance(error, StorageError) else str(error)
        log.warning("takedown %s waits: %s", claim.takedown_id, reason)
        with transaction(database) as connection:
            takedowns.put_off(connection, claim, reason, again_seconds)
    except Exception as error:
        log.exception("takedown %s", claim.takedown_id)
        with transaction(database) as connection:
            reason = f"internal error: {type(error).__name__}: {error}"
            takedowns.put_off(connection, claim, reason, again_seconds)
    return True


class _Takedown:
    """One claim's work."""

    def __init__(
        self,
        database: Engine,
        storage: Storage,
        claim: TakedownClaim,
        lease: float,
        stopped: Callable[[], bool],
    ) -> None:
        self._database = database
        self._storage = storage
        self._claim = claim
        self._lease = lease
        self._stopped = stopped
        self._whole = claim.kind == "teacher"
        self._counts: dict[str, int] = {}
        self._lanes: list[tuple[str, int]] = []
        self._prompts: dict[str, list[int]] = {}
        self._restarted: dict[str, int] = {}

    def run(self) -> None:
        if self._whole:
            jobs = self._close_lanes()
        else:
            self._remove_prompts()
            jobs = self._jobs_of_prompts()
        for job_id in sorted(jobs):
            self._strip_job(job_id, jobs[job_id])
        self._restart_exports(set(jobs))
        self._taint_exports()
        self._beat()
        purge(self._database)
        for job_id in sorted(jobs):
            self._sweep(job_id)
        for export_id, epoch in sorted(self._restarted.items()):
            self._sweep_export(export_id, epoch)
        self._end()

    def _beat(self, **counts: int) -> None:
        if self._stopped():
            raise _Gone
        with transaction(self._database) as connection:
            if not takedowns.count(connection, self._claim, self._lease, **counts):
                raise _Gone

    # 1 ----------------------------------------------------------------------------------------------------------

    def _close_lanes(self) -> dict[str, list[list[int]]]:
        """Job → nothing: the shards of all these lanes are affected."""
        teacher_id = self._claim.target["teacher"]
        with transaction(self._database) as connection:
            takedowns.close_lanes(connection, self._claim.takedown_id, teacher_id)
            self._lanes = lineage_rows.lanes_of_teacher(connection, teacher_id)
        return {job_id: [] for job_id, _ in self._lanes}

    def _remove_prompts(self) -> None:
        while True:
            if self._stopped():
                raise _Gone
            with transaction(self._database) as connection:
                due = takedowns.due_prompts(connection, self._claim, _PROMPTS_AT_ONCE)
                takedowns.remove_prompts(connection, self._claim.takedown_id, due)
                if not takedowns.count(connection, self._claim, self._lease, prompts=len(due)):
                    raise _Gone
            if not due:
                break
        if self._claim.kind == "prompts" and self._claim.target["prompts"] is None:
            with transaction(self._database) as connection:
                takedowns.clear_excerpts(connection, self._claim.project_id, self._claim.target["prompt_set"])

    def _jobs_of_prompts(self) -> dict[str, list[list[int]]]:
        """Job → [numbers of its prompts that are at fault]."""
        with reading(self._database) as connection:
            self._prompts = takedowns.removed_prompts(connection, self._claim.takedown_id)
            jobs = takedowns.jobs_of_sets(connection, sorted(self._prompts))
        return {job_id: [self._prompts[set_id]] for job_id, set_id in jobs}

    # 2 ----------------------------------------------------------------------------------------------------------

    def _strip_job(self, job_id: str, numbers: list[list[int]]) -> None:
        lanes = [teacher for job, teacher in self._lanes if job == job_id] if self._whole else None
        with reading(self._database) as connection:
            shards = takedowns.shards(connection, job_id, lanes)
        for shard in shards:
            if not self._whole:
                at = bisect_left(numbers[0], shard.first_prompt)
                if at == len(numbers[0]) or numbers[0][at] >= shard.end_prompt:
                    continue
            while True:
                try:
                    self._strip_shard(shard.id)
                    break
                except Moved:
                    continue

    def _strip_shard(self, shard_id: int) -> None:
        takedown_id = self._claim.takedown_id
        with reading(self._database) as connection:
            shard = stripping.standing(connection, shard_id)
            numbers = (
                frozenset(range(shard.first_prompt, shard.end_prompt))
                if self._whole
                else frozenset(stripping.numbers_at_fault(connection, shard, takedown_id))
            )
        replaced, segment = self._rewritten(shard, numbers)
        try:
            with transaction(self._database) as connection:
                removed = stripping.strip(
                    connection,
                    shard,
                    takedown_id,
                    self._whole,
                    lambda payload: _stripped(payload, numbers),
                    replaced,
                    segment,
                )
                if not takedowns.count(
                    connection, self._claim, self._lease, completions=removed, segments=int(replaced)
                ):
                    raise _Gone
        except BaseException:
            if segment is not None:
                self._storage.delete(segment.path)
            raise
        with reading(self._database) as connection:
            stale = stripping.stale_segments(connection, shard_id)
        for path in stale:
            self._storage.delete(path)
        if self._stopped():
            raise _Gone

    def _rewritten(self, shard: Standing, numbers: frozenset[int]) -> tuple[bool, NewSegment | None]:
        """(does the segment change, what takes its place)."""
        if shard.segment_path is None:
            return False, None
        with reading(self._database) as connection:
            if not stripping.has_tokens(connection, shard, self._claim.takedown_id, self._whole):
                return False, None
        if self._whole:
            return True, None
        with reading(self._database) as connection:
            n = stripping.samples(connection, shard)
        without = {(number, index) for number in numbers for index in range(n)}
        target = (
            f"segments/{shard.job_id}/{shard.shard_id:08d}-e{shard.epoch}-g{shard.generation + 1}"
            f"-{self._claim.takedown_id}-{self._claim.epoch}.parquet"
        )
        try:
            made = rewrite_segment(self._storage, shard.segment_path, target, without)
        except StorageError:
            with reading(self._database) as connection:
                if stripping.standing(connection, shard.shard_id).segment_id != shard.segment_id:
                    raise Moved from None
            raise
        if made.n_rows == 0:
            self._storage.delete(made.path)
            return True, None
        return True, NewSegment(made.path, made.sha256, made.n_bytes, made.n_rows, made.k)

    def _sweep(self, job_id: str) -> None:
        """Files that a fenced worker left, or this takedown when it was killed: not what the shard points to."""
        with reading(self._database) as connection:
            known = stripping.epochs(connection, job_id)
        folder = f"segments/{job_id}"
        for path in [*self._storage.list(folder), *self._storage.unfinished(folder)]:
            match = _FILE.match(path)
            if match is None or int(match.group(1)) not in known:
                continue
            epoch, current = known[int(match.group(1))]
            ours = self._claim.takedown_id in path
            if path != current and (ours or int(match.group(2)) < epoch):
                self._storage.delete(path)

    def _sweep_export(self, export_id: str, epoch: int) -> None:
        """Folders that a fenced worker wrote into while its export was begun again."""
        for path in list(self._storage.list(folder_of(export_id))):
            match = _ATTEMPT.match(path)
            if match is not None and int(match.group(1)) <= epoch:
                self._storage.delete(path)

    # 3 ----------------------------------------------------------------------------------------------------------

    def _restart_exports(self, jobs: set[str]) -> None:
        with reading(self._database) as connection:
            active = takedowns.active_exports(connection, self._claim.project_id)
        for export in active:
            if not jobs & set(export.selection["jobs"]):
                continue
            with transaction(self._database) as connection:
                epoch = takedowns.restart_export(connection, export.id)
            if epoch is not None:
                self._restarted[export.id] = epoch
                self._storage.delete_folder(folder_of(export.id))

    def _taint_exports(self) -> None:
        with reading(self._database) as connection:
            if self._whole:
                counts = lineage_rows.exports_of_lanes(connection, self._lanes)
            else:
                counts = lineage_rows.exports_of_prompts(connection, lineage_rows.as_numbers(self._prompts))
            whole = {row.id: row.status for row in lineage_rows.exports(connection, sorted(counts))}
        with transaction(self._database) as connection:
            takedowns.taint(connection, self._claim.takedown_id, {one: counts[one] for one in whole})
        self._counts = {one: counts[one] for one in whole}
        if not self._claim.withdraw_exports:
            return
        for export_id in sorted(whole):
            with session(self._database, writes=True) as work:
                exports.end(work, export_id, ExportStatus.DELETED, only_active=False)
                takedowns.withdrawn(work.connection(), self._claim.takedown_id, export_id)
            self._storage.delete_folder(folder_of(export_id))

    # 4 ----------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        with transaction(self._database) as connection:
            if not takedowns.complete(connection, self._claim):
                raise _Gone
            told = {"tainted_exports": sorted(self._counts), "withdrawn": self._claim.withdraw_exports}
            event = audit.Event("takedown.complete", self._claim.takedown_id, told)
            audit.append(connection, self._claim.project_id, "system", [event])


def _stripped(payload: bytes, numbers: frozenset[int]) -> bytes | None:
    table = decode_part(payload)
    kept = [number not in numbers for number in table.column("prompt_number").to_pylist()]
    if all(kept):
        return payload
    left = table.filter(pa.array(kept, pa.bool_()))
    return None if left.num_rows == 0 else encode_part(left)
