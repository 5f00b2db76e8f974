import json
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.sampling import IntendedUse
from app.errors import PolicyRefusal
from app.policy.decisions import Decision, Outcome, decide, replay, reproduces, require_allowed
from app.policy.findings import Code, Severity
from app.policy.overrides import Contract, LicenceOverride
from app.policy.parts import Part
from app.policy.rules import Moment, PolicyRules
from app.policy.terms import POLICY_VERSION, TERMS, policy_digest
from tests.unit.policy.given import (
    COMMERCIAL,
    COMPETING,
    GPT,
    LLAMA,
    OPEN,
    SCRIPTED,
    SHARED,
    STUDY,
    TODAY,
    datasets,
    part,
    uses,
)


def codes(decision: Decision, severity: Severity = Severity.BLOCK) -> list[Code]:
    return [item.code for item in decision.findings if item.severity is severity]


def test_an_openai_teacher_with_a_competing_use_is_refused_at_creation_with_its_clause() -> None:
    decision = decide(COMPETING, [part(GPT, licence="CC-BY-4.0", rows=12)], TODAY, moment=Moment.CREATION)
    with pytest.raises(PolicyRefusal) as caught:
        require_allowed(decision, "dec_1")
    assert "3.3(e)" in caught.value.detail
    assert "compete with OpenAI’s products and services" in caught.value.detail
    assert "override" in caught.value.detail
    assert json.loads(caught.value.decision) == decision.model_dump(mode="json")
    told = json.loads(json.dumps(caught.value.extra))
    assert told["decision_id"] == "dec_1"
    assert told["findings"][0]["clause"] == decision.blocks[0].clause
    assert told["findings"][0]["teachers"] == ["gpt-4o-mini"]


def test_what_is_allowed_raises_nothing() -> None:
    decision = decide(STUDY, [part(SCRIPTED)], TODAY)
    assert decision.outcome is Outcome.ALLOW
    assert decision.findings == ()
    assert decision.explanation() == ""
    require_allowed(decision, "dec_1")


def test_a_prompt_without_a_licence_is_accepted_with_a_warning_and_refused_at_export_with_its_row() -> None:
    unlicensed = part(SCRIPTED, licence="NOASSERTION", rows=2, assumed=True, examples=("17", "4"))
    creation = decide(STUDY, [unlicensed], TODAY, moment=Moment.CREATION)
    assert creation.outcome is Outcome.ALLOW_WITH_WARNINGS
    assert codes(creation, Severity.WARN) == [Code.LICENCE_MISSING]
    assert "refused" in creation.findings[0].message
    export = decide(STUDY, [unlicensed, part(SCRIPTED, rows=8)], TODAY)
    assert codes(export) == [Code.LICENCE_MISSING]
    assert export.blocks[0].rows == 2
    assert export.blocks[0].example_rows == ("4", "17")
    assert export.blocks[0].prompt_licenses == ("NOASSERTION",)


def test_the_projects_default_licence_is_noted() -> None:
    decision = decide(STUDY, [part(SCRIPTED, licence="CC-BY-4.0", assumed=True)], TODAY)
    assert decision.outcome is Outcome.ALLOW
    assert codes(decision, Severity.NOTE) == [Code.LICENCE_ASSUMED]


@pytest.mark.parametrize(
    ("licence", "use", "expected"),
    [
        ("CC-BY-NC-4.0", STUDY, []),
        ("CC-BY-NC-4.0", COMMERCIAL, [Code.COMMERCE_FORBIDDEN]),
        ("CC-BY-NC-4.0 OR CC-BY-4.0", COMMERCIAL, []),
        ("CC-BY-NC-4.0 AND CC-BY-4.0", COMMERCIAL, [Code.COMMERCE_FORBIDDEN]),
        ("CC-BY-ND-4.0", STUDY, []),
        ("CC-BY-ND-4.0", SHARED, [Code.REDISTRIBUTION_FORBIDDEN]),
        ("CC-BY-SA-4.0", SHARED, []),
        ("NONE", STUDY, [Code.TRAINING_FORBIDDEN]),
        ("LicenseRef-own", STUDY, [Code.LICENCE_UNKNOWN]),
        ("LicenseRef-scancode-proprietary-license", STUDY, [Code.LICENCE_UNKNOWN]),
        ("not a licence", STUDY, [Code.LICENCE_INVALID]),
        ("LicenseRef-scancode-llama-2-license-2023", STUDY, [Code.TRAINING_FORBIDDEN]),
        ("LicenseRef-scancode-llama-3.3-license-2024", SHARED, []),
        ("LicenseRef-Retort-Mistral-Research-0.1", COMMERCIAL, [Code.COMMERCE_FORBIDDEN, Code.RESEARCH_ONLY]),
    ],
)
def test_what_prompt_licences_permit(licence: str, use: IntendedUse, expected: list[Code]) -> None:
    decision = decide(use, [part(SCRIPTED, licence=licence, rows=3)], TODAY)
    assert codes(decision) == expected
    for item in decision.blocks:
        assert item.axis == "prompt"
        assert item.prompt_licenses == (licence,)
        assert item.rows == 3


