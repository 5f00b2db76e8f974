"""From a claimed shard to one that is worked on: its teacher is reached, its missing samples are read."""

import logging
from collections.abc import Callable
from functools import partial

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.db import shards
from app.db.session import passes
from app.domain.fingerprints import fingerprint
from app.services.generate.admission import Admission
from app.services.generate.calls import given_up
from app.services.generate.careful import guilty, needs_care, one_by_one
from app.services.generate.config import EngineConfig
from app.services.generate.endings import Endings
from app.services.generate.holdings import Holdings
from app.services.generate.lane import LaneState
from app.services.generate.ledger import Ledger
from app.services.generate.recorder import Recorder
from app.services.generate.replicas import LaneDown
from app.services.generate.threads import Threads
from app.services.generate.work import ShardRun, load_run

log = logging.getLogger(__name__)


class Beginnings:
    """Belongs to the event loop. Until a shard is worked on, its claim is among `Holdings.beginning`."""

    def __init__(
        self,
        database: Engine,
        config: EngineConfig,
        held: Holdings,
        ledger: Ledger,
        threads: Threads,
        admission: Admission,
        recorder: Recorder,
        endings: Endings,
        take: Callable[[ShardRun], bool],
        wake: Callable[[], None],
    ) -> None:
        """`take` records what earlier jobs have of a run; false: its lease is lost."""
        self._database = database
        self._config = config
        self._held = held
        self._ledger = ledger
        self._threads = threads
        self._admission = admission
        self._recorder = recorder
        self._endings = endings
        self._take = take
        self._wake = wake

    async def begin(self, claim: shards.Claim, was_parked: bool) -> None:
        """Take up a shard; hand it back where that is not possible now."""
        try:
            try:
                lane = self._held.lanes.get((claim.job_id, claim.teacher))
                if lane is None:
                    lane = await self._open_lane(claim, was_parked)
                if lane is not None:
                    await self._load(claim, lane, was_parked)
            except DBAPIError as error:
                if not passes(error):
                    raise
                log.warning("shard %d could not be read: %s", claim.shard_id, error.orig)
                await self._hand_back(claim, "the database went away while it was read")
        finally:
            self._held.beginning.pop(claim.lease, None)
            self._wake()

    async def _load(self, claim: shards.Claim, lane: LaneState, was_parked: bool) -> None:
        lane.trial = lane.trial or was_parked
        run = await self._threads.read(
            partial(load_run, self._database, claim, lane.spec, lane.capabilities.native_n)
        )
        if lane.spec.reuse and not await self._threads.finish(partial(self._take, run)):
            return
        if lane.closing or lane.down or self._threads.leaving:  # while the shard was read
            await self._hand_back(claim, "the lane was closed meanwhile")
            return
        if claim.lease not in self._held.beginning:  # it was lost meanwhile
            return
        for older in self._held.runs():
            if older.claim.shard_id == claim.shard_id:  # its lease ran out before a heartbeat said so
                self._endings.lose(older)
        if needs_care(claim):
            await self._take_care(run)
        self._held.lanes[lane.key] = lane  # or it was retired meanwhile
        lane.runs.append(run)
        if claim.claims_without_progress > self._config.shard_attempts:
            log.error(
                "shard %d made no progress in %d claims", claim.shard_id, claim.claims_without_progress - 1
            )
            self._recorder.add(given_up(run), now=True)
        self._endings.finish_if_done(run)

    async def _take_care(self, run: ShardRun) -> None:
        failed = guilty(run)
        if failed:
            log.error("shard %d: %s", run.claim.shard_id, failed[0].error_detail)
            self._recorder.add(failed, now=True)
            await self._threads.persist(partial(self._ledger.suspect, run.claim, None))
            return
        run.kept_back, run.pending = run.pending, run.kept_back
        self._endings.spawn(one_by_one(run, self._threads, self._ledger, self._wake))

    async def _open_lane(self, claim: shards.Claim, was_parked: bool) -> LaneState | None:
        """Reach the teacher and check that it is the one that the job began with; else park the lane."""
        spec = await self._threads.read(partial(self._ledger.load_lane, claim))
        try:
            capabilities = await self._admission.reach(spec)
        except LaneDown as down:
            await self._endings.park(spec, down, [claim])
            return None
        identity = fingerprint(capabilities.identity())
        if spec.identity_sha256 is None:
            await self._threads.write(
                partial(self._ledger.pin_identity, spec, identity, capabilities.as_json())
            )
            spec = await self._threads.read(partial(self._ledger.load_lane, claim))
        gate = await self._admission.open(spec, capabilities)
        lane = LaneState(spec=spec, capabilities=capabilities, gate=gate, trial=was_parked)
        self._held.lanes[lane.key] = lane
        return lane

    async def _hand_back(self, claim: shards.Claim, detail: str) -> None:
        await self._threads.persist(partial(self._ledger.release, claim, "released", detail))
