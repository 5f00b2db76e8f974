"""The bundled prompt set is what it is said to be."""

from collections import Counter

import orjson
import pytest

from app.demo.main_job import bundled, content_hash
from app.domain.prompts import Prompt, parse_line, stored

pytestmark = pytest.mark.smoke

TOPICS = {"maths", "code", "classification", "summarising", "conversation", "reasoning", "refusal"}


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return [parse_line(line) for line in bundled().splitlines()]


def test_every_topic_has_several(prompts: list[Prompt]) -> None:
    assert len(prompts) >= 40
    counts = Counter(prompt.metadata["topic"] for prompt in prompts)
    assert set(counts) == TOPICS
    assert min(counts.values()) >= 5, counts


def test_each_is_ours_and_says_so(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        kept = stored(prompt, None)
        assert (kept.license, kept.license_assumed) == ("CC0-1.0", False)
        assert prompt.source is not None
        assert "our own writing" in prompt.source


def test_no_prompt_stands_twice(prompts: list[Prompt]) -> None:
    assert len({prompt.custom_id for prompt in prompts}) == len(prompts)
    assert len({orjson.dumps(prompt.turns()) for prompt in prompts}) == len(prompts)


def test_conversations_have_several_turns_and_refusals_are_marked(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        if prompt.metadata["topic"] == "conversation":
            roles = [turn["role"] for turn in prompt.turns() if turn["role"] != "system"]
            assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
            assert len(roles) >= 3
        assert ("expect" in prompt.metadata) == (prompt.metadata["topic"] == "refusal")


def test_one_carries_parameters_and_many_a_reference(prompts: list[Prompt]) -> None:
    assert any(prompt.parameters is not None for prompt in prompts)
    assert sum(prompt.reference is not None for prompt in prompts) >= 20


def test_the_hash_tells_sets_apart() -> None:
    first, *rest = bundled().splitlines(keepends=True)
    assert content_hash(bundled()) == content_hash(first + b"".join(rest))
    assert content_hash(bundled()) != content_hash(b"".join(rest) + first)
