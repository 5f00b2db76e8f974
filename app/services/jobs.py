"""Jobs: submitted, read, paused, resumed, cancelled, tried again."""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from app.db import jobs as rows
from app.db import prompt_sets, shards
from app.db import teachers as teacher_rows
from app.db.models import Job, Lane, PromptSet, Shard, ShardAttempt, Stage, Teacher
from app.domain.clock import PACE_SECONDS
from app.domain.fingerprints import new_id
from app.domain.lifecycle import ENDED, JobStatus, ShardStatus, check_move
from app.domain.pace import WINDOW_STEPS, pace
from app.domain.sampling import Elicitation, IntendedUse, SamplingParameters
from app.domain.version import code_version
from app.errors import Conflict, InvalidInput, NotFound, Unsupported
from app.recipes import Budget, JobSpec


class CountsView(BaseModel):
    """Completions: samples, one row each."""

    model_config = ConfigDict(frozen=True)

    expected: int = Field(description="All that the job will make, as far as it is cut.")
    completed: int
    failed: int
    reused: int = Field(description="Those of `completed` that were taken from earlier jobs.")
    remaining: int
    prompt_tokens: int
    completion_tokens: int
    calls: int = Field(description="Requests to teachers, retries included.")
    retries: int


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


def submit(session: Session, project_id: str, key_id: str, spec: JobSpec, shard_size: int) -> JobView:
    """Store a job, its stages, lanes and shards; workers see it when the transaction ends.

    Raises `InvalidInput`, `NotFound`, `Conflict` and `Unsupported`, each with the way out.
    """
    prompts, teachers = _checked(session, project_id, spec)
    new = rows.NewJob(
        id=new_id("job"),
        project_id=project_id,
        prompt_set_id=prompts.id,
        name=spec.name or prompts.name,
        priority=spec.priority,
        max_in_flight=spec.max_in_flight,
        follow=spec.follow,
        reuse=spec.reuse,
        intended_use=spec.intended_use.model_dump(mode="json"),
        budget=None if spec.budget is None else spec.budget.model_dump(mode="json", exclude_none=True),
        shard_size=shard_size,
        code_version=code_version(),
        created_by=key_id,
    )
    stages = [
        rows.NewStage(
            name=stage.name,
            kind=stage.kind,
            sampling=stage.sampling.model_dump(mode="json"),
            n=stage.n,
            top_logprobs=stage.top_logprobs,
            elicit=None if stage.elicit is None else stage.elicit.model_dump(mode="json"),
        )
        for stage in spec.stages()
    ]
    connection = session.connection()
    rows.add(connection, new, stages, teachers)
    shards.cut(connection, new.id)
    return get(session, project_id, new.id)


