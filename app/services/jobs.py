"""Jobs: submitted, read, paused, resumed, cancelled."""

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from app.db import cutting, estimates, prompt_sets
from app.db import jobs as rows
from app.db import teachers as teacher_rows
from app.db.models import Job, PromptSet, Teacher
from app.domain.fingerprints import new_id
from app.domain.lifecycle import Execution, JobStatus, ShardStatus, check_move
from app.domain.prices import Price
from app.domain.sampling import SamplingParameters
from app.domain.version import code_version
from app.errors import Conflict, InvalidInput, NotFound, Unsupported
from app.policy.decisions import Decision
from app.policy.rules import Moment, PolicyRules
from app.recipes import JobSpec
from app.services import budgets, generations, policy
from app.services.budgets import JobChanges
from app.services.estimates import forecast
from app.services.job_views import JobEstimate, JobView, ShardView, TeacherEstimate, shard_view, views
from app.services.teachers import rates_of, spec_of
from app.teachers import without_batch_api
from app.teachers.prices import price_of_teacher


def submit(
    session: Session, project_id: str, key_id: str, spec: JobSpec, shard_size: int, rules: PolicyRules
) -> JobView:
    """Store a job, its stages, lanes and shards; workers see it when the transaction ends.

    Raises `InvalidInput`, `NotFound`, `Conflict`, `Unsupported` and `PolicyRefusal`, each with the way out.
    """
    prompts, teachers = _checked(session, project_id, spec)
    connection = session.connection()
    decision = _judged(connection, project_id, spec, prompts, teachers, rules)
    job_id = new_id("job")
    new = rows.NewJob(
        id=job_id,
        project_id=project_id,
        prompt_set_id=prompts.id,
        name=spec.name or prompts.name,
        priority=spec.priority,
        max_in_flight=spec.max_in_flight,
        follow=spec.follow,
        reuse=spec.reuse,
        intended_use=spec.intended_use.model_dump(mode="json"),
        budget=_caps(spec) or None,
        shard_size=shard_size,
        code_version=code_version(),
        policy_decision_id=policy.admit(connection, project_id, key_id, decision, job_id),
        created_by=key_id,
        execution=spec.execution,
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
    depths = {teacher.id: generations.depth(connection, teacher) for teacher in teachers}
    rows.add(connection, new, stages, teachers, _prices(teachers), depths)
    cutting.cut(connection, new.id)
    return get(session, project_id, new.id)


def _judged(
    connection: Connection,
    project_id: str,
    spec: JobSpec,
    prompts: PromptSet,
    teachers: list[Teacher],
    rules: PolicyRules,
) -> Decision:
    refs = [
        policy.teacher_ref(teacher.name, teacher, teacher.base_url, teacher.past_hosts)
        for teacher in teachers
    ]
    parts = policy.parts_of_job(connection, prompts.id, refs, sealed=prompts.sealed)
    judge = policy.Judge.of(connection, project_id, rules)
    return judge.decide(connection, spec.intended_use, parts, Moment.CREATION)


def estimate(
    session: Session, project_id: str, spec: JobSpec, shard_size: int, rules: PolicyRules
) -> JobEstimate:
    """What `submit` would make, by counts. Raises what `submit` raises, but for a refusal: that is a part of it."""
    prompts, teachers = _checked(session, project_id, spec)
    each = prompts.n_prompts * sum(stage.n for stage in spec.stages())
    known = not prompts.names_teachers or len(teachers) == 1
    most = each * len(teachers)
    warnings = []
    if prompts.n_license_assumed:
        warnings.append(
            f"{prompts.n_license_assumed:,} prompts name no licence: they took the project's default, or NOASSERTION"
        )
    if not prompts.sealed:
        warnings.append(
            "the prompt set is open: the licences of prompts that come later are judged at export"
        )
    if prompts.n_errors:
        warnings.append(f"{prompts.n_errors:,} rows of the prompt set did not parse and are not asked")
    warnings += [
        f"teacher {teacher.name!r} was never probed: nobody knows yet what it can do"
        for teacher in teachers
        if teacher.probed_at is None
    ]
    connection = session.connection()
    told = forecast(
        spec,
        prompts.n_prompts,
        estimates.mean_bytes(connection, prompts.id, prompts.n_prompts),
        teachers,
        _prices(teachers),
        estimates.past(connection, [teacher.id for teacher in teachers]),
    )
    return JobEstimate(
        forecast=told,
        n_prompts=prompts.n_prompts,
        n_completions=most if known else None,
        n_completions_at_most=most,
        n_shards_at_most=-(-prompts.n_prompts // shard_size) * len(teachers) * len(spec.stages()),
        max_completion_tokens=None if spec.sampling.max_tokens is None else most * spec.sampling.max_tokens,
        teachers=[
            TeacherEstimate(name=teacher.name, n_completions=each if known else None) for teacher in teachers
        ],
        policy=policy.forecast(_judged(session.connection(), project_id, spec, prompts, teachers, rules)),
        warnings=warnings,
    )


def get(session: Session, project_id: str, job_id: str) -> JobView:
    return views(session, [_found(session, project_id, job_id)])[0]


def page(
    session: Session, project_id: str, status: JobStatus | None, before: str | None, limit: int
) -> list[JobView]:
    return views(session, rows.page(session, project_id, status, before, limit))


def pause(session: Session, project_id: str, job_id: str) -> JobView:
    """No further call is made; those in flight are finished and kept. Pausing a paused job changes nothing."""
    return _move(session, project_id, job_id, JobStatus.PAUSED, "paused by request")


def cancel(session: Session, project_id: str, job_id: str) -> JobView:
    """Calls in flight are dropped; what was recorded stays, and can be exported."""
    return _move(session, project_id, job_id, JobStatus.CANCELLED, "cancelled by request")


def change(session: Session, project_id: str, job_id: str, changes: JobChanges) -> JobView:
    """What can change after a job was submitted; see `app.services.budgets.change`."""
    if "budget" in changes.model_fields_set:
        budgets.change(session, project_id, job_id, changes.budget)
        session.expire_all()
    return get(session, project_id, job_id)


def resume(session: Session, project_id: str, job_id: str) -> JobView:
    """Go on after a pause, or try a parked job's teachers at once."""
    _found(session, project_id, job_id)
    rows.unpark(session, job_id)  # the engine locks lanes before their job: so do we
    status = _locked(session, project_id, job_id)
    wanted = JobStatus.RUNNING if rows.has_begun(session, job_id) else JobStatus.READY
    if status not in (JobStatus.READY, JobStatus.RUNNING):
        check_move(status, wanted)
        rows.set_status(session, job_id, wanted, None)
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
    return [shard_view(shard, attempts.get(shard.id, [])) for shard in found]


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
        _check_sampling(teacher, spec.sampling)
        if spec.execution == Execution.BATCH:
            _check_batch(teacher)
    if caps := _caps(spec):
        priced = _prices(teachers)
        known_prices = {teacher.name: teacher.id in priced for teacher in teachers}
        budgets.check(caps, spec.sampling.max_tokens, known_prices, spec.execution)
    if prompts.names_teachers:
        stranger = prompt_sets.unknown_teacher(session, prompts.id, spec.teachers)
        if stranger is not None:
            number, name = stranger
            raise InvalidInput(
                f"prompt {number} asks for teacher {name!r}, which is not among the job's teachers"
            )
    return prompts, teachers


def _caps(spec: JobSpec) -> dict[str, object]:
    return {} if spec.budget is None else spec.budget.model_dump(mode="json", exclude_none=True)


def _prices(teachers: list[Teacher]) -> dict[str, Price]:
    """What is known of the teachers' prices now, by their id."""
    found = {teacher.id: price_of_teacher(spec_of(teacher), rates_of(teacher)) for teacher in teachers}
    return {teacher: price for teacher, price in found.items() if price is not None}


def _check_logprobs(teacher: Teacher, top_logprobs: int) -> None:
    """A teacher that was never probed is believed: the engine probes it before the first call."""
    if teacher.capabilities is None or not teacher.capabilities.get("reachable"):
        return
    cap = int(teacher.capabilities.get("max_top_logprobs") or 0)
    if top_logprobs > cap:
        can = f"gives at most {cap} top logprobs" if cap else "gives no usable logprobs"
        raise Unsupported(
            f"teacher {teacher.name!r} {can}; {top_logprobs} were asked for (found by its last probe)"
        )


def _check_sampling(teacher: Teacher, sampling: SamplingParameters) -> None:
    """What a job asks for in so many words must not be passed over in silence; what stands there by default may.

    So may a seed, which promises nothing anywhere: each row tells what was not sent.
    """
    refuses = set((teacher.capabilities or {}).get("refuses") or ()) - {"seed"}
    asked = {name for name in sampling.model_fields_set if getattr(sampling, name) is not None}
    if refused := sorted(asked & refuses):
        raise Unsupported(
            f"teacher {teacher.name!r} takes no {', no '.join(refused)} (found by its last probe): leave it out, or "
            "ask another teacher"
        )


def _check_batch(teacher: Teacher) -> None:
    """A teacher that was never probed is believed."""
    if (why := without_batch_api(spec_of(teacher))) is not None:
        raise Unsupported(f"teacher {teacher.name!r} cannot do batches: {why}")
    found = teacher.capabilities
    if found is not None and found.get("reachable") and not found.get("batch_api"):
        raise Unsupported(
            f"teacher {teacher.name!r} has no batch API that could be reached (found by its last probe): ask for "
            "`execution: calls`, or probe it again"
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
