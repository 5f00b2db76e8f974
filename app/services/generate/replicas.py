"""The servers of one teacher: which of them are well, which fit a lane, which have room."""

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field

from app.db import lanes
from app.domain.budget import Use
from app.domain.fingerprints import fingerprint
from app.errors import (
    IdentityChanged,
    Overloaded,
    RateLimited,
    TeacherError,
    TeacherRefusedKey,
    TeacherUnavailable,
)
from app.teachers.admission import Controller, LatencyLimit, PressureLimit, ThrottleLimit
from app.teachers.base import Capabilities, Gauged, Generation, Teacher, TeacherSpec
from app.teachers.pressure import Pressure

log = logging.getLogger(__name__)

BuildTeacher = Callable[[TeacherSpec], Teacher]
Result = list[Generation] | Exception | None  # what became of a call; None: it was taken back

_PROBE_SECONDS = 120
_PATIENCE = 5.0  # seconds that a probe of all replicas waits for slow ones once one fits
_TRIES = 3  # calls that find nobody, one after the other, until a replica is taken out
_REFUSALS = 6  # the same where it answers that it is overloaded
_LOOK_SECONDS = 1.0  # between readings of a server's metrics
_NEAR = 4  # samples by which a server may always be busier than the least busy one


class LaneDown(Exception):
    """The teacher does not work for anybody just now: the lane parks, and no attempt of the prompt is burnt."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


class BudgetReached(LaneDown):
    """The job's budget leaves no room for another call: its lane waits until somebody raises the cap."""

    def __init__(self, reached: tuple[str, ...], at_least: Use) -> None:
        told = {"requests": "requests", "tokens": "tokens", "nanousd": "cost", "seconds": "time"}
        kinds = " and ".join(told[kind] for kind in reached)
        super().__init__(
            "budget",
            f"the budget is reached: no room for another call in its cap of {kinds}. Everything made so far is kept; "
            "raise the cap (PATCH /v1/jobs/{id}, `retort jobs budget`) and it goes on by itself",
        )
        self.at_least = at_least


@dataclass(slots=True, eq=False)
class Replica:
    """One server. `down`: why it is out; `failures`: calls in a row that found nobody there, or no room."""

    spec: TeacherSpec
    teacher: Teacher | None = None
    capabilities: Capabilities | None = None
    controller: Controller = field(default_factory=LatencyLimit)
    pressure: Pressure | None = None  # as last read
    in_flight: int = 0  # samples
    down: LaneDown | None = None
    failures: int = 0
    failed_at: float = -math.inf
    trying: bool = False  # a call is under way to see whether it is back
    not_before: float = -math.inf  # monotonic time of the next try, or of the next probe where it is down
    looked_at: float = -math.inf

    def room(self, now: float) -> float:
        """Samples that may be sent now. After a failure one call at a time tries whether it is back."""
        if self.down is not None or self.capabilities is None or now < self.not_before:
            return 0
        if self.failures:
            return 0 if self.trying else 1
        return max(0.0, self.controller.limit - self.in_flight)

    def takes(self, weight: int, now: float) -> bool:
        """A group of siblings that is larger than the limit goes when nothing else is in flight."""
        room = self.room(now)
        return room >= weight or (room >= 1 and not self.in_flight)

    def sent(self, weight: int) -> None:
        self.in_flight += weight
        self.trying = self.trying or self.failures > 0

    def told(self, result: Result, asked_at: float, weight: int, backoff_s: float) -> None:
        """What became of a call that was sent."""
        now = time.monotonic()
        in_flight = self.in_flight
        self.in_flight -= weight
        late = asked_at < self.failed_at  # it was under way when a failure was noticed
        if not late:
            self.trying = False
        match result:
            case list():
                self.failures = 0
                tokens = sum(made.usage.completion_tokens or 0 for made in result)
                self.controller.answered(now, asked_at, weight, tokens, in_flight)
            case Overloaded():
                self.controller.refused(now, asked_at, in_flight)
                if not late:  # the first time the smaller limit may be enough
                    self._failed(now, result, 0.0 if not self.failures else backoff_s / 2, _REFUSALS)
            case RateLimited() | TimeoutError():
                self.controller.refused(now, asked_at, in_flight)
            case TeacherUnavailable() if not late:
                self._failed(now, result, backoff_s, _TRIES)
            case TeacherRefusedKey() | IdentityChanged():
                self.out(LaneDown(result.kind, result.detail))

    def _failed(
        self, now: float, error: Overloaded | TeacherUnavailable, backoff_s: float, tries: int
    ) -> None:
        self.failures += 1
        self.failed_at = now
        wait = backoff_s * 2.0 ** (self.failures - 1)
        self.not_before = now + (wait if error.retry_after is None else error.retry_after)
        if self.failures >= tries:
            self.out(LaneDown(error.kind, error.detail))

    def to_be_read(self, now: float) -> bool:
        """Whether it is time to read the server's metrics, where it has some: often while its limit is not found."""
        if not isinstance(self.controller, PressureLimit) or self.down is not None:
            return False
        return now - self.looked_at >= (0.0 if self.controller.settling else _LOOK_SECONDS)

    async def read(self) -> None:
        """Read the server's metrics."""
        controller, teacher = self.controller, self.teacher
        assert isinstance(controller, PressureLimit)
        assert isinstance(teacher, Gauged)
        self.looked_at = math.inf  # not twice at the same time
        try:
            found = await teacher.pressure()
        finally:
            self.looked_at = time.monotonic()
        if found is not None and controller is self.controller:
            self.pressure = found
            controller.pressed(self.looked_at, found, self.in_flight)

    def out(self, why: LaneDown) -> None:
        if self.down is None:
            log.warning("%s is taken out: %s", self.name, why.detail)
        self.down = why

    @property
    def address(self) -> bytes:
        return (self.spec.base_url or "").encode()

    @property
    def name(self) -> str:
        return f"teacher {self.spec.name!r}" + (f" at {self.spec.base_url}" if self.spec.base_url else "")