def estimate(session: Session, project_id: str, spec: JobSpec, shard_size: int) -> JobEstimate:
    """What `submit` would make, by counts. Raises what `submit` raises."""
    prompts, teachers = _checked(session, project_id, spec)
    each = prompts.n_prompts * sum(stage.n for stage in spec.stages())
    known = not prompts.names_teachers or len(teachers) == 1
    most = each * len(teachers)
    warnings = []
    if prompts.n_license_assumed:
        warnings.append(
            f"{prompts.n_license_assumed:,} prompts name no licence: they took the project's default, or NOASSERTION"
        )
    if prompts.n_errors:
        warnings.append(f"{prompts.n_errors:,} rows of the prompt set did not parse and are not asked")
    warnings += [
        f"teacher {teacher.name!r} was never probed: nobody knows yet what it can do"
        for teacher in teachers
        if teacher.probed_at is None
    ]
    return JobEstimate(
        n_prompts=prompts.n_prompts,
        n_completions=most if known else None,
        n_completions_at_most=most,
        n_shards_at_most=-(-prompts.n_prompts // shard_size) * len(teachers) * len(spec.stages()),
        max_completion_tokens=None if spec.sampling.max_tokens is None else most * spec.sampling.max_tokens,
        teachers=[
            TeacherEstimate(name=teacher.name, n_completions=each if known else None) for teacher in teachers
        ],
        warnings=warnings,
    )


def get(session: Session, project_id: str, job_id: str) -> JobView:
    return _views(session, [_found(session, project_id, job_id)])[0]


def page(
    session: Session, project_id: str, status: JobStatus | None, before: str | None, limit: int
) -> list[JobView]:
    return _views(session, rows.page(session, project_id, status, before, limit))


def pause(session: Session, project_id: str, job_id: str) -> JobView:
    """No further call is made; those in flight are finished and kept. Pausing a paused job changes nothing."""
    return _move(session, project_id, job_id, JobStatus.PAUSED, "paused by request")


def cancel(session: Session, project_id: str, job_id: str) -> JobView:
    """Calls in flight are dropped; what was recorded stays, and can be exported."""
    return _move(session, project_id, job_id, JobStatus.CANCELLED, "cancelled by request")


def resume(session: Session, project_id: str, job_id: str) -> JobView:
    """Go on after a pause, or try a parked job's teachers at once."""
    status = _locked(session, project_id, job_id)
    wanted = JobStatus.RUNNING if rows.has_begun(session, job_id) else JobStatus.READY
    if status not in (JobStatus.READY, JobStatus.RUNNING):
        check_move(status, wanted)
        rows.set_status(session, job_id, wanted, None)
    rows.unpark(session, job_id)
    session.expire_all()
    return get(session, project_id, job_id)


def shard_page(
    session: Session,
    project_id: str,
    job_id: str,
    status: ShardStatus | None,
    after: tuple[int, int, int] | None,
    limit: int,
) -> list[ShardView]:
    """Shards with the history of who held them."""
    _found(session, project_id, job_id)
    found = rows.shards(session, job_id, status, after, limit)
    attempts = rows.attempts(session, [shard.id for shard in found])
    return [_shard(shard, attempts.get(shard.id, [])) for shard in found]


def _checked(session: Session, project_id: str, spec: JobSpec) -> tuple[PromptSet, list[Teacher]]:
    prompts = rows.prompt_set(session, project_id, spec.prompt_set)
    if prompts is None:
        raise NotFound(f"there is no prompt set {spec.prompt_set!r} in this project")
    if not prompts.sealed and not spec.follow:
        raise Conflict(
            f"prompt set {prompts.id} is still open: seal it first, or ask with `follow: true` for a job that goes on "
            "until it is sealed"
        )
    if prompts.sealed and prompts.n_prompts == 0:
        raise InvalidInput(f"prompt set {prompts.id} is sealed and holds no prompt")
    known = teacher_rows.named(session, project_id, spec.teachers)
    missing = [name for name in spec.teachers if name not in known]
    if missing:
        raise InvalidInput(
            f"no such teacher in this project: {', '.join(missing)}; register it first",
            errors=[{"detail": f"no teacher is named {name!r}", "pointer": "#/teachers"} for name in missing],
        )
    teachers = [known[name] for name in spec.teachers]
    for teacher in teachers:
        _check_logprobs(teacher, spec.top_logprobs)
    if prompts.names_teachers:
        stranger = prompt_sets.unknown_teacher(session, prompts.id, spec.teachers)
        if stranger is not None:
            number, name = stranger
            raise InvalidInput(
                f"prompt {number} asks for teacher {name!r}, which is not among the job's teachers"
            )
    return prompts, teachers


def _check_logprobs(teacher: Teacher, top_logprobs: int) -> None:
    """A teacher that was never probed is believed: the engine probes it before the first call."""
    if teacher.capabilities is None or not teacher.capabilities.get("reachable"):
        return
    cap = int(teacher.capabilities.get("max_top_logprobs") or 0)
    if top_logprobs > cap:
        can = f"gives at most {cap}" if cap else "gives no usable logprobs"
        raise Unsupported(
            f"teacher {teacher.name!r} {can}; {top_logprobs} were asked for (found by its last probe)"
        )


def _move(session: Session, project_id: str, job_id: str, wanted: JobStatus, reason: str) -> JobView:
    status = _locked(session, project_id, job_id)
    if status != wanted:
        check_move(status, wanted)
        rows.set_status(session, job_id, wanted, reason)
    session.expire_all()
    return get(session, project_id, job_id)


def _locked(session: Session, project_id: str, job_id: str) -> JobStatus:
    status = rows.locked_status(session, project_id, job_id)
    if status is None:
        raise _not_found(job_id)
    return status


def _found(session: Session, project_id: str, job_id: str) -> Job:
    row = rows.get(session, project_id, job_id)
    if row is None:
        raise _not_found(job_id)
    return row


def _not_found(job_id: str) -> NotFound:
    return NotFound(f"there is no job {job_id!r} in this project")


def _views(session: Session, jobs: list[Job]) -> list[JobView]:
    ids = [job.id for job in jobs]
    if not ids:
        return []
    lanes, stages = rows.lanes(session, ids), rows.stages(session, ids)
    counts = rows.counts(session, ids)
    running = [job.id for job in jobs if job.status == JobStatus.RUNNING]
    steps = rows.steps(session, running, WINDOW_STEPS) if running else {}
    now = rows.now(session)
    return [_view(job, lanes[job.id], stages[job.id], counts, steps.get(job.id, {}), now) for job in jobs]


def _view(
    job: Job,
    lanes: list[Lane],
    stages: list[Stage],
    counts: dict[tuple[str, int], rows.Counts],
    steps: dict[int, tuple[int, int]],
    now: float,
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
            reused=total.reused,
            remaining=remaining,
            prompt_tokens=total.prompt_tokens,
            completion_tokens=total.completion_tokens,
            calls=total.calls,
            retries=total.retries,
        ),
        pace=_pace(job, steps, remaining, now) if job.status == JobStatus.RUNNING else None,
        shards=ShardCountsView(total=job.n_shards, finished=job.n_shards_finished),
        priority=job.priority,
        max_in_flight=job.max_in_flight,
        follow=job.follow,
        reuse=job.reuse,
        intended_use=IntendedUse.model_validate(job.intended_use),
        budget=None if job.budget is None else Budget.model_validate(job.budget),
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


def _shard(shard: Shard, attempts: list[ShardAttempt]) -> ShardView:
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
