"""A teacher that was a student: its rows are bound by what binds the rows that it was trained on."""

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.sampling import IntendedUse
from app.policy.decisions import Decision, Outcome, decide, replay, reproduces
from app.policy.findings import Code, Severity
from app.policy.lattice import share_alike_targets
from app.policy.notice import notice_text, student_notice
from app.policy.overrides import TermsOverride
from app.policy.parts import Part, TeacherRef, TrainingData
from app.policy.rules import Moment, PolicyRules
from tests.unit.policy.given import (
    COMMERCIAL,
    COMPETING,
    GPT,
    LLAMA,
    SCRIPTED,
    SHARED,
    STUDY,
    TODAY,
    datasets,
    part,
    uses,
)

EXPORTS = ("exp_1", "exp_2", "exp_3")


def student(*exports: str, name: str = "student") -> TeacherRef:
    """By itself it may do everything: only what it was trained on can bind it."""
    return TeacherRef(name=name, model="scripted", access_route="weights", trained_on=exports)


def rows_of(teacher: TeacherRef, licence: str = "CC0-1.0", rows: int = 3) -> Part:
    return Part(key=f"{teacher.name} | {licence}", teachers=(teacher,), prompt_license=licence, rows=rows)


def held(export: str, *parts: Part) -> TrainingData:
    return TrainingData.of(export, parts)


def test_a_student_of_openai_does_not_launder_its_rows() -> None:
    data = [held("exp_1", part(GPT, licence="CC-BY-4.0"))]
    made = [rows_of(student("exp_1"))]
    assert decide(COMPETING, [rows_of(student())], TODAY).outcome is Outcome.ALLOW
    refused = decide(COMPETING, made, TODAY, training_data=data)
    (block,) = refused.blocks
    assert (block.code, block.section, block.teachers, block.rows) == (
        Code.COMPETING_FORBIDDEN,
        "3.3(e)",
        ("student",),
        3,
    )
    assert block.clause is not None
    assert "compete with OpenAI’s products and services" in block.clause
    assert "Teacher student was trained on rows of export exp_1." in block.message
    assert "gpt-4o-mini" in block.message
    study = decide(STUDY, made, TODAY, training_data=data)
    assert study.outcome is Outcome.ALLOW_WITH_WARNINGS
    assert "openai-services" in study.parts[0].terms
    assert study.license.license == "CC-BY-4.0 AND CC0-1.0 AND LicenseRef-Retort-OpenAI-Services-2026"


def test_the_name_and_the_credits_go_on_from_generation_to_generation() -> None:
    data = [
        held("exp_1", part(LLAMA, licence="CC-BY-4.0")),
        held("exp_2", rows_of(student("exp_1", name="first"))),
        held("exp_3", rows_of(student("exp_2", name="second"))),
    ]
    decision = decide(SHARED, [rows_of(student("exp_3", name="third"))], TODAY, training_data=data)
    notice = student_notice(decision)
    assert notice.required_name_prefix == "Llama"
    assert [one.value for one in notice.attributions] == ["CC-BY-4.0"]
    assert (notice.teachers, notice.behind_teachers) == (
        ("third",),
        ("first", "llama-3.3-70b-instruct", "second"),
    )
    assert "Teachers: third (trained on rows of first, llama-3.3-70b-instruct, second)." in notice_text(
        notice
    )
    # With a generation left out, nobody can say what lies behind it.
    gap = decide(STUDY, [rows_of(student("exp_3"))], TODAY, training_data=[data[0], data[2]])
    assert [one.code for one in gap.blocks] == [Code.TRAINING_DATA_UNKNOWN]
    assert "exp_2" in gap.blocks[0].message


def test_licences_of_the_prompts_go_on_as_well() -> None:
    data = [held("exp_1", part(SCRIPTED, licence="CC-BY-NC-4.0"), part(SCRIPTED, licence="ODbL-1.0"))]
    decision = decide(COMMERCIAL, [rows_of(student("exp_1"))], TODAY, training_data=data)
    (block,) = decision.blocks
    assert (block.code, block.source) == (Code.COMMERCE_FORBIDDEN, "CC-BY-NC-4.0")
    assert "was trained on other data" in block.proceed
    mixed = [rows_of(student("exp_1")), rows_of(student(name="other"), licence="CC-BY-SA-4.0")]
    shared = decide(SHARED, mixed, TODAY, training_data=data)
    assert [one.code for one in shared.blocks] == [Code.SHARE_ALIKE_CONFLICT]
    assert not share_alike_targets(shared.permissions.share_alike)


def test_an_override_of_the_first_teacher_reaches_its_students() -> None:
    private = TermsOverride(
        id="o1",
        who="dana@example.org",
        why="Agreement 17",
        since=TODAY,
        model="gpt-*",
        route="openai-api",
        terms=("apache-2.0-weights",),
    )
    data, made = [held("exp_1", part(GPT))], [rows_of(student("exp_1"))]
    allowed = decide(COMPETING, made, TODAY, overrides=[private], training_data=data)
    assert allowed.outcome is Outcome.ALLOW
    (note,) = allowed.findings
    assert (note.code, note.severity) == (Code.OVERRIDE_APPLIED, Severity.NOTE)
    # One for the student itself says nothing of what it was trained on.
    own = private.model_copy(update={"model": "scripted", "route": "*"})
    assert not decide(COMPETING, made, TODAY, overrides=[own], training_data=data).allowed