def nearest(able: Sequence[Replica], prefix: bytes) -> Replica:
    """Which server gets a call: the one that prompts with this beginning go to, for it may have that in its cache;
    the least busy one where that is busier by more than a quarter.

    Every worker finds the same one, and another server moves few prefixes (rendezvous hashing: Thaler and
    Ravishankar, 1998).
    """
    if len(able) == 1:
        return able[0]
    idle = min(able, key=lambda replica: replica.in_flight)
    home = max(able, key=lambda replica: hashlib.blake2b(prefix + replica.address, digest_size=8).digest())
    return home if home.in_flight <= idle.in_flight * 1.25 + _NEAR else idle


class Replicas:
    """Belongs to the event loop."""

    def __init__(self, build: BuildTeacher, backoff_s: float) -> None:
        self._build = build
        self._backoff_s = backoff_s
        self._all: list[Replica] = []
        self._probes: dict[Replica, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._all)

    async def reach(self, lane: lanes.LaneSpec, specs: Sequence[TeacherSpec]) -> Capabilities:
        """Ask every server what it is now. Returns what the first one that fits the lane can do.

        Raises `LaneDown` where none does.
        """
        await self._follow(specs)
        asked = [self._ask(replica) for replica in self._all]
        await asyncio.wait(asked, timeout=_PATIENCE)
        if self._fitting(lane) is None:
            await asyncio.wait(asked)
        found = self._fitting(lane)
        if found is None:
            raise self.why_down(lane)
        assert found.capabilities is not None
        return found.capabilities

    def why_down(self, lane: lanes.LaneSpec) -> LaneDown:
        """Why no server works for the lane, where none does."""
        reasons = [(replica, replica.down or unfit(lane, replica.capabilities)) for replica in self._all]
        given = [(replica, why) for replica, why in reasons if why is not None]
        if len(given) == 1:
            return given[0][1]
        detail = "; ".join(f"{replica.spec.base_url}: {why.detail}" for replica, why in given)
        return LaneDown(given[0][1].kind, f"no replica works: {detail}")

    def look_after(self, every: float) -> None:
        """Probe the servers that are out, each once in `every` seconds, and read the load of the others."""
        now = time.monotonic()
        for replica in self._all:
            if replica.to_be_read(now):
                self._spawn(replica.read())
            elif replica.down is not None and now >= replica.not_before:
                replica.not_before = now + every
                self._ask(replica)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._looked)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a server could not be looked after", exc_info=task.exception())

    async def aclose(self) -> None:
        tasks = [*self._probes.values(), *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for replica in self._all:
            if replica.teacher is not None:
                await replica.teacher.aclose()

    def _fitting(self, lane: lanes.LaneSpec) -> Replica | None:
        for replica in self._all:
            if replica.down is None and unfit(lane, replica.capabilities) is None:
                return replica
        return None

    async def move(self, specs: Sequence[TeacherSpec]) -> None:
        """The teacher's owner has changed its addresses: those that are new are asked what is there."""
        await self._follow(specs)
        for replica in self._all:
            if replica.capabilities is None:
                self._ask(replica)

    async def _follow(self, specs: Sequence[TeacherSpec]) -> None:
        """Servers that are new are added, those that are no longer named are closed when their calls have ended."""
        known = {replica.spec.base_url: replica for replica in self._all if replica.spec in specs}
        gone = [replica for replica in self._all if replica.spec not in specs]
        self._all = [known.get(spec.base_url) or Replica(spec) for spec in specs]
        for replica in gone:
            replica.down = replica.down or LaneDown("teacher-unavailable", f"{replica.name} was taken away")
            self._spawn(self._closed(replica))

    async def _closed(self, replica: Replica) -> None:
        while replica.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        if replica.teacher is not None:
            await replica.teacher.aclose()

    def _ask(self, replica: Replica) -> asyncio.Task[None]:
        if replica not in self._probes:
            task = self._probes[replica] = asyncio.create_task(self._probe(replica))
            task.add_done_callback(lambda _: self._probes.pop(replica, None))
        return self._probes[replica]

    async def _probe(self, replica: Replica) -> None:
        name = replica.spec.name
        try:
            if replica.teacher is None:
                replica.teacher = self._build(replica.spec)
            async with asyncio.timeout(_PROBE_SECONDS):
                found = await replica.teacher.capabilities()
                if found.reachable and (replica.down is not None or replica.capabilities is None):
                    replica.controller, replica.pressure = await _controller(replica.teacher, found)
        except TeacherError as error:
            return replica.out(LaneDown(error.kind, error.detail))
        except TimeoutError:
            detail = f"the teacher did not answer the probe within {_PROBE_SECONDS} s"
            return replica.out(LaneDown("teacher-unavailable", detail))
        except Exception as error:
            log.exception("teacher %r cannot be opened", name)
            return replica.out(LaneDown("internal", f"teacher {name!r} cannot be opened: {error}"))
        if not found.reachable:
            why = "; ".join(found.problems) or "unreachable"
            return replica.out(LaneDown("teacher-unavailable", why))
        if replica.down is not None:
            log.info("%s is back", replica.name)
        replica.capabilities, replica.down, replica.failures = found, None, 0
        replica.trying, replica.not_before = False, -math.inf
        return None


async def _controller(teacher: Teacher, found: Capabilities) -> tuple[Controller, Pressure | None]:
    """What decides how much a server is given, and its first reading where that is made from readings."""
    if found.hosted:
        return ThrottleLimit(), None
    pressure = await teacher.pressure() if isinstance(teacher, Gauged) else None
    return (LatencyLimit() if pressure is None else PressureLimit()), pressure


def unfit(lane: lanes.LaneSpec, found: Capabilities | None) -> LaneDown | None:
    """Why a lane cannot be worked on with a server of which a probe found this; None where it can."""
    name = lane.spec.name
    if found is None:
        return LaneDown("teacher-unavailable", f"teacher {name!r} did not answer a probe yet")
    if lane.identity_sha256 is not None and fingerprint(found.identity()) != lane.identity_sha256:
        return LaneDown(
            "teacher-identity-changed",
            f"teacher {name!r} is not the one that this job began with: it is now {found.identity()}. "
            "Bring the first one back, or cancel the job and submit it again.",
        )
    wanted = max(stage.top_logprobs for stage in lane.stages.values())
    if wanted > found.max_top_logprobs:
        why = "; ".join(found.problems)
        return LaneDown(
            "teacher-unsupported",
            f"the job wants {wanted} top logprobs and teacher {name!r} gives at most {found.max_top_logprobs}"
            + (f": {why}" if why else "."),
        )
    return None
