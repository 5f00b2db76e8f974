"""Where a trace ends and the answer begins, in every spelling."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.reasoning import CLOSE, OPEN, Reasoned, reasoning_of, split_reasoning


@pytest.mark.parametrize(
    ("text", "begun", "split"),
    [
        ("just an answer", False, Reasoned(None, "just an answer")),
        ("", False, Reasoned(None, "")),
        ("<think>\nI add.\n</think>\n\n12", False, Reasoned("I add.", "12")),
        ("\n <think>I add.</think>12", False, Reasoned("I add.", "12")),
        ("I add.\n</think>\n12", False, Reasoned("I add.", "12")),
        ("<think></think>12", False, Reasoned("", "12")),
        ("<think>I ad", False, Reasoned("I ad", "", truncated=True)),
        ("<think>", False, Reasoned("", "", truncated=True)),
        ("I ad", True, Reasoned("I ad", "", truncated=True)),
        ("I add.</think>12", True, Reasoned("I add.", "12")),
        ("<think>I add.</think>12", True, Reasoned("I add.", "12")),
        ("<think>a</think>b</think>c", False, Reasoned("a", "b</think>c")),
        ("the tag <think> is a word here", False, Reasoned(None, "the tag <think> is a word here")),
        ("<think>a</think>  indented\n code", False, Reasoned("a", "  indented\n code")),
    ],
)
def test_split(text: str, begun: bool, split: Reasoned) -> None:
    assert split_reasoning(text, begun) == split


@given(st.text(), st.text())
def test_what_is_put_together_comes_apart_again(trace: str, answer: str) -> None:
    for tag in (OPEN, CLOSE):
        trace, answer = trace.replace(tag, ""), answer.replace(tag, "")
    if CLOSE in trace + CLOSE[:-1] or OPEN in trace:
        return
    split = split_reasoning(f"{OPEN}{trace}{CLOSE}{answer}")
    assert split == Reasoned(trace.strip("\n"), answer.lstrip("\n"))


@given(st.text(), st.booleans())
def test_nothing_of_a_text_is_lost_but_tags_and_line_ends(text: str, begun: bool) -> None:
    split = split_reasoning(text, begun)
    if split.reasoning is None:
        assert split.answer == text
        return
    assert split.reasoning in text
    assert split.answer in text
    assert split.truncated == (CLOSE not in text)


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"content": "12", "reasoning": "I add."}, ("I add.", "12")),
        ({"content": "12", "reasoning_content": "I add."}, ("I add.", "12")),
        ({"content": "12", "reasoning": "a", "reasoning_content": "b"}, ("a", "12")),
        ({"content": "12", "reasoning": "", "reasoning_content": "b"}, ("b", "12")),
        ({"content": None, "reasoning": "I ad"}, ("I ad", "")),
        ({"content": "12", "reasoning": {"text": "no string"}}, (None, "12")),
        ({"content": "<think>a</think>12"}, (None, "<think>a</think>12")),
        ({}, (None, "")),
    ],
)
def test_fields_of_a_message(message: dict[str, Any], found: tuple[str | None, str]) -> None:
    assert reasoning_of(message) == found
