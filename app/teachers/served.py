"""Whether whoever answers is who the probe found: what stands behind an address may become another while a job runs."""

import asyncio
from collections.abc import Awaitable, Callable

from app.errors import IdentityChanged, TeacherUnavailable
from app.teachers.base import Capabilities


def check_model(told: object, served: str | None) -> None:
    """`told`: the model that an answer names, if it does; `served`: the one that the probe was answered by.

    Raises `IdentityChanged`.
    """
    if isinstance(told, str) and told and served is not None and told != served:
        raise IdentityChanged(
            f"the answer is of model {told!r}, and the teacher's probe was answered by {served!r}"
        )


class Fingerprints:
    """`system_fingerprint`s that belong to one identity. A new one is looked at once, whoever sees it first."""

    def __init__(self, look: Callable[[], Awaitable[Capabilities]]) -> None:
        self._look = look
        self._known: dict[str, str | None] = {}  # to why it is another's; None: it is ours
        self._looking = asyncio.Lock()

    def start(self, fingerprint: str | None) -> None:
        """The one that a probe saw; what was known before is of another time."""
        self._known = {} if fingerprint is None else {fingerprint: None}

    async def check(self, told: object, before: Capabilities) -> None:
        """Raises `IdentityChanged` for one that belongs to another server than `before`; `TeacherUnavailable`."""
        if not isinstance(told, str) or not self._known:
            return
        if told not in self._known:
            async with self._looking:
                await self._meet(told, before)
        if (why := self._known[told]) is not None:
            raise IdentityChanged(why)

    async def _meet(self, told: str, before: Capabilities) -> None:
        if told in self._known:  # another call has looked meanwhile
            return
        now = await self._look()
        if not now.reachable:
            raise TeacherUnavailable("; ".join(now.problems) or "the teacher cannot be reached")
        same = now.identity() == before.identity()
        self._known[told] = None if same else f"the teacher is now {now.identity()}"
