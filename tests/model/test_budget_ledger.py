"""The ledger of budgets under every interleaving that hypothesis finds: workers call, settle, renew, stall, die.

The accounts are the workers' own, the ledger is a real database. What the calls really used is counted beside it: it
never passes the cap. Broken in one place, the same checks find it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine, StaticPool, create_engine, select, update

from app.db import budgets
from app.db.admission_models import BudgetUse
from app.db.models import Base, Job
from app.db.session import reading, session, transaction
from app.domain.budget import NOTHING, Caps, Use, share
from app.services.generate.accounts import BudgetAccount, Reservation
from tests.fixtures.jobs import JobSetup, make_job

LEASE = 10.0
uses = st.builds(Use, st.integers(1, 2), st.integers(1, 60), st.integers(0, 50))


@given(
    caps=st.builds(Caps, *(st.none() | st.integers(0, 200) for _ in range(3))),
    taken=st.builds(Use, *(st.integers(0, 150) for _ in range(3))),
    reserved=st.builds(Use, *(st.integers(0, 80) for _ in range(3))),
    wanted=st.builds(Use, *(st.integers(0, 300) for _ in range(3))),
    at_least=uses,
)
def test_a_share_never_passes_the_cap_and_is_never_a_useless_rest(
    caps: Caps, taken: Use, reserved: Use, wanted: Use, at_least: Use
) -> None:
    held = share(caps, taken, reserved, wanted, at_least)
    assert held.covers(reserved)
    if not caps.short_of(taken + reserved):
        assert not caps.short_of(taken + held)
    if wanted.covers(at_least):
        assert held == reserved or (held - reserved).covers(at_least)
        if not caps.short_of(taken + reserved + at_least):
            assert held != reserved, "there was room for a call"


def in_memory() -> Engine:
    """SQLite without a file: many small ledgers, none of which outlives its example."""
    made = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(made)
    return made


@dataclass
class Worker:
    account: BudgetAccount
    calls: list[tuple[Use, Reservation]] = field(default_factory=list)


class Ledger(RuleBasedStateMachine):
    """Times are virtual: where they pass, leases in the database grow shorter."""

    account: ClassVar[type[BudgetAccount]] = BudgetAccount

    def __init__(self) -> None:
        super().__init__()
        self.database = in_memory()
        self.now = 0.0
        self.cap = Use(20, 600, 500)
        self.job = make_job(self.database, JobSetup(prompts=1))
        self._set_cap()
        self.spent = NOTHING  # by calls that ended, as the teacher counts
        self.orphans: list[Use] = []  # calls whose worker died: they may have been answered
        self.workers = [self._made() for _ in range(3)]
        self.names = [f"w{i}" for i in range(3)]

    def teardown(self) -> None:
        self.database.dispose()

    def _made(self) -> Worker:
        return Worker(self.account(self.job))

    def _set_cap(self) -> None:
        budget = {
            "max_requests": self.cap.requests,
            "max_tokens": self.cap.tokens,
            "max_cost_usd": self.cap.nanousd / 1e9,
        }
        with transaction(self.database) as connection:
            budgets.lock(connection, self.job)
            connection.execute(update(Job).where(Job.id == self.job).values(budget=budget))

    @rule(index=st.integers(0, 2), use=uses)
    def call(self, index: int, use: Use) -> None:
        worker = self.workers[index]
        if worker.account.has(use, self.now):
            worker.calls.append((use, worker.account.reserve(use)))

    @rule(index=st.integers(0, 2), share=st.floats(0, 1))
    def end(self, index: int, share: float) -> None:
        worker = self.workers[index]
        if worker.calls:
            use, reservation = worker.calls.pop(0)
            used = Use(use.requests, int(use.tokens * share), int(use.nanousd * share))
            self.spent += used
            worker.account.settle(reservation, used)

    @rule(index=st.integers(0, 2), wanted=st.integers(0, 4), use=uses)
    def renew(self, index: int, wanted: int, use: Use) -> None:
        worker = self.workers[index]
        asked = worker.account.asking(use * wanted, use)
        self._renew(index, asked, use)

    @rule(first=st.integers(0, 2), wanted=st.integers(0, 4), use=uses, other=uses)
    def call_and_end_while_it_renews(self, first: int, wanted: int, use: Use, other: Use) -> None:
        worker = self.workers[first]
        asked = worker.account.asking(use * wanted, use)
        self.call(first, other)
        self.end(first, 0.5)
        self.call(first, use)
        self._renew(first, asked, use)

    def _renew(self, index: int, asked: tuple[Use, Use, Use], use: Use) -> None:
        worker = self.workers[index]
        settled, reserved, wanted = asked
        with transaction(self.database) as connection:
            found = budgets.renew(
                connection,
                self.job,
                self.names[index],
                worker.account.known,
                settled,
                reserved,
                wanted,
                use,
                LEASE,
            )
        worker.account.renewed(found, settled, self.now)

    @rule(index=st.integers(0, 2))
    def die(self, index: int) -> None:
        """kill -9; another process takes its place."""
        self.orphans += [use for use, _ in self.workers[index].calls]
        self.workers[index] = self._made()
        self.names[index] += "x"

    @rule(index=st.integers(0, 2))
    def leave(self, index: int) -> None:
        worker = self.workers[index]
        with transaction(self.database) as connection:
            budgets.leave(
                connection, self.job, self.names[index], worker.account.settled, worker.account.reserved
            )
        self.orphans += [use for use, _ in worker.calls]
        self.workers[index] = self._made()
        self.names[index] += "y"

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        with transaction(self.database) as connection:
            connection.execute(update(BudgetUse).values(lease_until=BudgetUse.lease_until - seconds))

    @rule()
    def raise_the_cap(self) -> None:
        self.cap += Use(5, 100, 100)
        self._set_cap()

    @invariant()
    def the_cap_holds(self) -> None:
        under_way = [use for worker in self.workers for use, _ in worker.calls]
        truth = sum([*under_way, *self.orphans], self.spent)
        assert self.cap.covers(truth), f"{truth} used and under way of {self.cap}"
        with session(self.database, writes=False) as work:
            found = budgets.totals(work, [self.job])[self.job]
        assert self.cap.covers(found.used + found.held + found.lost)

    @rule()
    def all_is_told_in_the_end(self) -> None:
        """Everybody ends and tells: what is free is usable by one of them, or they are told that nothing is."""
        for index, worker in enumerate(self.workers):
            while worker.calls:
                self.end(index, 0.3)
        self.time_passes(LEASE + 1)  # the leases of the dead run out
        one = Use(1, 10, 5)
        for index in (0, 1, 2):
            self._renew(index, self.workers[index].account.asking(NOTHING, NOTHING), NOTHING)
        self._renew(0, self.workers[0].account.asking(one, one), one)
        account = self.workers[0].account
        assert account.has(one, self.now) or account.reached
        with session(self.database, writes=False) as work:
            found = budgets.totals(work, [self.job])[self.job]
        assert (found.used + found.lost).covers(self.spent), "more was used than the ledger knows"


def explore(machine: type[Ledger], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),
            database=None,
        ),
    )


def test_no_interleaving_passes_the_cap() -> None:
    explore(Ledger, 12)


class KeepsSpending(BudgetAccount):
    """Goes on using what it has told the ledger that it gives back."""

    def asking(self, wanted: Use, at_least: Use) -> tuple[Use, Use, Use]:
        held = self.held
        asked = BudgetAccount.asking(self, wanted, at_least)
        self.held = held
        return asked


class Forgets(BudgetAccount):
    """Tells nothing of what calls have used."""

    def settle(self, reservation: Reservation, used: Use) -> None:
        BudgetAccount.settle(self, reservation, NOTHING)


class Forgetful(Ledger):
    """A ledger that forgets what the dead held."""

    def __init__(self) -> None:
        super().__init__()
        with self.database.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER forget AFTER UPDATE OF lost_tokens ON budget_use WHEN NEW.lost_tokens > 0 BEGIN "
                "UPDATE budget_use SET lost_requests = 0, lost_tokens = 0, lost_nanousd = 0 "
                "WHERE job_id = NEW.job_id AND worker_id = NEW.worker_id; END"
            )


ONE = Use(1, 60, 0)  # ten of them are the whole cap of tokens


def gives_back_and_calls(ledger: Ledger) -> None:
    """A worker gives its share back, and begins a call before the ledger has answered; another one takes it all."""
    ledger.renew(0, 10, ONE)
    asked = ledger.workers[0].account.asking(NOTHING, NOTHING)
    ledger.call(0, ONE)
    ledger._renew(0, asked, NOTHING)
    takes_all(ledger, 1)


def calls_again_and_again(ledger: Ledger) -> None:
    ledger.renew(0, 10, ONE)
    for _ in range(12):
        ledger.call(0, ONE)
        ledger.end(0, 1.0)
        ledger.the_cap_holds()


def dies_in_its_calls(ledger: Ledger) -> None:
    takes_all(ledger, 0)
    ledger.die(0)
    ledger.time_passes(LEASE + 1)
    takes_all(ledger, 1)


def takes_all(ledger: Ledger, index: int) -> None:
    ledger.renew(index, 10, ONE)
    for _ in range(10):
        ledger.call(index, ONE)
    ledger.the_cap_holds()


STORIES = [gives_back_and_calls, calls_again_and_again, dies_in_its_calls]


@pytest.mark.parametrize("story", STORIES)
def test_stories_that_end_well(story: Callable[[Ledger], None]) -> None:
    story(Ledger())


@pytest.mark.parametrize(
    ("broken", "story"),
    [
        (type("Keeping", (Ledger,), {"account": KeepsSpending}), gives_back_and_calls),
        (type("Forgetting", (Ledger,), {"account": Forgets}), calls_again_and_again),
        (Forgetful, dies_in_its_calls),
    ],
)
def test_what_is_broken_passes_the_cap(broken: type[Ledger], story: Callable[[Ledger], None]) -> None:
    with pytest.raises(AssertionError, match="used and under way"):
        story(broken())


def test_the_first_row_tells_what_was_used_before(engine: Engine) -> None:
    from app.db.models import Counter

    job = make_job(engine, JobSetup(prompts=1))
    values: dict[str, Any] = {"job_id": job, "teacher": 0, "stripe": 0, "calls": 7, "prompt_tokens": 30}
    with transaction(engine) as connection:
        connection.execute(Counter.__table__.insert().values(**values, completion_tokens=12, cost_nanousd=5))  # type: ignore[attr-defined]
        budgets.lock(connection, job)
    with reading(engine) as connection:
        row = connection.execute(select(BudgetUse.__table__)).one()
    assert (row.used_requests, row.used_tokens, row.used_nanousd) == (7, 42, 5)
