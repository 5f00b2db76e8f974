"""Results to checkpoints and segments, shard by shard. Killed anywhere, the next one goes on with what is missing."""

import asyncio
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
from sqlalchemy import Engine

from app.db import checkpoints, provider_batches, shards
from app.db.provider_batches import Held
from app.db.session import db_now, reading, transaction
from app.domain.lifecycle import ProviderBatchStatus
from app.errors import (
    LeaseLost,
    MalformedAnswer,
    PermanentTeacherError,
    TeacherError,
    TeacherRefusedKey,
    TransientTeacherError,
)
from app.services.batches.config import BatchConfig
from app.services.batches.lanes import OpenLane, OpenLanes
from app.services.batches.requests import refusal_of, requests_of
from app.services.generate import recording
from app.services.generate.calls import Outcome
from app.services.generate.lane import binding, profile_of
from app.services.generate.work import ShardRun, Unit, load_run
from app.storage.places import Storage
from app.teachers.base import Generation
from app.teachers.batch_files import scratch
from app.teachers.batches import BatchState, BatchTeacher, BatchTold, RequestName, parsed_name

log = logging.getLogger(__name__)

_TRIES = 3


class Results:
    """Lines of a batch's result files, by the names of their requests; the text stays on the disk."""

    def __init__(self, teacher: BatchTeacher, files: list[Path], batch_id: str, *, strict: bool) -> None:
        """Reads every line once. `strict`: raises `MalformedAnswer` for one that is no JSON; else it is passed over."""
        self._files = files
        self._places: dict[RequestName, tuple[int, int, int]] = {}
        self.strangers = 0
        self._strict = strict
        for number, file in enumerate(files):
            with file.open("rb") as lines:
                start = 0
                for line in lines:
                    if line.strip():
                        self._note(teacher, line, batch_id, (number, start, len(line)))
                    start += len(line)

    def _note(self, teacher: BatchTeacher, line: bytes, batch_id: str, place: tuple[int, int, int]) -> None:
        try:
            told = teacher.custom_id(line)
        except orjson.JSONDecodeError as error:
            if self._strict:
                raise MalformedAnswer(f"a line of the batch's results is no JSON: {error}") from error
            log.warning("a line of the results of batch %s is no JSON and is passed over", batch_id)
            return
        name = None if told is None else parsed_name(told)
        if name is None or name.batch != batch_id:
            self.strangers += 1
        else:
            self._places[name] = place

    def __len__(self) -> int:
        return len(self._places)

    def line(self, name: RequestName) -> bytes | None:
        place = self._places.get(name)
        if place is None:
            return None
        with self._files[place[0]].open("rb") as lines:
            lines.seek(place[1])
            return lines.read(place[2])


@dataclass(slots=True)
class _Tally:
    finished: int = 0
    left: int = 0  # samples that go into another batch


