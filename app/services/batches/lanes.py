"""The lanes that batches belong to: their teachers' batch APIs, each opened once and asked who it is."""

from dataclasses import dataclass

from sqlalchemy import Engine

from app.db import lanes, provider_batches
from app.db.lanes import LaneSpec
from app.db.session import reading, transaction
from app.domain.fingerprints import fingerprint
from app.services.batches.config import BuildBatches
from app.services.generate.replicas import LaneDown, unfit
from app.teachers.base import Capabilities
from app.teachers.batches import BatchTeacher


@dataclass(frozen=True, slots=True)
class OpenLane:
    spec: LaneSpec
    teacher: BatchTeacher
    capabilities: Capabilities


class OpenLanes:
    """Belongs to the event loop; what waits for the database is called in a thread."""

    def __init__(self, database: Engine, build: BuildBatches) -> None:
        self._database = database
        self._build = build
        self._open: dict[str, tuple[LaneSpec, BatchTeacher, Capabilities | None]] = {}

    def load(self, job_id: str, teacher: int) -> LaneSpec:
        with reading(self._database) as connection:
            return lanes.load(connection, job_id, teacher)

    async def teacher(self, spec: LaneSpec) -> BatchTeacher:
        """Opened once, and anew where its address or secret has changed. Raises what `build` raises."""
        known = self._open.get(spec.teacher_id)
        if known is not None and known[0].spec == spec.spec:
            return known[1]
        made = self._build(spec.spec)
        self._open[spec.teacher_id] = (spec, made, None)
        if known is not None:
            await known[1].aclose()
        return made

    async def reach(self, spec: LaneSpec, afresh: bool) -> OpenLane:
        """The lane with what its teacher is now; `afresh`: asked again. Raises `LaneDown`, and what the driver raises.

        What a probe found decides what a request says, so the same findings read the results that made the requests.
        """
        teacher = await self.teacher(spec)
        known = self._open[spec.teacher_id][2]
        found = known if known is not None and not afresh else await teacher.teacher.capabilities()
        if not found.reachable:
            why = "; ".join(found.problems) or "unreachable"
            raise LaneDown("teacher-unavailable", f"teacher {spec.spec.name!r}: {why}")
        if (down := unfit(spec, found)) is not None:
            raise down
        self._open[spec.teacher_id] = (spec, teacher, found)
        return OpenLane(spec, teacher, found)

    def pin(self, spec: LaneSpec, found: Capabilities) -> LaneSpec:
        """Write down who the teacher is, where that is not known yet."""
        if spec.identity_sha256 is not None:
            return spec
        identity = fingerprint(found.identity())
        with transaction(self._database) as connection:
            lanes.pin_identity(connection, spec.job_id, spec.teacher, identity, found.as_json())
        return self.load(spec.job_id, spec.teacher)

    def park(self, spec: LaneSpec, kind: str, reason: str, seconds: float | None) -> None:
        with transaction(self._database) as connection:
            lanes.park(connection, spec.job_id, spec.teacher, kind, reason, seconds)

    def unpark(self, spec: LaneSpec) -> None:
        """The teacher that the lane waited for answers again; what waits for a person goes on waiting."""
        with transaction(self._database) as connection:
            lanes.unpark(connection, spec.job_id, spec.teacher, timed=True)

    def others(self, batch_id: str) -> set[str]:
        with reading(self._database) as connection:
            return provider_batches.others(connection, batch_id)

    async def aclose(self) -> None:
        for _, teacher, _ in self._open.values():
            await teacher.aclose()
        self._open.clear()
