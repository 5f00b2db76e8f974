"""The ledger of a job's budget: what is used, what workers hold for their calls, what was lost with those that died.

used + held + lost ≤ cap at every commit. A worker calls only on what it holds. What a dead worker held is taken for
used once its lease has run out: its calls may have been answered, and nobody can know.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, delete, func, insert, select, update
from sqlalchemy.orm import Session

from app.db.admission_models import BudgetUse
from app.db.inserting import insert_ignoring
from app.db.models import Counter, Job
from app.db.session import db_now
from app.domain.budget import KINDS, NOTHING, Caps, Use, share

_REST = ""  # the row of those that are gone; the ledger's lock


@dataclass(frozen=True, slots=True)
class Share:
    """What a worker may do. `held`: for calls in flight and to come; None: there is no cap.

    `gone`: its row had run out and was written off, so what it did before is accounted for already. `reached`: kinds
    of cap that leave no room for another call, now and for good. `seconds_left`: of the job's time; None: no cap.
    """

    held: Use | None
    gone: bool
    reached: tuple[str, ...]
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Of a job, over all workers."""

    used: Use
    held: Use
    lost: Use


NO_TOTALS = Totals(NOTHING, NOTHING, NOTHING)


def renew(
    connection: Connection,
    job_id: str,
    worker: str,
    known: bool,
    settled: Use,
    reserved: Use,
    wanted: Use,
    at_least: Use,
    seconds: float,
) -> Share:
    """Tell what calls that ended have used, and hold as much as is free of what the next ones may use.

    `known`: the worker has a row, as far as it knows. `reserved`: for its calls in flight. `wanted`: for calls to come,
    of which the smallest takes `at_least`. Before it asks for less than it holds it must have stopped using the rest.
    """
    job, rows, now = _locked(connection, job_id)
    caps, budget = Caps.of(job.budget), job.budget or {}
    mine = rows.get(worker)
    gone = known and mine is None
    if gone:
        settled = reserved = NOTHING
    others = sum((_use(row, "held") for name, row in rows.items() if name != worker), NOTHING)
    before = NOTHING if mine is None else _use(mine, "used")
    used = sum((_use(row, "used") + _use(row, "lost") for row in rows.values()), settled)
    taken = used + others
    held = share(caps, taken, reserved, wanted, at_least) if caps else reserved + wanted
    values = {
        **_columns("used", before + settled),
        **_columns("held", held),
        "lease_until": db_now() + seconds,
    }
    if mine is None:
        zero = _columns("lost", NOTHING)
        connection.execute(insert(BudgetUse).values(job_id=job_id, worker_id=worker, **values, **zero))
    else:
        connection.execute(
            update(BudgetUse)
            .where(BudgetUse.job_id == job_id, BudgetUse.worker_id == worker)
            .values(**values)
        )
    # Only with nobody's calls under way is it for good: what they leave over comes back.
    reached = () if others != NOTHING or reserved != NOTHING else caps.short_of(taken + at_least)
    left = budget.get("max_seconds")
    if left is not None:
        left = left if job.started_at is None else job.started_at + left - now
        reached = (*reached, "seconds") if left <= 0 else reached
    return Share(held if caps else None, gone, reached, left)


def leave(connection: Connection, job_id: str, worker: str, settled: Use, reserved: Use) -> None:
    """The worker works on the job no more. What it has reserved for calls whose end it will not see is lost."""
    _, rows, _ = _locked(connection, job_id)
    mine = rows.get(worker)
    if mine is not None:
        _fold(connection, job_id, {worker: (_use(mine, "used") + settled, reserved)})


def is_reached(connection: Connection, job_id: str, at_least: Use) -> bool:
    """Whether no call can be made, now and for good. The ledger stays locked until the transaction ends."""
    job, rows, now = _locked(connection, job_id)
    left = (job.budget or {}).get("max_seconds")
    if left is not None and job.started_at is not None and job.started_at + left <= now:
        return True
    if any(_use(row, "held") != NOTHING for row in rows.values()):
        return False  # what others leave over comes back
    taken = sum((_use(row, kind) for row in rows.values() for kind in ("used", "lost")), NOTHING)
    return bool(Caps.of(job.budget).short_of(taken + at_least))


