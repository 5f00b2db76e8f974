"""Budget forcing, call by call: what is sent, what is kept, what is marked as put there."""

import asyncio
from dataclasses import dataclass, field

import numpy as np
import pytest

from app.domain.columns import ids_only
from app.domain.fingerprints import sha256
from app.domain.sampling import Elicitation
from app.teachers.base import Generation, Turn, Usage
from app.teachers.elicit import BEGIN, END, Forced, Piece, elicit, instructed, reasoning_limit

FORCED = Forced(begin=[1, 2], end=[8, 9])
EOS = 99


def piece(text: str, ids: list[int] | None, finish: str = "stop", used: int | None = None) -> Piece:
    return Piece(
        text=text,
        finish_reason=finish,
        tokens=None if ids is None else ids_only(np.array(ids, np.int32)),
        usage=Usage(prompt_tokens=10, completion_tokens=used if ids is None else len(ids), cached_tokens=4),
        request_hash=sha256(f"asked {text}".encode()),
        response_hash=sha256(text.encode()),
        engine="scripted",
    )


@dataclass
class Teacher:
    """Answers in turn, and remembers what it was given to go on with: (text, ids, limit)."""

    pieces: list[Piece]
    asked: list[tuple[str, list[int] | None, int]] = field(default_factory=list)

    async def __call__(self, text: str, ids: list[int] | None, limit: int) -> Piece:
        self.asked.append((text, ids, limit))
        return self.pieces.pop(0)


def drawn(teacher: Teacher, reasoning: int = 6, most: int = 20, ids: Forced | None = FORCED) -> Generation:
    elicitation = Elicitation(max_reasoning_tokens=reasoning)
    return asyncio.run(elicit(3, teacher, elicitation, most, ids, EOS))


def test_a_trace_that_closes_and_answers_in_one_call() -> None:
    teacher = Teacher([piece("I add.</think>\n\n12", [5, 6, 7])])
    made = drawn(teacher)
    assert teacher.asked == [(BEGIN, [1, 2], 6)]
    assert (made.reasoning, made.answer, made.reasoning_truncated, made.calls) == ("I add.", "12", False, 1)
    assert (made.sample_index, made.reasoning_source, made.finish_reason) == (3, "elicited", "stop")
    assert made.tokens is not None
    assert made.tokens.token_ids.tolist() == [1, 2, 5, 6, 7]
    assert made.tokens.sampled.tolist() == [False, False, True, True, True]
    assert made.request_hash == sha256(b"asked I add.</think>\n\n12")


def test_a_trace_without_an_end_is_closed_for_the_teacher() -> None:
    teacher = Teacher([piece("I add and ad", [5, 6, 7, 5, 6, 7], "length"), piece("12", [4], "stop")])
    made = drawn(teacher)
    assert teacher.asked[1] == (BEGIN + "I add and ad" + END, [1, 2, 5, 6, 7, 5, 6, 7, 8, 9], 14)
    assert (made.reasoning, made.answer) == ("I add and ad", "12")
    assert made.reasoning_truncated
    assert made.calls == 2
    assert made.tokens is not None
    assert made.tokens.token_ids.tolist() == [1, 2, 5, 6, 7, 5, 6, 7, 8, 9, 4]
    assert [i for i, own in enumerate(made.tokens.sampled) if not own] == [0, 1, 8, 9]
    assert made.usage == Usage(prompt_tokens=20, completion_tokens=7, cached_tokens=8)
    assert made.response_hash == sha256(sha256(b"I add and ad") + sha256(b"12"))


def test_an_end_of_turn_inside_the_trace_is_taken_back() -> None:
    """The model stopped without closing its trace: its end token must not stand in the middle of the turn."""
    teacher = Teacher([piece("I add. ", [5, 6, EOS]), piece("12", [4])])
    made = drawn(teacher)
    assert teacher.asked[1][0] == BEGIN + "I add." + END
    assert teacher.asked[1][1] == [1, 2, 5, 6, 8, 9]
    assert made.tokens is not None
    assert EOS not in made.tokens.token_ids
    assert made.reasoning_truncated


def test_a_trace_that_closed_just_before_its_limit_goes_on_to_the_answer() -> None:
    teacher = Teacher([piece("I add.</think>\n\n1", [5, 6, 7, 5, 6, 7], "length"), piece("2", [4])])
    made = drawn(teacher)
    assert teacher.asked[1] == (BEGIN + "I add.</think>\n\n1", [1, 2, 5, 6, 7, 5, 6, 7], 14)
    assert (made.reasoning, made.answer, made.reasoning_truncated) == ("I add.", "12", False)
    assert made.tokens is not None
    assert made.tokens.sampled.tolist() == [False, False] + [True] * 7


def test_an_answer_that_is_cut_off_says_length() -> None:
    teacher = Teacher([piece("I add", [5], "length"), piece("1", [4], "length")])
    assert drawn(teacher).finish_reason == "length"


def test_without_token_ids_there_are_no_columns_and_tokens_are_counted_by_usage() -> None:
    teacher = Teacher([piece("I add", None, "length", used=5), piece("12", None, used=1)])
    made = drawn(teacher, ids=None)
    assert teacher.asked[1] == (BEGIN + "I add" + END, None, 15)
    assert made.tokens is None
    assert made.usage.completion_tokens == 6


def test_unknown_usage_stays_unknown() -> None:
    teacher = Teacher([piece("I add", None, "length", used=None), piece("12", None, used=1)])
    made = drawn(teacher, ids=None)
    assert teacher.asked[1][2] == 14, "the whole allowance is taken for used"
    assert made.usage.completion_tokens is None
    assert made.usage.prompt_tokens == 20


def test_an_empty_trace() -> None:
    made = drawn(Teacher([piece("</think>12", [7, 4])]))
    assert (made.reasoning, made.answer, made.reasoning_truncated) == ("", "12", False)


@pytest.mark.parametrize(
    ("reasoning", "most", "limit"), [(256, 1000, 256), (256, 100, 50), (5, 1, 1), (1, 1000, 1)]
)
def test_something_is_always_left_for_the_answer(reasoning: int, most: int, limit: int) -> None:
    assert reasoning_limit(Elicitation(max_reasoning_tokens=reasoning), most) == limit


def test_the_instruction_goes_before_the_system_message_or_becomes_one() -> None:
    wish = Elicitation(instruction="Think.")
    user: Turn = {"role": "user", "content": "Hello"}
    assert instructed((user,), wish) == ({"role": "system", "content": "Think."}, user)
    system: Turn = {"role": "system", "content": "Be brief.", "name": "s"}
    assert instructed((system, user), wish) == (
        {"role": "system", "content": "Think.\n\nBe brief.", "name": "s"},
        user,
    )
