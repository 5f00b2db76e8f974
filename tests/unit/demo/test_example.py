"""Which completion the demo shows, and how it looks."""

import math
from io import StringIO

import pytest
from rich.console import Console

from app.demo.example import charm, comes_to, percent, token_table, visible
from app.services.completions import TokensView
from app.teachers import embedded_model
from tests.fixtures.views import completion


@pytest.mark.parametrize(
    ("text", "reference", "met"),
    [
        ("There are 24 bags of rolls.", "24", True),
        ("So I can buy 24 * 3 = 72 euros.", "24", False),
        ("24 is 124", "24", False),
        ("It is 4.5", "4.5", True),
        ("The dolphin is a mammal.", "mammal", True),
        ("The blue box is the only one that is not at the bottom.", "blue", False),
        ("MAMMAL!", "mammal", True),
        ("mammalian", "mammal", False),
        ("use wc -l notes.txt", "wc -l notes.txt", True),
        (None, "24", False),
        ("", "x", False),
    ],
)
def test_what_comes_to_a_reference(text: str | None, reference: str, met: bool) -> None:
    assert comes_to(text, reference) is met


def test_the_nicest_is_right_reasoned_whole_and_short() -> None:
    best = completion("The answer is 20.", "10 percent of 200 is 20.")
    worse = [
        completion("The answer is 20.", "10 percent of 200 is 20.", reasoning_truncated=True),
        completion("The answer is 20.", "I multiply."),
        completion("The answer is 21.", "10 percent of 200 is 20."),
        completion("The answer is 20." + " Yes." * 99 + " 20", "10 percent of 200 is 20."),
        completion("", None),
    ]
    assert min([*worse, best], key=lambda row: charm(row, "20")) is best


def test_forced_tokens_are_left_out_and_every_probability_is_shown() -> None:
    embedded_model.fetch()
    tokens = TokensView(
        k=2,
        token_ids=[28, 504, 9],
        sampled_logprob=[None, math.log(0.5), math.log(0.004)],
        sampled_rank=[0, 1, 2],
        tail_logmass=[0.0, -1.0, -1.0],
        sampled=[False, True, True],
        topk_ids=[[-1, -1], [504, 1000], [1000, 9]],
        topk_logprobs=[[None, None], [math.log(0.5), math.log(0.25)], [math.log(0.9), math.log(0.004)]],
        prompt_ids=[1],
    )
    shown = StringIO()
    Console(file=shown, width=80).print(token_table(tokens))
    text = shown.getvalue()
    assert "first 2 tokens" in text
    assert "50%" in text
    assert "25%" in text
    assert "<1%" in text
    assert "90%" in text
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())


def test_spaces_and_line_ends_can_be_seen() -> None:
    assert visible(" a\n\t") == "·a↵⇥"
    assert visible("") == "∅"
    assert [percent(p) for p in (0.0, 0.001, 0.5, 1.0)] == ["0%", "<1%", "50%", "100%"]
