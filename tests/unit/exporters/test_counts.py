"""Counts are summed over files in any order, and stay small whatever the values are."""

from app.exporters.counts import Counts, add, in_order


def test_rare_values_are_summed_and_nothing_is_lost() -> None:
    total: Counts = {}
    for file in range(5):
        values = {f"source {file}-{i}": 1 for i in range(900)} | {"common": 50}
        add(total, {"prompt_source": values, "part": {f"{i}": 1 for i in range(2000)}})
    once = in_order(total)
    assert len(once["prompt_source"]) == 1001
    assert sum(once["prompt_source"].values()) == 5 * 950
    assert once["prompt_source"]["common"] == 250
    assert len(once["part"]) == 2000, "what the policy counts is never summed up"
    add(once, {"prompt_source": {"new": 3}})
    again = in_order(once)
    assert sum(again["prompt_source"].values()) == 5 * 950 + 3
    assert again["prompt_source"]["new"] == 3
    assert in_order(again) == again


def test_few_values_are_told_as_they_are() -> None:
    assert in_order({"teacher": {"b": 1, "a": 2}, "tokens": {"x": 3}}) == {
        "teacher": {"a": 2, "b": 1},
        "tokens": {"x": 3},
    }