def test_prompts_that_an_earlier_llama_made_carry_its_duties() -> None:
    decision = decide(SHARED, [part(SCRIPTED, licence="LicenseRef-scancode-llama-3.3-license-2024")], TODAY)
    assert {o.value for o in decision.permissions.obligations} >= {"Llama", "Built with Llama"}


def test_a_licence_of_ones_own_is_read_by_its_override() -> None:
    own = LicenceOverride(
        id="l1",
        who="dana@example.org",
        why="we wrote these prompts",
        since=date(2026, 1, 1),
        license_id="LicenseRef-own",
        contract=Contract(
            title="Our prompts",
            train="yes",
            compete="yes",
            commercial="yes",
            redistribute="no",
            document="Memo 3",
            paraphrase="Ours, and not to be given out.",
        ),
    )
    asked = [part(SCRIPTED, licence="LicenseRef-own AND CC-BY-4.0")]
    assert not decide(STUDY, asked, TODAY).allowed
    assert decide(STUDY, asked, TODAY, licence_overrides=[own]).outcome is Outcome.ALLOW
    refused = decide(SHARED, asked, TODAY, licence_overrides=[own])
    assert codes(refused) == [Code.REDISTRIBUTION_FORBIDDEN]
    assert "Memo 3" in refused.blocks[0].message
    assert not decide(STUDY, asked, date(2025, 12, 31), licence_overrides=[own]).allowed


def test_two_share_alike_licences_conflict_when_the_data_is_given_on() -> None:
    stack = part(SCRIPTED, licence="CC-BY-SA-3.0", rows=5)
    wiki = part(SCRIPTED, licence="CC-BY-SA-4.0", rows=6)
    maps = part(SCRIPTED, licence="ODbL-1.0", rows=9)
    assert decide(SHARED, [stack, wiki], TODAY).outcome is Outcome.ALLOW
    decision = decide(SHARED, [stack, wiki, maps], TODAY)
    assert codes(decision) == [Code.SHARE_ALIKE_CONFLICT]
    assert decision.blocks[0].rows == 20
    assert codes(decide(STUDY, [stack, wiki, maps], TODAY), Severity.WARN) == [Code.SHARE_ALIKE_CONFLICT]
    assert decision.offer is not None
    assert (decision.offer.rows_kept, decision.offer.rows_left_out) == (9, 11)


def test_a_partial_export_is_offered_and_is_then_allowed() -> None:
    parts = [
        part(GPT, rows=30),
        part(LLAMA, rows=10),
        part(LLAMA, licence="NOASSERTION", rows=4),
        part(LLAMA, GPT, rows=2),
    ]
    decision = decide(COMPETING, parts, TODAY)
    assert decision.offer is not None
    assert decision.offer.keep == (parts[1].key,)
    assert (decision.offer.rows_kept, decision.offer.rows_left_out) == (10, 36)
    kept = [p for p in parts if p.key in decision.offer.keep]
    assert decide(COMPETING, kept, TODAY).allowed
    assert decide(COMPETING, [parts[0]], TODAY).offer is None
    assert decide(COMPETING, kept, TODAY).offer is None


def test_a_finding_names_all_parts_teachers_and_rows_at_fault_once() -> None:
    decision = decide(
        COMPETING,
        [part(GPT, rows=3), part(GPT, licence="MIT", rows=4), part(OPEN, GPT, licence="MIT", rows=5)],
        TODAY,
    )
    assert len(decision.blocks) == 1
    assert decision.blocks[0].rows == 12
    assert decision.blocks[0].teachers == ("gpt-4o-mini",)
    assert len(decision.blocks[0].parts) == 3


def test_terms_that_were_read_more_than_180_days_ago_warn() -> None:
    read = TERMS["llama-3.3"].read
    assert read is not None
    for days, stale in ((180, False), (181, True)):
        decision = decide(STUDY, [part(LLAMA)], read + timedelta(days=days))
        assert (Code.TERMS_STALE in codes(decision, Severity.WARN)) is stale
        assert decision.allowed


