"""Budgets of jobs: what can be kept, and changed while a job waits or runs."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from app.db import budgets as ledger
from app.db import jobs as rows
from app.db.budgets import Totals
from app.db.models import Job
from app.domain.budget import Caps
from app.domain.lifecycle import ENDED, Execution, JobStatus
from app.domain.prices import NANO
from app.errors import Conflict, InvalidInput, NotFound
from app.recipes import Budget


class BudgetChanges(Budget):
    """A cap that is given takes the place of the old one; null lifts it; absent: as it is."""


class JobChanges(BaseModel):
    """What can change after a job was submitted. Absent: as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: BudgetChanges | None = Field(None, description="Null lifts all its caps.")


class BudgetUseView(BaseModel):
    """What of a job's budget is gone. Used and reserved together never pass a cap."""

    model_config = ConfigDict(frozen=True)

    requests: int = Field(description="Of calls that ended.")
    tokens: int = Field(
        description="Of prompts and answers. A call that broke off counts with all that it may have used."
    )
    cost_usd: float = Field(description="By the price as known when the job was submitted.")
    reserved_requests: int = Field(description="Held for calls under way or about to begin, at their worst.")
    reserved_tokens: int
    reserved_cost_usd: float


def use_view(found: Totals) -> BudgetUseView:
    used = found.used + found.lost
    return BudgetUseView(
        requests=used.requests,
        tokens=used.tokens,
        cost_usd=used.nanousd / NANO,
        reserved_requests=found.held.requests,
        reserved_tokens=found.held.tokens,
        reserved_cost_usd=found.held.nanousd / NANO,
    )


def check(
    budget: Mapping[str, Any], max_tokens: int | None, priced: Mapping[str, bool], execution: str
) -> None:
    """Whether these caps can be kept. `priced`: by the teacher's name. Raises `InvalidInput` with what to do."""
    if budget and execution == Execution.BATCH:
        raise InvalidInput(
            "a budget is kept call by call, and a provider's batch is handed over as a whole: leave the budget out, "
            "or ask for `execution: calls`",
            errors=[{"detail": "not with `execution: batch`", "pointer": "#/budget"}],
        )
    bounded = [name for name in ("max_tokens", "max_cost_usd") if budget.get(name) is not None]
    if bounded and max_tokens is None:
        raise InvalidInput(
            f"`budget.{bounded[0]}` needs `sampling.max_tokens`: a call whose answer has no bound may use any amount",
            errors=[{"detail": "give a bound of the answers", "pointer": "#/sampling/max_tokens"}],
        )
    unknown = [name for name, known in priced.items() if not known]
    if budget.get("max_cost_usd") is not None and unknown:
        raise InvalidInput(
            f"`budget.max_cost_usd` needs a price, and none is known of {', '.join(unknown)}: give the teacher a "
            "`price`, or cap tokens",
            errors=[
                {"detail": f"the price of {name!r} is not known", "pointer": "#/budget/max_cost_usd"}
                for name in unknown
            ],
        )


def change(session: Session, project_id: str, job_id: str, changes: BudgetChanges | None) -> None:
    """Other caps from now on. A job that is parked for its budget goes on by itself where they leave it room.

    Raises `NotFound`, `Conflict` for a job that has ended or whose calls under way nobody has counted, and
    `InvalidInput`.
    """
    job = _found(session, project_id, job_id)
    if JobStatus(job.status) in ENDED:
        raise Conflict(f"job {job_id} is {job.status}: it calls nobody any more")
    ledger.lock(session.connection(), job_id)
    session.refresh(job)
    before = job.budget or {}
    after = {} if changes is None else before | changes.model_dump(mode="json", exclude_unset=True)
    after = {name: value for name, value in after.items() if value is not None}
    lanes = rows.lanes(session, [job_id]).get(job_id, [])
    stages = rows.stages(session, [job_id]).get(job_id, [])
    for stage in stages:
        check(
            after,
            stage.sampling.get("max_tokens"),
            {lane.teacher_name: lane.price is not None for lane in lanes},
            _execution(lane.execution for lane in lanes),
        )
    if Caps.of(after) and not Caps.of(before) and rows.under_lease(session, job_id):
        raise Conflict(
            f"job {job_id} has calls under way that no cap was kept for: pause it, wait until they have ended, set the "
            "budget, and resume it"
        )
    rows.set_budget(session, job_id, after)
    rows.unpark(session, job_id, "budget")


def _execution(found: Iterable[str]) -> str:
    return next((one for one in found if one != Execution.CALLS), Execution.CALLS)


def _found(session: Session, project_id: str, job_id: str) -> Job:
    row = rows.get(session, project_id, job_id)
    if row is None:
        raise NotFound(f"there is no job {job_id!r} in this project")
    return row
