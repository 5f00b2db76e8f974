"""A worker's side of what all workers share: caps, budgets, rates. Each method is one transaction, in a thread."""

from dataclasses import dataclass

from sqlalchemy import Engine

from app.db import budgets, lanes, rates, servers, slots
from app.db.models import Job, Teacher
from app.db.session import reading, transaction
from app.domain.budget import Use
from app.domain.rates import Amounts, Limits


@dataclass(frozen=True, slots=True)
class CapAsked:
    """A cap of calls in flight: what is wanted of it, and what of it is in use."""

    scope: str
    table: type[Job] | type[Teacher]
    wanted: int
    held: int


@dataclass(frozen=True, slots=True)
class BudgetAsked:
    """See `app.db.budgets.renew`."""

    job_id: str
    known: bool
    settled: Use
    reserved: Use
    wanted: Use
    at_least: Use


@dataclass(frozen=True, slots=True)
class RatesAsked:
    """See `app.db.rates.take`."""

    teacher_id: str
    wanted: Amounts
    at_least: Amounts
    corrections: dict[int, Amounts]
    throttles: rates.Throttles
    announced: Limits | None


class Sharing:
    def __init__(self, database: Engine, worker_id: str, seconds: float) -> None:
        """`seconds`: how long a share of a cap is ours after it was asked for."""
        self._database = database
        self._worker = worker_id
        self.seconds = seconds
        # What a worker that died had reserved is lost: one that is only slow must not be taken for dead.
        self.budget_seconds = max(30.0, 3 * seconds)

    def cap(self, asked: CapAsked) -> tuple[int, int] | None:
        """(share, fair share); None where the cap is gone."""
        with transaction(self._database) as connection:
            most = slots.locked_cap(connection, asked.table, asked.scope)
            if most is None:
                return None
            return slots.grant(
                connection, asked.scope, most, self._worker, asked.wanted, asked.held, self.seconds
            )

    def budget(self, asked: BudgetAsked) -> budgets.Share:
        with transaction(self._database) as connection:
            return budgets.renew(
                connection,
                asked.job_id,
                self._worker,
                asked.known,
                asked.settled,
                asked.reserved,
                asked.wanted,
                asked.at_least,
                self.budget_seconds,
            )

    def leave_budget(self, job_id: str, settled: Use, reserved: Use) -> None:
        with transaction(self._database) as connection:
            budgets.leave(connection, job_id, self._worker, settled, reserved)

    def rates(self, asked: RatesAsked) -> rates.Block:
        with transaction(self._database) as connection:
            return rates.take(
                connection,
                asked.teacher_id,
                asked.wanted,
                asked.at_least,
                asked.corrections,
                asked.throttles,
                asked.announced,
            )

    def tell(self, seen: list[servers.ServerSeen]) -> None:
        with transaction(self._database) as connection:
            servers.tell(connection, self._worker, seen)

    def bounds(self, teacher_ids: list[str]) -> dict[str, lanes.TeacherBounds]:
        """What their owners allow of the teachers now."""
        with reading(self._database) as connection:
            return lanes.bounds(connection, teacher_ids)
