"""Jobs as they are read: counts, pace, what they wait for."""

from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from app.db import budgets as budget_rows
from app.db import jobs as rows
from app.db.models import Job, Lane, Shard, ShardAttempt, Stage
from app.domain.clock import PACE_SECONDS
from app.domain.lifecycle import ENDED, Execution, JobStatus, ShardStatus
from app.domain.pace import WINDOW_STEPS, pace
from app.domain.prices import NANO, Price
from app.domain.sampling import Elicitation, IntendedUse, SamplingParameters
from app.recipes import Budget
from app.services import policy
from app.services.budgets import BudgetUseView, use_view
from app.services.estimates import Forecast
from app.services.policy import PolicyForecast, PolicySummary


class CountsView(BaseModel):
    """Completions: samples, one row each."""

    model_config = ConfigDict(frozen=True)

    expected: int = Field(description="All that the job will make, as far as it is cut.")
    completed: int
    failed: int
    removed: int = Field(0, description="Taken down: in no other count, and not in `expected`.")
    reused: int = Field(description="Those of `completed` that were taken from earlier jobs.")
    remaining: int
    prompt_tokens: int
    completion_tokens: int
    calls: int = Field(description="Requests to teachers, retries included.")
    retries: int
    cost_usd: float = Field(description="Of the completions whose cost is known.")
    unpriced: int = Field(description="Completions whose cost is not known: they are not in `cost_usd`.")


class PaceView(BaseModel):
    """Means over the last two minutes. `eta_*`: seconds from now, with a 95 % interval; null where unknown."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    window_seconds: int
    rows_per_second: float
    tokens_per_second: float
    eta_seconds: float | None
    eta_low_seconds: float | None
    eta_high_seconds: float | None


class ParkedView(BaseModel):
    """Why a teacher's part of a job waits, and until when; `until` null: for a person."""

    model_config = ConfigDict(frozen=True)

    kind: str | None
    reason: str
    until: datetime | None


class LaneView(BaseModel):
    """One teacher of the job, as it was when the job began."""

    model_config = ConfigDict(frozen=True)

    position: int = Field(description="The number that stands in `completion.teacher`.")
    teacher_id: str
    name: str
    model: str
    revision: str | None
    access_route: str
    license: str | None
    generation_depth: int = Field(
        description="0: not known to have been trained on an export; else one more than the deepest of those rows."
    )
    price: Price | None = Field(description="As it was known when the job was submitted; null: not known.")
    execution: Execution = Field(description="`calls`, or `batch`: by the provider's batch API.")
    completed: int
    failed: int
    parked: ParkedView | None


class StageView(BaseModel):
    model_config = ConfigDict(frozen=True)

    position: int
    name: str
    kind: str
    sampling: SamplingParameters
    n: int
    top_logprobs: int
    elicit: Elicitation | None


class ShardCountsView(BaseModel):
    model_config = ConfigDict(frozen=True)

    total: int
    finished: int