def test_exports_that_lead_back_to_themselves_end() -> None:
    own = student("exp_1")
    decision = decide(STUDY, [rows_of(own)], TODAY, training_data=[held("exp_1", rows_of(own), part(LLAMA))])
    assert student_notice(decision).required_name_prefix == "Llama"


def test_what_is_not_known_blocks_unless_the_rules_permit_it() -> None:
    made = [rows_of(student("exp_9"))]
    for moment in Moment:
        assert not decide(STUDY, made, TODAY, moment=moment).allowed
    lax = decide(STUDY, made, TODAY, rules=PolicyRules(permit_unknown=True))
    assert lax.outcome is Outcome.ALLOW_WITH_WARNINGS
    assert lax.permissions.train == "unknown"


def test_a_decision_that_was_made_before_there_was_training_data_is_still_reproduced() -> None:
    now = decide(STUDY, [part(LLAMA)], TODAY)
    stored = now.model_dump(mode="json")
    del stored["inputs"]["training_data"]
    for one in stored["inputs"]["parts"]:
        for teacher in one["teachers"]:
            del teacher["trained_on"], teacher["past_addresses"]
    then = Decision.model_validate(stored)
    assert reproduces(then)
    assert then.inputs_hash == now.inputs_hash
    with_data = decide(STUDY, [part(LLAMA)], TODAY, training_data=[held("exp_1", part(LLAMA))])
    assert with_data.inputs_hash != now.inputs_hash


origins = st.lists(datasets, min_size=1, max_size=3)


def taught(dataset: list[Part], exports: tuple[str, ...]) -> list[Part]:
    """The same rows, by teachers that were trained on exports."""
    return [
        one.model_copy(
            update={"teachers": tuple(t.model_copy(update={"trained_on": exports}) for t in one.teachers)}
        )
        for one in dataset
    ]


@settings(max_examples=60, deadline=None)
@given(uses, datasets, origins, st.sampled_from(Moment))
def test_inheritance_never_permits_more(
    use: IntendedUse, dataset: list[Part], behind: list[list[Part]], moment: Moment
) -> None:
    exports = EXPORTS[: len(behind)]
    data = [held(export, *parts) for export, parts in zip(exports, behind, strict=True)]
    alone = decide(use, dataset, TODAY, moment=moment)
    bound = decide(use, taught(dataset, exports), TODAY, moment=moment, training_data=data)
    assert alone.permissions.permissions() <= bound.permissions.permissions()
    assert alone.allowed or not bound.allowed
    assert not bound.allowed or {f.code for f in alone.warnings} <= {f.code for f in bound.warnings}
    for before, after in zip(alone.parts, bound.parts, strict=True):
        assert before.permissions.permissions() <= after.permissions.permissions()
        assert set(before.terms) <= set(after.terms)
    assert replay(bound) == bound
    assert reproduces(Decision.model_validate_json(bound.model_dump_json()))


@settings(max_examples=60, deadline=None)
@given(uses, datasets.filter(len), st.integers(1, 3))
def test_a_student_may_do_no_more_with_its_rows_than_its_training_data_lets(
    use: IntendedUse, dataset: list[Part], generations: int
) -> None:
    later = [held(EXPORTS[n], rows_of(student(EXPORTS[n - 1]))) for n in range(1, generations)]
    data = [held("exp_1", *dataset), *later]
    first = decide(use, dataset, TODAY)
    made = decide(use, [rows_of(student(EXPORTS[generations - 1]))], TODAY, training_data=data)
    assert first.permissions.permissions() <= made.permissions.permissions()
    assert first.allowed or not made.allowed
    assert set(first.permissions.obligations) <= set(student_notice(made).permissions.obligations)


@settings(max_examples=30, deadline=None)
@given(uses, origins, origins)
def test_more_training_data_never_permits_more(
    use: IntendedUse, some: list[list[Part]], more: list[list[Part]]
) -> None:
    data = [held(f"exp_{n}", *parts) for n, parts in enumerate([*some, *more])]
    names = [one.export for one in data]
    few = decide(use, [rows_of(student(*names[: len(some)]))], TODAY, training_data=data)
    many = decide(use, [rows_of(student(*names))], TODAY, training_data=data)
    assert few.permissions.permissions() <= many.permissions.permissions()
    assert few.allowed or not many.allowed


def test_stale_terms_warn_through_a_student() -> None:
    later = TODAY + timedelta(days=400)
    decision = decide(STUDY, [rows_of(student("exp_1"))], later, training_data=[held("exp_1", part(LLAMA))])
    assert any(one.code is Code.TERMS_STALE and "llama-3.3" in one.source for one in decision.warnings)
