"""Admission: the one place that is asked for room before each call, and told what became of it.

A call needs room at a replica of its teacher (its controller says how much there is), in the teacher's cap and in its
job's. Caps are shared out among the workers through the database, a share at a time; here they are only looked up.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakValueDictionary

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.db import lanes, slots
from app.db.models import Job, Teacher
from app.db.session import passes, transaction
from app.errors import Overloaded, RateLimited
from app.services.generate.config import EngineConfig
from app.services.generate.replicas import BuildTeacher, LaneDown, Replica, Replicas, Result, unfit
from app.services.generate.threads import Threads
from app.services.generate.work import Unit
from app.teachers.base import Capabilities, TeacherSpec
from app.teachers.base import Teacher as Driver

log = logging.getLogger(__name__)

_TICK = 0.25  # seconds
_THROTTLED_SECONDS = 600.0  # of refusals and nothing else, until a lane parks


@dataclass(slots=True, eq=False, weakref_slot=True)
class Cap:
    """A cap of calls in flight, and this worker's share of it. `scope`: a job's or a teacher's id."""

    scope: str
    table: type[Job] | type[Teacher]
    most: int | None
    share: int = 0
    until: float = -math.inf  # monotonic time at which the share is no longer ours
    in_flight: int = 0

    def room(self, now: float) -> float:
        if self.most is None:
            return math.inf
        return max(0, self.share - self.in_flight) if now < self.until else 0


@dataclass(slots=True, eq=False)
class TeacherGate:
    """What all lanes of a teacher share in this worker."""

    cap: Cap
    replicas: Replicas
    held_until: float = -math.inf  # monotonic time before which the teacher wants to be left alone
    held_at: float = -math.inf
    throttles: int = 0  # one after the other, without an answer between
    throttled_since: float = math.inf  # the first of them
    answered: int = 0

    def throttled(self, now: float, asked_at: float, retry_after: float | None) -> None:
        """The teacher answered 429: to all its replicas, for they share what it grants."""
        if asked_at < self.held_at:
            return  # it was under way when another one was refused
        wait = min(30.0, 1.0 * 2.0**self.throttles) if retry_after is None else retry_after
        self.throttles += 1
        self.throttled_since = min(self.throttled_since, now)
        self.held_at, self.held_until = now, max(self.held_until, now + wait)


@dataclass(slots=True, eq=False)
class LaneGate:
    """Room for the calls of one lane. `wanted` tells how many samples it could send if there were room."""

    spec: lanes.LaneSpec
    teacher: TeacherGate
    job: Cap
    backoff_s: float
    pump_in: Callable[[float], None]  # there may be room again in so many seconds
    wanted: Callable[[], int] = lambda: 0
    in_flight: int = 0
    _fits: dict[Replica, tuple[Capabilities, bool]] = field(default_factory=dict)

    def room(self) -> float:
        """About how many samples may be sent now."""
        now = time.monotonic()
        if now < self.teacher.held_until:
            return 0
        replicas = sum(replica.room(now) for replica in self.teacher.replicas if self.fits(replica))
        return min(replicas, self.teacher.cap.room(now), self.job.room(now))

    def enter(self, unit: Unit) -> "Permit | None":
        """Room for one call, taken; None where there is none now."""
        now, weight = time.monotonic(), len(unit.sample_indices)
        if now < self.teacher.held_until:
            return None
        if not all(cap.room(now) >= min(weight, cap.share or 1) for cap in (self.teacher.cap, self.job)):
            return None
        able = [r for r in self.teacher.replicas if r.takes(weight, now) and self.fits(r)]
        if not able:
            return None
        return Permit(self, min(able, key=lambda replica: replica.in_flight), weight, now)

    def fits(self, replica: Replica) -> bool:
        found = replica.capabilities
        if found is None:
            return False
        known = self._fits.get(replica)
        if known is None or known[0] is not found:
            known = self._fits[replica] = (found, unfit(self.spec, found) is None)
        return known[1]

    def down(self) -> LaneDown | None:
        """Why no call can be made until something changes; None where that is not so."""
        if any(replica.down is None and self.fits(replica) for replica in self.teacher.replicas):
            return None
        return self.teacher.replicas.why_down(self.spec)