@pytest.mark.parametrize(
    ("teacher", "rules", "outcome"),
    [
        (OPEN, PolicyRules(), Outcome.ALLOW_WITH_WARNINGS),
        (OPEN, PolicyRules(permit_second_hand=False), Outcome.BLOCK),
        (("command-r", "cohere-api"), PolicyRules(), Outcome.BLOCK),
        (("command-r", "cohere-api"), PolicyRules(permit_unknown=True), Outcome.BLOCK),
        (
            ("command-r", "cohere-api"),
            PolicyRules(permit_unknown=True, permit_not_read=True),
            Outcome.ALLOW_WITH_WARNINGS,
        ),
        (("who/knows", "weights"), PolicyRules(permit_unknown=True), Outcome.ALLOW_WITH_WARNINGS),
        (("who/knows", "nowhere"), PolicyRules(), Outcome.BLOCK),
        (GPT, PolicyRules(permit_unknown=True, permit_not_read=True), Outcome.BLOCK),
    ],
)
def test_how_much_certainty_is_asked(teacher: tuple[str, str], rules: PolicyRules, outcome: Outcome) -> None:
    assert decide(COMPETING, [part(teacher)], TODAY, rules=rules).outcome is outcome


def test_a_datasets_licence_is_one_expression_or_one_for_each_part() -> None:
    one = decide(STUDY, [part(OPEN, licence="CC-BY-4.0"), part(SCRIPTED, licence="CC-BY-4.0")], TODAY).license
    assert one.license == "CC-BY-4.0"
    two = decide(
        STUDY, [part(OPEN, licence="CC-BY-4.0", key="a"), part(LLAMA, licence="CC-BY-4.0", key="b")], TODAY
    ).license
    assert two.license == "other"
    assert two.by_part == {"a": "CC-BY-4.0", "b": "CC-BY-4.0 AND LicenseRef-scancode-llama-3.3-license-2024"}
    unknown = decide(STUDY, [part(OPEN, licence="NOASSERTION", key="a")], TODAY).license
    assert (unknown.license, unknown.by_part) == ("other", {"a": "NOASSERTION"})
    assert decide(STUDY, [], TODAY).license.license == "other"


def test_every_part_needs_its_own_key_and_a_teacher() -> None:
    with pytest.raises(ValueError, match="key of its own"):
        decide(STUDY, [part(OPEN, key="a"), part(LLAMA, key="a")], TODAY)
    with pytest.raises(ValueError, match="teachers"):
        Part(key="a", teachers=(), prompt_license="MIT")


@settings(max_examples=60, deadline=None)
@given(uses, datasets.flatmap(lambda d: st.tuples(st.just(d), st.permutations(d))), st.sampled_from(Moment))
def test_a_decision_can_be_stored_and_replayed_whatever_the_order(
    use: IntendedUse, orders: tuple[list[Part], list[Part]], moment: Moment
) -> None:
    first, second = (decide(use, order, TODAY, moment=moment) for order in orders)
    assert first == second
    assert first.model_dump_json() == second.model_dump_json()
    stored = Decision.model_validate_json(first.model_dump_json())
    assert stored == first
    assert replay(stored) == first
    assert reproduces(stored)
    assert (stored.policy_version, stored.policy_digest) == (POLICY_VERSION, policy_digest())


@settings(max_examples=60, deadline=None)
@given(uses, datasets)
def test_what_is_offered_is_allowed_and_leaves_nothing_unsaid(use: IntendedUse, dataset: list[Part]) -> None:
    decision = decide(use, dataset, TODAY)
    if decision.offer is None:
        assert decision.allowed or all(not decide(use, [p], TODAY).allowed for p in dataset)
        return
    assert not decision.allowed
    assert sorted([*decision.offer.keep, *decision.offer.leave_out]) == [p.key for p in decision.inputs.parts]
    assert decide(use, [p for p in dataset if p.key in decision.offer.keep], TODAY).allowed


@settings(max_examples=60, deadline=None)
@given(uses, datasets, datasets)
def test_more_rows_never_make_a_refused_use_allowed(
    use: IntendedUse, some: list[Part], more: list[Part]
) -> None:
    both = {p.key: p for p in [*some, *more]}
    if not decide(use, some, TODAY).allowed:
        assert not decide(use, list(both.values()), TODAY).allowed


@pytest.mark.parametrize(
    "changed",
    [
        {"use": COMMERCIAL},
        {"today": TODAY + timedelta(days=1)},
        {"moment": Moment.CREATION},
        {"rules": PolicyRules(stale_after_days=90)},
        {"parts": [part(LLAMA, rows=2)]},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_the_hash_of_the_inputs_sees_every_input(changed: dict[str, object]) -> None:
    inputs: dict[str, object] = {"use": STUDY, "parts": [part(LLAMA, rows=1)], "today": TODAY}
    before, after = decide(**inputs), decide(**(inputs | changed))  # type: ignore[arg-type]
    assert before.inputs_hash != after.inputs_hash
    assert before.inputs_hash == decide(**inputs).inputs_hash  # type: ignore[arg-type]


def test_a_decision_of_other_policy_data_is_not_called_reproduced() -> None:
    stored = decide(STUDY, [part(LLAMA)], TODAY)
    with pytest.raises(ValueError, match="made by policy"):
        reproduces(stored.model_copy(update={"policy_digest": "0" * 64}))
    assert not reproduces(stored.model_copy(update={"outcome": Outcome.BLOCK}))