def lock(connection: Connection, job_id: str) -> None:
    """Nobody's share changes until the transaction ends."""
    _locked(connection, job_id)


def totals(session: Session, job_ids: Sequence[str]) -> dict[str, Totals]:
    """Per job that has a ledger: a row a worker."""
    alive = func.coalesce(BudgetUse.lease_until, 0) > db_now()
    sums = []
    for kind in KINDS:
        held = getattr(BudgetUse, f"held_{kind}")
        sums += [
            func.sum(getattr(BudgetUse, f"used_{kind}")),
            func.sum(case((alive, held), else_=0)),
            func.sum(getattr(BudgetUse, f"lost_{kind}") + case((alive, 0), else_=held)),
        ]
    found = session.execute(
        select(BudgetUse.job_id, *sums).where(BudgetUse.job_id.in_(job_ids)).group_by(BudgetUse.job_id)
    )
    result = {}
    for job_id, *values in found:
        numbers = [int(value) for value in values]
        result[job_id] = Totals(Use(*numbers[0::3]), Use(*numbers[1::3]), Use(*numbers[2::3]))
    return result


def _locked(connection: Connection, job_id: str) -> tuple["_JobRow", dict[str, Any], float]:
    """(the job's budget, the rows of those that live and of the rest, the time), the ledger locked.

    Rows whose lease has run out are written off.
    """
    rest = select(BudgetUse.job_id).where(BudgetUse.job_id == job_id, BudgetUse.worker_id == _REST)
    if connection.execute(rest.with_for_update()).one_or_none() is None:
        insert_ignoring(connection, BudgetUse, _opening(connection, job_id))
        connection.execute(rest.with_for_update()).one()
    job = connection.execute(select(Job.budget, Job.started_at, db_now()).where(Job.id == job_id)).one()
    now = float(job[2])
    rows = {
        row.worker_id: row
        for row in connection.execute(select(BudgetUse.__table__).where(BudgetUse.job_id == job_id))
    }
    dead = {
        name: (_use(row, "used"), _use(row, "held"))
        for name, row in rows.items()
        if row.lease_until is not None and row.lease_until < now
    }
    if dead:
        _fold(connection, job_id, dead)
        return _locked(connection, job_id)
    return _JobRow(job.budget, job.started_at), rows, now


@dataclass(frozen=True, slots=True)
class _JobRow:
    budget: dict[str, float] | None
    started_at: float | None


def _fold(connection: Connection, job_id: str, gone: dict[str, tuple[Use, Use]]) -> None:
    """Rows (used, lost) go into the row of the rest."""
    used = sum((one[0] for one in gone.values()), NOTHING)
    lost = sum((one[1] for one in gone.values()), NOTHING)
    connection.execute(
        update(BudgetUse)
        .where(BudgetUse.job_id == job_id, BudgetUse.worker_id == _REST)
        .values(
            **{
                f"{what}_{kind}": getattr(BudgetUse, f"{what}_{kind}") + getattr(more, kind)
                for what, more in (("used", used), ("lost", lost))
                for kind in KINDS
            }
        )
    )
    connection.execute(delete(BudgetUse).where(BudgetUse.job_id == job_id, BudgetUse.worker_id.in_(gone)))


def _opening(connection: Connection, job_id: str) -> dict[str, object]:
    """The first row: what the job has used before it had a ledger, as its counters tell."""
    counted = connection.execute(
        select(
            func.coalesce(func.sum(Counter.calls), 0),
            func.coalesce(func.sum(Counter.prompt_tokens + Counter.completion_tokens), 0),
            func.coalesce(func.sum(Counter.cost_nanousd), 0),
        ).where(Counter.job_id == job_id)
    ).one()
    used = Use(*(int(value) for value in counted))
    zero = {**_columns("held", NOTHING), **_columns("lost", NOTHING)}
    return {"job_id": job_id, "worker_id": _REST, "lease_until": None, **_columns("used", used), **zero}


def _columns(what: str, use: Use) -> dict[str, int]:
    return {f"{what}_{kind}": getattr(use, kind) for kind in KINDS}


def _use(row: object, what: str) -> Use:
    return Use(*(int(getattr(row, f"{what}_{kind}")) for kind in KINDS))