class JobView(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    status: JobStatus
    status_reason: str | None = Field(description="Why it is in this status, where that is not plain.")
    waits_for: str | None = Field(description="What a job that makes nothing waits for, as a sentence.")
    prompt_set: str
    teachers: list[LaneView]
    stages: list[StageView]
    counts: CountsView
    pace: PaceView | None = Field(description="Null for a job that does not run.")
    shards: ShardCountsView
    priority: int
    max_in_flight: int | None
    follow: bool
    reuse: bool
    intended_use: IntendedUse
    budget: Budget | None
    budget_use: BudgetUseView | None = Field(None, description="Null for a job without a budget.")
    policy: PolicySummary | None = Field(
        description="What terms and licences say to the intended use; null for a job of an older version."
    )
    code_version: str
    created_by: str = Field(description="Id of the key that asked for it.")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class TeacherEstimate(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    n_completions: int | None = Field(description="Null where some prompts ask for a teacher by name.")


class JobEstimate(BaseModel):
    """What a job would be. Nothing was stored, no teacher was asked."""

    model_config = ConfigDict(frozen=True)

    n_prompts: int
    n_completions: int | None = Field(description="Null where some prompts ask for a teacher by name.")
    n_completions_at_most: int
    n_shards_at_most: int
    max_completion_tokens: int | None = Field(
        description="Upper bound, from `max_tokens` of the job; null where that is not set. Prompts' own are not seen."
    )
    teachers: list[TeacherEstimate]
    forecast: Forecast | None = Field(None, description="What it will ask, use, cost and take.")
    policy: PolicyForecast = Field(description="With the outcome `block` the job would be refused.")
    warnings: list[str]


class AttemptView(BaseModel):
    """A worker's hold on a shard."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    epoch: int
    owner: str
    claimed_at: datetime
    ended_at: datetime | None
    outcome: str | None
    detail: str | None


class ShardView(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: int
    stage: int
    teacher: int
    first_prompt: int
    end_prompt: int = Field(description="Exclusive.")
    status: ShardStatus
    n_expected: int
    n_completed: int
    n_failed: int
    owner: str | None
    epoch: int
    lease_until: datetime | None
    attempts: list[AttemptView]


def views(session: Session, jobs: Sequence[Job]) -> list[JobView]:
    """With counts and pace, by as many queries for a page as for one job."""
    ids = [job.id for job in jobs]
    if not ids:
        return []
    lanes, stages = rows.lanes(session, ids), rows.stages(session, ids)
    counts = rows.counts(session, ids)
    budgeted = [job.id for job in jobs if job.budget]
    use = budget_rows.totals(session, budgeted) if budgeted else {}
    running = [job.id for job in jobs if job.status == JobStatus.RUNNING]
    steps = rows.steps(session, running, WINDOW_STEPS) if running else {}
    now = rows.now(session)
    judged = policy.summaries(session.connection(), (job.policy_decision_id for job in jobs))
    return [
        _view(
            job,
            lanes[job.id],
            stages[job.id],
            counts,
            use,
            steps.get(job.id, {}),
            now,
            judged.get(job.policy_decision_id or ""),
        )
        for job in jobs
    ]


def _view(
    job: Job,
    lanes: list[Lane],
    stages: list[Stage],
    counts: dict[tuple[str, int], rows.Counts],
    use: dict[str, budget_rows.Totals],
    steps: dict[int, tuple[int, int]],
    now: float,
    judged: PolicySummary | None,
) -> JobView:
    by_lane = [counts.get((job.id, lane.teacher), rows.Counts()) for lane in lanes]
    total = sum(by_lane, rows.Counts())
    remaining = max(0, job.n_expected - total.completed - total.failed)
    return JobView(
        id=job.id,
        name=job.name,
        status=JobStatus(job.status),
        status_reason=job.status_reason,
        waits_for=_waits_for(job, lanes, remaining),
        prompt_set=job.prompt_set_id,
        teachers=[_lane(lane, count) for lane, count in zip(lanes, by_lane, strict=True)],
        stages=[_stage(stage) for stage in stages],
        counts=CountsView(
            expected=job.n_expected,
            completed=total.completed,
            failed=total.failed,
            removed=total.removed,
            reused=total.reused,
            remaining=remaining,
            prompt_tokens=total.prompt_tokens,
            completion_tokens=total.completion_tokens,
            calls=total.calls,
            retries=total.retries,
            cost_usd=total.cost_nanousd / NANO,
            unpriced=total.unpriced,
        ),
        pace=_pace(job, steps, remaining, now) if job.status == JobStatus.RUNNING else None,
        shards=ShardCountsView(total=job.n_shards, finished=job.n_shards_finished),
        priority=job.priority,
        max_in_flight=job.max_in_flight,
        follow=job.follow,
        reuse=job.reuse,
        intended_use=IntendedUse.model_validate(job.intended_use),
        budget=Budget.model_validate(job.budget) if job.budget else None,
        budget_use=None if not job.budget else use_view(use.get(job.id, budget_rows.NO_TOTALS)),
        policy=judged,
        code_version=job.code_version,
        created_by=job.created_by,
        created_at=moment(job.created_at),
        started_at=None if job.started_at is None else moment(job.started_at),
        ended_at=None if job.ended_at is None else moment(job.ended_at),
    )


def _pace(job: Job, steps: dict[int, tuple[int, int]], remaining: int, now: float) -> PaceView | None:
    """From whole steps: the present one is not over, and the one in which the job began only counts in part."""
    last = int(now // PACE_SECONDS) - 1
    began = int((job.started_at or now) // PACE_SECONDS) + 1
    window = range(max(last - WINDOW_STEPS + 1, began), last + 1)
    if not window:
        window = range(last, last + 1) if last in steps else range(last + 1, last + 2)
    per_step = [steps.get(step, (0, 0)) for step in window]
    found = pace([count for count, _ in per_step], [tokens for _, tokens in per_step], remaining)
    return None if found is None else PaceView.model_validate(found)


def _waits_for(job: Job, lanes: list[Lane], remaining: int) -> str | None:
    if job.status in ENDED:
        return None
    if job.status == JobStatus.PAUSED:
        return "a person: POST …/resume"
    if job.status == JobStatus.FINALIZING:
        return "its last segments to be written"
    parked = [lane for lane in lanes if lane.parked_reason is not None]
    if parked:
        return "; ".join(f"teacher {lane.teacher_name!r}: {lane.parked_reason}" for lane in parked)
    if job.status == JobStatus.PARKED:
        return job.status_reason
    if job.follow and remaining == 0:
        return "more prompts, or the seal of its prompt set"
    if job.status == JobStatus.READY:
        return "a worker"
    return None


def _lane(lane: Lane, count: rows.Counts) -> LaneView:
    parked = None
    if lane.parked_reason is not None:
        until = None if lane.parked_until is None else moment(lane.parked_until)
        parked = ParkedView(kind=lane.parked_kind, reason=lane.parked_reason, until=until)
    return LaneView(
        position=lane.teacher,
        teacher_id=lane.teacher_id,
        name=lane.teacher_name,
        model=lane.model,
        revision=lane.revision,
        access_route=lane.access_route,
        license=lane.license,
        generation_depth=lane.generation_depth,
        price=None if lane.price is None else Price.model_validate(lane.price),
        execution=Execution(lane.execution),
        completed=count.completed,
        failed=count.failed,
        parked=parked,
    )


def _stage(stage: Stage) -> StageView:
    return StageView(
        position=stage.position,
        name=stage.name,
        kind=stage.kind,
        sampling=SamplingParameters.model_validate(stage.sampling),
        n=stage.n,
        top_logprobs=stage.top_logprobs,
        elicit=None if stage.elicit is None else Elicitation.model_validate(stage.elicit),
    )


def shard_view(shard: Shard, attempts: Sequence[ShardAttempt]) -> ShardView:
    return ShardView(
        id=shard.id,
        stage=shard.stage,
        teacher=shard.teacher,
        first_prompt=shard.first_prompt,
        end_prompt=shard.end_prompt,
        status=ShardStatus(shard.status),
        n_expected=shard.n_expected,
        n_completed=shard.n_completed,
        n_failed=shard.n_failed,
        owner=shard.owner,
        epoch=shard.epoch,
        lease_until=None if shard.lease_until is None else moment(shard.lease_until),
        attempts=[AttemptView.model_validate(attempt) for attempt in attempts],
    )


def moment(seconds: float) -> datetime:
    """Seconds since 1970 as a moment in UTC."""
    return datetime.fromtimestamp(seconds, UTC)
