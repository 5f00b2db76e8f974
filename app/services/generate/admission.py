"""Admission: opens a gate for each lane, keeps what the gates look up, and looks after the teachers' servers."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from weakref import WeakValueDictionary

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.db import lanes
from app.db.models import Job, Teacher
from app.db.session import passes
from app.services.generate.config import EngineConfig
from app.services.generate.gates import Cap, LaneGate, TeacherGate
from app.services.generate.renewals import Renewals
from app.services.generate.replicas import BuildTeacher, LaneDown, Replicas
from app.services.generate.sharing import Sharing
from app.services.generate.threads import Threads
from app.teachers.base import Capabilities

log = logging.getLogger(__name__)

_TICK = 0.25  # seconds


class Admission:
    """Belongs to the event loop; its short transactions run in a thread of its own."""

    def __init__(
        self,
        database: Engine,
        threads: Threads,
        build: BuildTeacher,
        config: EngineConfig,
        gates: Callable[[], list[LaneGate]],
        pump: Callable[[], None],
        park: Callable[[LaneGate, LaneDown], None],
    ) -> None:
        """`gates`: those of the lanes that are worked on. `pump` is called where there may be room again, `park` where
        a lane's job may use no more.
        """
        self._build = build
        self._gates = gates
        self._config = config
        self._pump = pump
        self._teachers: dict[str, TeacherGate] = {}
        self._jobs: WeakValueDictionary[str, Cap] = WeakValueDictionary()  # alive while a gate has it
        sharing = Sharing(database, config.worker_id, max(3.0, config.lease_seconds / 3))
        self._renewals = Renewals(sharing, threads, park)

    async def reach(self, spec: lanes.LaneSpec) -> Capabilities:
        """What the lane's teacher can do now. Raises `LaneDown` where the lane has to wait for it."""
        return await self._teacher(spec).replicas.reach(spec, spec.servers())

    async def open(self, spec: lanes.LaneSpec, found: Capabilities) -> LaneGate:
        """A gate for a lane whose teacher was reached."""
        teacher = self._teacher(spec)
        teacher.cap.most = spec.teacher_cap
        teacher.paced = teacher.paced or spec.paced or found.hosted
        job = self._jobs.setdefault(spec.job_id, Cap(spec.job_id, Job, spec.job_cap))
        job.most = spec.job_cap
        budget = self._renewals.budget_of(spec.job_id) if spec.has_budget else None
        gate = LaneGate(spec, found, teacher, job, budget, self._config.retry.backoff_s, self._pump_in)
        await self._renewals.all([*self._gates(), gate])
        return gate

    async def run(self) -> None:
        """Keep the shares, try the servers that are out. For ever; raises what waiting does not mend."""
        every, renewed_at = min(1.0, self._config.lease_seconds / 3), -math.inf
        while True:
            await asyncio.sleep(_TICK)
            gates = self._gates()
            for teacher in {id(gate.teacher): gate.teacher for gate in gates}.values():
                teacher.replicas.look_after(self._config.park_seconds)
            try:
                if time.monotonic() - renewed_at >= every:
                    renewed_at = time.monotonic()
                    await self._renewals.all(gates)
                    await self._renewals.bounds(gates)
                    await self._renewals.tell(gates)
                else:
                    await self._renewals.starved(gates)
            except DBAPIError as error:
                if not passes(error):
                    raise
                log.warning("no share of a cap is renewed, the database does not answer: %s", error.orig)
            self._pump()

    async def leave(self) -> None:
        """No call is under way any more, and none will be: what was reserved of budgets is given back."""
        await self._renewals.leave()

    async def aclose(self) -> None:
        for teacher in self._teachers.values():
            await teacher.replicas.aclose()

    def _pump_in(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._pump)

    def _teacher(self, spec: lanes.LaneSpec) -> TeacherGate:
        known = self._teachers.get(spec.teacher_id)
        if known is None:
            known = self._teachers[spec.teacher_id] = TeacherGate(
                spec.teacher_id,
                Cap(spec.teacher_id, Teacher, spec.teacher_cap),
                Replicas(self._build, self._config.retry.backoff_s),
            )
        return known
