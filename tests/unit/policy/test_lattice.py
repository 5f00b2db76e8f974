from hypothesis import given
from hypothesis import strategies as st

from app.policy.lattice import (
    FREE,
    UNKNOWN,
    Answer,
    Kind,
    Obligation,
    Permissions,
    join_all,
    name_prefix,
    share_alike_targets,
    top,
)
from app.policy.record import PermissionsRecord
from tests.unit.policy.given import licence_ids, obligations, permissions

FLAGS = ("train", "compete", "commercial", "redistribute")


@given(permissions, permissions)
def test_join_is_commutative(a: Permissions, b: Permissions) -> None:
    assert a.join(b) == b.join(a)


@given(permissions, permissions, permissions)
def test_join_is_associative(a: Permissions, b: Permissions, c: Permissions) -> None:
    assert a.join(b).join(c) == a.join(b.join(c))


@given(permissions)
def test_join_is_idempotent(a: Permissions) -> None:
    assert a.join(a) == a


@given(permissions, permissions, permissions)
def test_join_is_monotone_and_the_least_upper_bound(a: Permissions, b: Permissions, c: Permissions) -> None:
    assert a <= a.join(b)
    assert b <= a.join(b)
    if a <= c and b <= c:
        assert a.join(b) <= c
    if a <= b:
        assert a.join(c) <= b.join(c)


@given(permissions)
def test_it_is_bounded(a: Permissions) -> None:
    highest = top(a.share_alike | {"other"}, a.obligations)
    assert FREE.join(a) == a
    assert highest.join(a) == highest
    assert FREE <= a <= highest


@given(permissions, permissions)
def test_every_flag_is_the_worse_and_nothing_owed_is_lost(a: Permissions, b: Permissions) -> None:
    joined = a.join(b)
    for flag in FLAGS:
        assert getattr(joined, flag) == max(getattr(a, flag), getattr(b, flag))
    assert joined.obligations == a.obligations | b.obligations
    assert joined.share_alike == a.share_alike | b.share_alike
    assert joined.research_only is (a.research_only or b.research_only)


@given(
    st.lists(permissions, max_size=5).flatmap(lambda many: st.tuples(st.just(many), st.permutations(many)))
)
def test_the_join_of_many_knows_no_order(orders: tuple[list[Permissions], list[Permissions]]) -> None:
    many, shuffled = orders
    assert join_all(many) == join_all(shuffled)
    assert join_all([*many, *many]) == join_all(many)


@given(permissions)
def test_unknown_dominates(a: Permissions) -> None:
    assert all(getattr(a.join(UNKNOWN), flag) is Answer.UNKNOWN for flag in FLAGS)


@given(permissions, permissions)
def test_the_burden_that_a_choice_is_made_by_agrees_with_the_lattice(a: Permissions, b: Permissions) -> None:
    assert a.burden() <= a.join(b).burden()


@given(permissions)
def test_the_stored_form_loses_nothing(a: Permissions) -> None:
    record = PermissionsRecord.of(a)
    assert record.permissions() == a
    assert PermissionsRecord.model_validate_json(record.model_dump_json()) == record


@given(st.frozensets(licence_ids, min_size=1), st.frozensets(licence_ids, min_size=1))
def test_more_share_alike_licences_never_agree_better(a: frozenset[str], b: frozenset[str]) -> None:
    assert share_alike_targets(a | b) == share_alike_targets(a) & share_alike_targets(b)


def test_which_share_alike_licences_agree() -> None:
    assert share_alike_targets(["CC-BY-SA-2.5", "CC-BY-SA-3.0", "CC-BY-SA-4.0"]) == {"CC-BY-SA-4.0"}
    assert share_alike_targets(["CC-BY-SA-3.0-DE", "CC-BY-SA-3.0"]) == {"CC-BY-SA-4.0"}
    assert share_alike_targets(["CC-BY-SA-4.0"]) == {"CC-BY-SA-4.0"}
    assert share_alike_targets(["CC-BY-SA-1.0", "CC-BY-SA-4.0"]) == frozenset()
    assert share_alike_targets(["CC-BY-SA-4.0", "CC-BY-NC-SA-4.0"]) == frozenset()
    assert share_alike_targets(["ODbL-1.0", "CC-BY-SA-4.0"]) == frozenset()


def naming(value: str) -> Obligation:
    return Obligation(Kind.NAMING, "x", f"begins with {value}", value)


def test_names_that_agree_and_names_that_do_not() -> None:
    assert name_prefix([]) == (None, frozenset())
    assert name_prefix([Obligation(Kind.DISPLAY, "x", "show", "Llama")]) == (None, frozenset())
    assert name_prefix([naming("Llama")]) == ("Llama", frozenset())
    assert name_prefix([naming("Llama"), naming("Llama 3")]) == ("Llama 3", frozenset())
    assert name_prefix([naming("Llama"), naming("Gemma")]) == (None, frozenset({"Llama", "Gemma"}))


@given(st.frozensets(obligations), st.frozensets(obligations))
def test_a_name_conflict_stays_one(a: frozenset[Obligation], b: frozenset[Obligation]) -> None:
    if name_prefix(a)[1]:
        assert name_prefix(a | b)[1] >= name_prefix(a)[1]