class Permit:
    """Room for one call, until `close`."""

    def __init__(self, gate: LaneGate, replica: Replica, weight: int, now: float) -> None:
        assert replica.teacher is not None
        self.teacher: Driver = replica.teacher
        self._gate, self._replica, self._weight, self._asked_at = gate, replica, weight, now
        self._move(weight)
        replica.sent(weight)

    @property
    def answered(self) -> int:
        """How many answers the teacher has given to this worker."""
        return self._gate.teacher.answered

    def close(self, result: Result) -> LaneDown | None:
        """Give the room back, and say what became of the call. Returns why the lane is down, where it is now."""
        gate, now = self._gate, time.monotonic()
        self._move(-self._weight)
        self._replica.told(result, self._asked_at, self._weight, gate.backoff_s)
        if isinstance(result, list):
            gate.teacher.answered += 1
            gate.teacher.throttles, gate.teacher.throttled_since = 0, math.inf
            return None
        if isinstance(result, RateLimited) and not isinstance(result, Overloaded):
            gate.teacher.throttled(now, self._asked_at, result.retry_after)
        next_try = max(gate.teacher.held_until, self._replica.not_before)
        if next_try > now:
            gate.pump_in(next_try - now)
        if isinstance(result, RateLimited) and now - gate.teacher.throttled_since > _THROTTLED_SECONDS:
            return LaneDown(
                result.kind, f"nothing was answered for {_THROTTLED_SECONDS:g} s: {result.detail}"
            )
        return gate.down() if isinstance(result, Exception) else None

    def _move(self, weight: int) -> None:
        self._gate.in_flight += weight
        self._gate.teacher.cap.in_flight += weight
        self._gate.job.in_flight += weight


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
    ) -> None:
        """`gates`: those of the lanes that are worked on. `pump` is called where there may be room again."""
        self._database = database
        self._threads = threads
        self._build = build
        self._gates = gates
        self._config = config
        self._pump = pump
        self._teachers: dict[str, TeacherGate] = {}
        self._jobs: WeakValueDictionary[str, Cap] = WeakValueDictionary()  # alive while a gate has it

    async def reach(self, spec: lanes.LaneSpec) -> Capabilities:
        """What the lane's teacher can do now. Raises `LaneDown` where the lane has to wait for it."""
        return await self._teacher(spec).replicas.reach(spec, _servers(spec))

    async def open(self, spec: lanes.LaneSpec) -> LaneGate:
        """A gate for a lane whose teacher was reached."""
        teacher = self._teacher(spec)
        teacher.cap.most = spec.teacher_cap
        job = self._jobs.setdefault(spec.job_id, Cap(spec.job_id, Job, spec.job_cap))
        gate = LaneGate(spec, teacher, job, self._config.retry.backoff_s, self._pump_in)
        await self._renew([*self._gates(), gate])
        return gate

    async def run(self) -> None:
        """Keep the shares, try the servers that are out. For ever; raises what waiting does not mend."""
        every, renewed_at = min(1.0, self._config.lease_seconds / 3), -math.inf
        while True:
            await asyncio.sleep(_TICK)
            gates = self._gates()
            for teacher in {id(gate.teacher): gate.teacher for gate in gates}.values():
                teacher.replicas.look_after(self._config.park_seconds)
            if time.monotonic() - renewed_at >= every:
                renewed_at = time.monotonic()
                try:
                    await self._renew(gates)
                except DBAPIError as error:
                    if not passes(error):
                        raise
                    log.warning("no share of a cap is renewed, the database does not answer: %s", error.orig)
            self._pump()

    async def aclose(self) -> None:
        for teacher in self._teachers.values():
            await teacher.replicas.aclose()

    def _pump_in(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._pump)

    def _teacher(self, spec: lanes.LaneSpec) -> TeacherGate:
        known = self._teachers.get(spec.teacher_id)
        if known is None:
            known = self._teachers[spec.teacher_id] = TeacherGate(
                Cap(spec.teacher_id, Teacher, spec.teacher_cap),
                Replicas(self._build, self._config.retry.backoff_s),
            )
        return known

    async def _renew(self, gates: list[LaneGate]) -> None:
        """Take this worker's share of every cap that holds for a lane of its."""
        wants: dict[str, tuple[Cap, int]] = {}
        for gate in gates:
            for cap in (gate.teacher.cap, gate.job):
                if cap.most is not None:
                    wants[cap.scope] = (
                        cap,
                        wants.get(cap.scope, (cap, 0))[1] + gate.in_flight + gate.wanted(),
                    )
        if not wants:
            return
        seconds = max(3.0, self._config.lease_seconds / 3)
        asked_at = time.monotonic()
        for cap, share, fair in await self._threads.share(
            partial(self._share, list(wants.values()), seconds)
        ):
            # What is more than fair is left unused from now on, and given back by the next renewal.
            cap.share, cap.until = min(share, max(fair, cap.in_flight)), asked_at + seconds

    def _share(self, wants: list[tuple[Cap, int]], seconds: float) -> list[tuple[Cap, int, int]]:
        shares = []
        for cap, wanted in wants:
            with transaction(self._database) as connection:
                most = slots.locked_cap(connection, cap.table, cap.scope)
                if most is None:
                    continue
                share, fair = slots.grant(
                    connection, cap.scope, most, self._config.worker_id, wanted, cap.share, seconds
                )
            shares.append((cap, share, fair))
        return shares


def _servers(spec: lanes.LaneSpec) -> Sequence[TeacherSpec]:
    return (spec.spec,)
