"""The teachers that a worker has opened, each once, and the decision whether a lane can be worked on with one."""

import asyncio
import logging
from collections.abc import Callable

from app.db import lanes
from app.errors import TeacherError
from app.services.generate.calls import LaneDown
from app.services.generate.lane import unfit
from app.teachers.base import Capabilities, Teacher, TeacherSpec

log = logging.getLogger(__name__)

BuildTeacher = Callable[[TeacherSpec], Teacher]

_PROBE_SECONDS = 120


class OpenTeachers:
    """Belongs to the event loop."""

    def __init__(self, build: BuildTeacher) -> None:
        self._build = build
        self._open: dict[str, tuple[TeacherSpec, Teacher]] = {}

    async def reach(self, lane: lanes.LaneSpec) -> tuple[Teacher, Capabilities]:
        """The lane's teacher and what it can do now. Raises `LaneDown` where the lane has to wait for it."""
        name = lane.spec.name
        try:
            teacher = await self._teacher(lane.teacher_id, lane.spec)
            async with asyncio.timeout(_PROBE_SECONDS):
                found = await teacher.capabilities()
        except TeacherError as error:
            raise LaneDown(error.kind, error.detail) from error
        except TimeoutError as error:
            detail = f"the teacher did not answer the probe within {_PROBE_SECONDS} s"
            raise LaneDown("teacher-unavailable", detail) from error
        except Exception as error:
            log.exception("teacher %r cannot be opened", name)
            raise LaneDown("internal", f"teacher {name!r} cannot be opened: {error}") from error
        down = unfit(lane, found)
        if down is not None:
            raise down
        return teacher, found

    async def _teacher(self, teacher_id: str, spec: TeacherSpec) -> Teacher:
        known = self._open.get(teacher_id)
        if known is not None and known[0] == spec:
            return known[1]
        made = self._build(spec)
        self._open[teacher_id] = (spec, made)
        if known is not None:
            await known[1].aclose()
        return made

    async def aclose(self) -> None:
        for _, teacher in self._open.values():
            await teacher.aclose()
