"""Obligations travel with the rows: through merge, filter and re-export, and into the student notice."""

from hypothesis import given, settings
from hypothesis import strategies as st

from app.policy.decisions import Decision, decide
from app.policy.lattice import Kind, Obligation, Permissions
from app.policy.notice import StudentNotice, notice_text, student_notice
from app.policy.parts import Part
from tests.unit.policy.given import (
    COMMERCIAL,
    GPT,
    LLAMA,
    OPEN,
    SCRIPTED,
    SHARED,
    STUDY,
    TODAY,
    datasets,
    part,
)


def merged(*some: list[Part]) -> list[Part]:
    return list({p.key: p for parts in some for p in parts}.values())


def owed(parts: list[Part]) -> frozenset[Obligation]:
    return decide(STUDY, parts, TODAY).permissions.permissions().obligations


def standing(parts: list[Part]) -> Permissions:
    return decide(STUDY, parts, TODAY).permissions.permissions()


@settings(max_examples=60, deadline=None)
@given(datasets, datasets)
def test_merging_loses_no_obligation_and_adds_none(a: list[Part], b: list[Part]) -> None:
    assert owed(merged(a, b)) == owed(a) | owed(b)
    assert standing(merged(a, b)) == standing(a).join(standing(b))


@settings(max_examples=60, deadline=None)
@given(datasets, st.sets(st.integers(0, 5)))
def test_filtering_drops_only_what_no_remaining_row_carries(before: list[Part], dropped: set[int]) -> None:
    after = [p for number, p in enumerate(before) if number not in dropped]
    assert standing(after) <= standing(before)
    assert owed(after) == frozenset().union(*(owed([p]) for p in after))


@settings(max_examples=60, deadline=None)
@given(datasets, datasets)
def test_exporting_again_from_stored_decisions_loses_nothing(a: list[Part], b: list[Part]) -> None:
    stored = Decision.model_validate_json(decide(STUDY, a, TODAY).model_dump_json())
    again = decide(STUDY, merged(list(stored.inputs.parts), b), TODAY)
    assert standing(a) <= again.permissions.permissions()
    assert owed(a) | owed(b) == again.permissions.permissions().obligations


@settings(max_examples=60, deadline=None)
@given(datasets)
def test_one_llama_row_gives_the_name_and_only_its_going_takes_it(dataset: list[Part]) -> None:
    without = [p for p in dataset if all(t.model != LLAMA[0] for t in p.teachers)]
    with_llama = merged(without, [part(LLAMA, rows=1)])
    assert student_notice(decide(STUDY, with_llama, TODAY)).required_name_prefix == "Llama"
    again = [*decide(STUDY, with_llama, TODAY).inputs.parts]
    assert student_notice(decide(STUDY, merged(again, dataset), TODAY)).required_name_prefix == "Llama"
    assert student_notice(decide(STUDY, without, TODAY)).required_name_prefix is None


@settings(max_examples=60, deadline=None)
@given(datasets)
def test_the_notice_shows_every_obligation_in_data_and_in_text(dataset: list[Part]) -> None:
    notice = student_notice(decide(STUDY, dataset, TODAY))
    shown = [
        *notice.naming,
        *notice.notices,
        *notice.displays,
        *notice.attributions,
        *notice.use_policies,
        *notice.size_gates,
    ]
    assert sorted(shown, key=repr) == sorted(notice.permissions.obligations, key=repr)
    text = notice_text(notice)
    for obligation in notice.permissions.obligations:
        assert obligation.text in text
        assert obligation.kind is Kind.MAU_GATE or obligation.value in text
        assert obligation.url in text
    for licence in notice.share_alike:
        assert licence in text
    assert StudentNotice.model_validate_json(notice.model_dump_json()) == notice


def test_the_text_of_a_notice() -> None:
    text = notice_text(
        student_notice(decide(SHARED, [part(LLAMA, licence="CC-BY-SA-3.0"), part(GPT)], TODAY))
    )
    assert "begin with “Llama”" in text
    assert "Built with Llama" in text
    assert "must not compete" in text
    assert "https://spdx.org/licenses/CC-BY-SA-3.0.html" in text
    assert "given on under CC-BY-SA-3.0 or CC-BY-SA-4.0" in text
    assert "no legal advice" in text


def test_nothing_owed_is_said_to_be_nothing() -> None:
    notice = student_notice(decide(COMMERCIAL, [part(SCRIPTED), part(OPEN)], TODAY))
    assert notice.empty
    assert "Nothing is asked." in notice_text(notice)
    assert "`CC0-1.0`" in notice_text(notice)


def test_a_notice_says_what_the_student_is_not_for() -> None:
    study = student_notice(
        decide(
            STUDY, [part(("mistralai/Mistral-Large-Instruct-2411", "weights"), licence="CC-BY-NC-4.0")], TODAY
        )
    )
    assert study.research_only
    assert study.non_commercial
    text = notice_text(study)
    assert "For research only." in text
    assert "Not for commercial use." in text


def test_share_alike_licences_that_conflict_are_named() -> None:
    notice = student_notice(
        decide(STUDY, [part(SCRIPTED, licence="ODbL-1.0"), part(SCRIPTED, licence="CC-BY-SA-4.0")], TODAY)
    )
    assert notice.share_alike == ("CC-BY-SA-4.0", "ODbL-1.0")
    assert notice.share_alike_as == ()
    assert "no licence satisfies all" in notice_text(notice)
