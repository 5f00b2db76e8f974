"""Conditions on metadata, and the split by a prompt's hash."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydantic import JsonValue, ValidationError

from app.domain.metadata_filter import MetadataFilter
from app.domain.splits import SPLITS, Split

METADATA: dict[str, Any] = {
    "level": 3,
    "share": 0.5,
    "easy": True,
    "none": None,
    "topic": "maths",
    "day": "2026-03-01",
    "source": {"pages": [7, 9], "a.b": 1},
}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({"path": "level", "equals": 3}, True),
        ({"path": "level", "equals": 3.0}, True),
        ({"path": "level", "equals": "3"}, False),
        ({"path": "easy", "equals": True}, True),
        ({"path": "easy", "equals": 1}, False),
        ({"path": "level", "equals": True}, False),
        ({"path": "none", "equals": None}, True),
        ({"path": "absent", "equals": None}, False),
        ({"path": "topic", "any_of": ["physics", "maths"]}, True),
        ({"path": "topic", "any_of": ["physics"]}, False),
        ({"path": "level", "min": 3, "max": 3}, True),
        ({"path": "level", "min": 4}, False),
        ({"path": "share", "max": 1}, True),
        ({"path": "day", "min": "2026-01-01", "max": "2026-12-31"}, True),
        ({"path": "day", "min": 2026}, False),
        ({"path": "easy", "min": 0}, False),
        ({"path": "none", "min": 0}, False),
        ({"path": "source.pages.1", "equals": 9}, True),
        ({"path": "source.pages.2", "equals": 9}, False),
        ({"path": "source.pages", "equals": [7, 9]}, True),
        ({"path": "topic.0", "equals": "m"}, False),
    ],
)
def test_conditions(condition: dict[str, Any], holds: bool) -> None:
    made = MetadataFilter.model_validate(condition)
    assert made.holds(METADATA) is holds
    assert made.model_dump(mode="json") == condition
    assert MetadataFilter.model_validate_json(made.model_dump_json()).holds(METADATA) is holds


@pytest.mark.parametrize("more", [{}, {"equals": 1, "min": 0}, {"equals": 1, "any_of": [1]}, {"any_of": []}])
def test_a_condition_is_one(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MetadataFilter.model_validate({"path": "x", **more})


def messages(number: int) -> list[JsonValue]:
    return [{"role": "user", "content": f"prompt {number}"}]


def test_shares_are_kept_and_a_salt_draws_anew() -> None:
    split = Split(train=0.8, validation=0.15, test=0.05)
    drawn = Counter(SPLITS[split.of(messages(i))] for i in range(20_000))
    for name, share in (("train", 0.8), ("validation", 0.15), ("test", 0.05)):
        assert drawn[name] / 20_000 == pytest.approx(share, abs=0.01)
    other = Split(train=0.8, validation=0.15, test=0.05, salt="again")
    moved = sum(split.of(messages(i)) != other.of(messages(i)) for i in range(2000))
    assert 400 < moved < 900
    # A larger share of training takes from the others and gives nothing back.
    more = Split(train=0.9, validation=0.1)
    assert all(more.of(messages(i)) == 0 for i in range(2000) if split.of(messages(i)) == 0)


@given(some.integers(0, 10**6), some.sampled_from([("train",), ("train", "test"), ("validation", "test")]))
def test_only_splits_with_a_share_are_drawn(number: int, names: tuple[str, ...]) -> None:
    split = Split.model_validate({"train": 0, **dict.fromkeys(names, 1 / len(names))})
    assert split.names == names
    assert SPLITS[split.of(messages(number))] in names


def test_the_place_of_a_prompt_is_the_same_in_every_version() -> None:
    split = Split(train=0.5, validation=0.25, test=0.25, salt="s")
    assert [split.of(messages(i)) for i in range(12)] == PLACES


PLACES = [2, 1, 0, 1, 2, 2, 2, 0, 1, 2, 0, 0]


def test_shares_must_add_up() -> None:
    with pytest.raises(ValidationError, match=r"add up to 1; they add up to 0\.9"):
        Split(train=0.8, validation=0.1)