class Collecting:
    def __init__(
        self,
        database: Engine,
        storage: Storage,
        config: BatchConfig,
        open_lanes: OpenLanes,
        stopping: Callable[[], bool],
    ) -> None:
        self._database = database
        self._storage = storage
        self._config = config
        self._lanes = open_lanes
        self._stopping = stopping
        # Not the engine's name: it gives back what stands under its own and is not in its hands.
        self._owner = f"{config.worker_id}/batches"
        self._stripe = zlib.crc32(config.worker_id.encode()) % checkpoints.STRIPES

    async def collect(self, held: Held) -> BatchTold | None:
        """Fetch what the provider has, record it, and let the shards go: finished, or into another batch.

        Returns what the provider tells of a batch whose results it has no longer, and None for any other.
        """
        spec = await asyncio.to_thread(self._lanes.load, held.job_id, held.teacher)
        lane = await self._lanes.reach(spec, afresh=False)
        with scratch() as folder:
            told, files = await self._fetched(held, lane, folder)
            if told is not None and told.state is BatchState.UNKNOWN:
                return told
            # A file that was cut off is fetched again before the samples of its broken line are paid for again.
            strict = held.tries < _TRIES
            results = await asyncio.to_thread(Results, lane.teacher, files, held.id, strict=strict)
            if not held.confirmed and results.strangers and not len(results):
                await asyncio.to_thread(self._not_ours, held)
                return None
            done = await asyncio.to_thread(self._record, held, lane, results)
        if not done:  # the worker leaves; the lease is given back, and another one goes on
            await asyncio.to_thread(self._release, held, 0.0)
            return None
        await asyncio.to_thread(self._over, held)
        if told is not None:
            await self._forget(held, lane, told)
        return None

    async def _fetched(self, held: Held, lane: OpenLane, folder: Path) -> tuple[BatchTold | None, list[Path]]:
        if held.provider_id is None:  # nothing could be asked
            return None, []
        told = await lane.teacher.look(held.provider_id)
        if told.state is BatchState.UNKNOWN:
            return told, []
        return told, await lane.teacher.fetch(told, folder)

    def _not_ours(self, held: Held) -> None:
        """A batch of the same age and size was somebody else's: it is looked for again."""
        log.warning("batch %s is not %s at its provider: looking again", held.id, held.provider_id)
        values = {
            "status": ProviderBatchStatus.SUBMITTING,
            "provider_id": None,
            "rejected": [*held.rejected, held.provider_id],
            "ended_at": None,
        }
        with transaction(self._database) as connection:
            if not provider_batches.release(connection, held, 0.0, values):
                raise LeaseLost(f"batch {held.id} is another worker's")

    def _record(self, held: Held, lane: OpenLane, results: Results) -> bool:
        """False: asked to stop before the last shard."""
        with reading(self._database) as connection:
            waiting = provider_batches.shards_of(connection, held.id)
            rounds = {
                claim.shard_id: provider_batches.rounds_of(connection, claim.shard_id) for claim in waiting
            }
        for claim in waiting:
            if self._stopping():
                return False
            self._record_shard(held, lane, results, claim.shard_id, rounds[claim.shard_id])
        return True

    def _record_shard(self, held: Held, lane: OpenLane, results: Results, shard_id: int, rounds: int) -> None:
        config = self._config
        with transaction(self._database) as connection:
            claim = provider_batches.claim_shard(
                connection, held, shard_id, self._owner, config.lease_seconds
            )
        if claim is None:
            self._check_held(held)  # finished before a crash, or the batch is another worker's by now
            return
        run = load_run(self._database, claim, lane.spec, lane.capabilities.native_n)
        outcomes: list[Outcome] = []
        missing = run.n_missing
        for name, unit, indices in requests_of(run, held.id):
            unit.attempts = rounds
            outcomes += self._outcomes(held, lane.teacher, results, name, unit, indices)
            if len(outcomes) >= config.flush_rows:
                missing -= self._checkpoint(held, run, outcomes)
                outcomes = []
        missing -= self._checkpoint(held, run, outcomes)
        self._end(lane, run, missing)

    def _outcomes(
        self,
        held: Held,
        teacher: BatchTeacher,
        results: Results,
        name: RequestName,
        unit: Unit,
        indices: tuple[int, ...],
    ) -> list[Outcome]:
        """Outcomes that are final; none for samples that another batch is to bring."""
        latency = round(1000 * ((held.ended_at or 0.0) - (held.submitted_at or 0.0))) if held.ended_at else 0
        line = results.line(name)
        made: list[Generation] = []
        error: TeacherError | None = None
        if line is None:
            error = refusal_of(teacher, unit, indices, name) or TransientTeacherError(
                "the provider returned no result for it"
            )
        else:
            try:
                made = teacher.answer(line, unit.request(indices, 0.0))
            except TeacherError as raised:
                error = raised
            except (ValueError, TypeError, KeyError, AttributeError) as raised:
                error = MalformedAnswer(f"a line of the batch's results is not in a known shape: {raised!r}")
        extra = {"batch": held.id, "provider_batch": held.provider_id}
        found = [
            Outcome(
                unit,
                one.sample_index,
                unit.attempts,
                max(0, latency),
                replace(one, provider_extra={**(one.provider_extra or {}), **extra}),
            )
            for one in made
            if one.sample_index in indices
        ]
        left = [index for index in indices if all(one.sample_index != index for one in found)]
        if not left:
            return found
        if error is None:
            error = MalformedAnswer("the provider returned fewer choices than were asked for")
        final = isinstance(error, PermanentTeacherError) and not isinstance(error, TeacherRefusedKey)
        if final or unit.attempts >= self._config.rounds:
            found += [
                Outcome(
                    unit,
                    index,
                    unit.attempts,
                    max(0, latency),
                    error_kind=error.kind,
                    error_detail=error.detail[:4000],
                )
                for index in left
            ]
        return found

    def _checkpoint(self, held: Held, run: ShardRun, outcomes: list[Outcome]) -> int:
        """Record outcomes under the shard's fence and prolong both leases. Returns how many they were."""
        if not outcomes:
            return 0
        config, claim = self._config, run.claim
        ours = recording.checkpoint(self._database, self._owner, self._stripe, outcomes)
        if claim.lease not in ours:
            raise LeaseLost(f"shard {claim.shard_id} is another worker's")
        with transaction(self._database) as connection:
            shards.extend(connection, self._owner, [claim.lease], config.lease_seconds)
            if not provider_batches.extend(connection, held, config.lease_seconds):
                raise LeaseLost(f"batch {held.id} is another worker's")
        return len(outcomes)

    def _end(self, lane: OpenLane, run: ShardRun, missing: int) -> None:
        config, claim = self._config, run.claim
        end = "short"
        if not missing:
            end = recording.finish_shard(
                self._database,
                self._storage,
                self._owner,
                run,
                binding(lane.spec, lane.capabilities),
                config.compression_level,
                profile_of(lane.spec, config.profile),
                lambda: True,
            )
        if end == "lost":
            raise LeaseLost(f"shard {claim.shard_id} is another worker's")
        if end == "short":
            detail = f"{missing} samples go into another batch" if missing else "rows were asked for again"
            with transaction(self._database) as connection:
                shards.release(connection, self._owner, claim.shard_id, claim.epoch, "released", detail)

    def _over(self, held: Held) -> None:
        values = {
            "status": ProviderBatchStatus.COLLECTED,
            "collected_at": db_now(),
            "error": None,
            "tries": 0,
        }
        with transaction(self._database) as connection:
            if not provider_batches.release(connection, held, 0.0, values):
                raise LeaseLost(f"batch {held.id} is another worker's")
            provider_batches.untie(connection, held.id)

    async def _forget(self, held: Held, lane: OpenLane, told: BatchTold) -> None:
        """Nothing of a prompt need lie at the provider any longer; what cannot be deleted is told and left."""
        try:
            await lane.teacher.forget(told)
        except TeacherError as error:
            log.warning("the files of batch %s stay at its provider: %s", held.id, error.detail)

    def _check_held(self, held: Held) -> None:
        with transaction(self._database) as connection:
            if not provider_batches.still_held(connection, held):
                raise LeaseLost(f"batch {held.id} is another worker's")

    def _release(self, held: Held, seconds: float) -> None:
        with transaction(self._database) as connection:
            provider_batches.release(connection, held, seconds, {})
