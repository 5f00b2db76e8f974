"""What gates look up is renewed here: shares of caps, of budgets and of rates. Belongs to the event loop."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from functools import partial

from app.db.servers import ServerSeen
from app.domain.budget import NOTHING
from app.domain.rates import NO_AMOUNTS
from app.services.generate.accounts import BudgetAccount
from app.services.generate.gates import Cap, LaneGate, TeacherGate
from app.services.generate.replicas import BudgetReached, LaneDown
from app.services.generate.sharing import BudgetAsked, CapAsked, RatesAsked, Sharing
from app.services.generate.threads import Threads
from app.services.generate.work import Unit

_CALLS = 16  # that are held for at least, where so many are waiting
_BOUNDS_SECONDS = 5.0  # between looks at what the teachers' owners allow
_TELL_SECONDS = 2.0


class Renewals:
    """One at a time: what is asked for is what the gates need at that moment."""

    def __init__(
        self, sharing: Sharing, threads: Threads, park: Callable[[LaneGate, LaneDown], None]
    ) -> None:
        self._sharing = sharing
        self._threads = threads
        self._park = park
        self._budgets: dict[str, BudgetAccount] = {}
        self._paced: dict[str, TeacherGate] = {}  # until what their calls took is told
        self._one = asyncio.Lock()
        self._bounds_at = time.monotonic()
        self._told_at = -math.inf

    def budget_of(self, job_id: str) -> BudgetAccount:
        return self._budgets.setdefault(job_id, BudgetAccount(job_id))

    async def all(self, gates: list[LaneGate]) -> None:
        """Every share, once a second or so."""
        async with self._one:
            await self._caps(gates)
            for gate in gates:
                if gate.budget is not None:  # or it was forgotten while its lane had no work
                    gate.budget = self._budgets.setdefault(gate.spec.job_id, gate.budget)
            for account in list(self._budgets.values()):
                await self._budget(account, [gate for gate in gates if gate.budget is account])
            self._paced |= {one.teacher_id: one for one in _teachers(gates) if one.paced}
            for teacher in list(self._paced.values()):
                mine = [gate for gate in gates if gate.teacher is teacher]
                await self._rates(teacher, mine)
                if not mine and not teacher.cap.in_flight and not teacher.rates.corrections:
                    del self._paced[teacher.teacher_id]

    async def starved(self, gates: list[LaneGate]) -> None:
        """Only what some call waits for."""
        async with self._one:
            for account in list(self._budgets.values()):
                if account.starved:
                    await self._budget(account, [gate for gate in gates if gate.budget is account])
            for teacher in _teachers(gates):
                if teacher.rates.starved or teacher.rates.throttles.seconds:
                    await self._rates(teacher, [gate for gate in gates if gate.teacher is teacher])

    async def bounds(self, gates: list[LaneGate]) -> None:
        """Caps and limits that a teacher's owner has changed hold for running jobs, too."""
        if time.monotonic() - self._bounds_at < _BOUNDS_SECONDS:
            return
        self._bounds_at = time.monotonic()
        teachers = {teacher.teacher_id: teacher for teacher in _teachers(gates)}
        if not teachers:
            return
        specs = {gate.teacher.teacher_id: gate.spec for gate in gates}
        bounds = await self._threads.share(partial(self._sharing.bounds, sorted(teachers)))
        for teacher_id, found in bounds.items():
            teacher = teachers[teacher_id]
            teacher.cap.most = found.cap
            teacher.paced = teacher.paced or found.paced
            if found.urls != tuple(replica.spec.base_url for replica in teacher.replicas):
                await teacher.replicas.move(specs[teacher_id].servers(found.urls))

    async def tell(self, gates: list[LaneGate]) -> None:
        """How the teachers' servers are, for people who ask."""
        if time.monotonic() - self._told_at < _TELL_SECONDS:
            return
        self._told_at = time.monotonic()
        seen = [
            ServerSeen(
                teacher_id=teacher.teacher_id,
                url=replica.spec.base_url or "",
                state="down" if replica.down else "failing" if replica.failures else "up",
                reason=None if replica.down is None else replica.down.detail[:1000],
                room=replica.controller.limit,
                in_flight=replica.in_flight,
                running=None if replica.pressure is None else replica.pressure.running,
                waiting=None if replica.pressure is None else replica.pressure.waiting,
            )
            for teacher in _teachers(gates)
            for replica in teacher.replicas
        ]
        if seen:
            await self._threads.share(partial(self._sharing.tell, seen))

    async def leave(self) -> None:
        """Nothing is under way: give back what is held."""
        async with self._one:
            for account in list(self._budgets.values()):
                await self._leave(account)
            for teacher in self._paced.values():
                await self._rates(teacher, [])

    async def _caps(self, gates: list[LaneGate]) -> None:
        wants: dict[str, tuple[Cap, int]] = {}
        for gate in gates:
            for cap in (gate.teacher.cap, gate.job):
                if cap.most is not None:
                    wanted = wants.get(cap.scope, (cap, 0))[1] + gate.in_flight + gate.wanted()
                    wants[cap.scope] = (cap, wanted)
        for cap, wanted in wants.values():
            asked_at = time.monotonic()
            asked = CapAsked(cap.scope, cap.table, wanted, cap.share)
            found = await self._threads.share(partial(self._sharing.cap, asked))
            if found is None:
                cap.most = None  # it was lifted
            else:
                # What is more than fair is left unused from now on, and given back by the next renewal.
                cap.share = min(found[0], max(found[1], cap.in_flight))
                cap.until = asked_at + self._sharing.seconds

    async def _budget(self, account: BudgetAccount, gates: list[LaneGate]) -> None:
        if not gates and account.reserved == NOTHING:
            await self._leave(account)
            return
        waiting = sorted(
            ((gate.need(unit).most, gate) for gate, unit in _heads(gates)),
            key=lambda one: (one[0].tokens, one[0].nanousd),
        )
        at_least = waiting[0][0] if waiting else NOTHING
        calls = max(_CALLS, 4 * account.begun)
        wanted = sum((most * min(calls, gate.n_pending()) for most, gate in waiting), NOTHING)
        settled, reserved, wanted = account.asking(wanted, at_least)
        account.begun = 0
        asked_at = time.monotonic()
        asked = BudgetAsked(account.job_id, account.known, settled, reserved, wanted, at_least)
        share = await self._threads.share(partial(self._sharing.budget, asked))
        account.renewed(share, settled, asked_at)
        if not account.reached:
            return
        late = "seconds" in account.reached
        for most, gate in waiting if late else waiting[:1]:
            self._park(gate, BudgetReached(account.reached, most))
        account.reached = ()  # the job's other lanes may need less

    async def _leave(self, account: BudgetAccount) -> None:
        if account.known:
            told = account.settled
            account.held = NOTHING
            leave = partial(self._sharing.leave_budget, account.job_id, told, account.reserved)
            await self._threads.share(leave)
            account.left(told)
        self._budgets.pop(account.job_id, None)

    async def _rates(self, teacher: TeacherGate, gates: list[LaneGate]) -> None:
        account = teacher.rates
        likely = [gate.need(unit).likely for gate, unit in _heads(_in_turn(gates))]
        calls = max(_CALLS, 4 * account.begun)
        at_least = likely[0] if likely else NO_AMOUNTS
        wanted = at_least.scaled(min(calls, sum(gate.n_pending() for gate in gates)))
        account.begun = 0
        corrections, throttles = account.asking()
        asked_at = time.monotonic()
        asked = RatesAsked(teacher.teacher_id, wanted, at_least, corrections, throttles, account.announced)
        try:
            block = await self._threads.share(partial(self._sharing.rates, asked))
        except BaseException:
            account.not_told(corrections, throttles)
            raise
        others = account.granted(block, asked_at, throttles)
        teacher.held_until = max(teacher.held_until, asked_at + block.held_seconds)
        if others:
            teacher.refused_elsewhere(time.monotonic())


def _teachers(gates: Iterable[LaneGate]) -> list[TeacherGate]:
    return list({gate.teacher.teacher_id: gate.teacher for gate in gates}.values())


def _heads(gates: Iterable[LaneGate]) -> list[tuple[LaneGate, Unit]]:
    found = [(gate, gate.head()) for gate in gates]
    return [(gate, unit) for gate, unit in found if unit is not None]


def _in_turn(gates: Iterable[LaneGate]) -> list[LaneGate]:
    """Whose call is next, as `lane.next_call` chooses."""
    return sorted(gates, key=lambda gate: (-gate.spec.priority, gate.in_flight))
