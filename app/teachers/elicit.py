"""A reasoning trace drawn from a teacher that does not reason by itself: instruction, `<think>` prefill, two pieces.

The first piece thinks, for at most `max_reasoning_tokens`. Where it has not closed its trace by then, the closing tag
is put there (those tokens are marked as not sampled) and the second piece gives the answer (budget forcing, as in
"s1: Simple test-time scaling", 2025). Works on any engine that takes and returns token ids.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from app.domain.columns import Int32, TokenColumns, concatenated, forced
from app.domain.reasoning import CLOSE, OPEN, split_reasoning
from app.domain.sampling import Elicitation
from app.teachers.base import Turn

BEGUN = f"{OPEN}\n"
CLOSING = f"\n{CLOSE}\n\n"


@dataclass(frozen=True, slots=True)
class Piece:
    """What an engine made after some token ids. `finish_reason`: stop or length."""

    text: str
    tokens: TokenColumns
    finish_reason: str
    ends_with_eos: bool
    request_hash: bytes
    response_hash: bytes


Continue = Callable[[list[int], int], Awaitable[Piece]]
"""(all ids so far, most tokens to add) → the piece."""


@dataclass(frozen=True, slots=True)
class Elicited:
    """The whole turn: trace and answer as text, one row of columns, and the pieces it took."""

    reasoning: str
    answer: str
    truncated: bool
    tokens: TokenColumns
    finish_reason: str
    pieces: tuple[Piece, ...]


def instructed(messages: tuple[Turn, ...], elicit: Elicitation) -> list[Turn]:
    """The messages with the instruction as (or before) the system message."""
    first, rest = messages[0], list(messages[1:])
    if first["role"] in ("system", "developer"):
        content: JsonValue = f"{elicit.instruction}\n\n{first['content']}"
        return [{**first, "content": content}, *rest]
    return [{"role": "system", "content": elicit.instruction}, first, *rest]


async def think_then_answer(
    prompt_ids: list[int], closing_ids: list[int], elicit: Elicitation, max_tokens: int, go_on: Continue
) -> Elicited:
    """`prompt_ids` end with the `<think>` prefill; `closing_ids` spell `CLOSING`."""
    thought = await go_on(prompt_ids, elicit.max_reasoning_tokens)
    k = thought.tokens.k
    begun = split_reasoning(thought.text, begun=True)
    if not begun.truncated and thought.finish_reason == "stop" and begun.answer.strip():
        return Elicited(
            begun.reasoning or "", begun.answer, False, thought.tokens, thought.finish_reason, (thought,)
        )
    own = _without_last(thought.tokens) if thought.ends_with_eos else thought.tokens
    parts = [own]
    if begun.truncated:
        parts.append(forced(np.array(closing_ids, np.int32), k))
    ids = prompt_ids + [int(i) for part in parts for i in part.token_ids]
    answered = await go_on(ids, max_tokens)
    parts.append(answered.tokens)
    return Elicited(
        reasoning=begun.reasoning or "",
        answer=(begun.answer + answered.text).strip(),
        truncated=begun.truncated,
        tokens=concatenated(parts, np.array(prompt_ids, np.int32)),
        finish_reason=answered.finish_reason,
        pieces=(thought, answered),
    )


def _without_last(tokens: TokenColumns) -> TokenColumns:
    """The end-of-turn token falls away where the turn goes on."""
    end: Int32 = tokens.token_ids[:-1]
    return TokenColumns(
        token_ids=end,
        topk_ids=tokens.topk_ids[:-1],
        topk_logprobs=tokens.topk_logprobs[:-1],
        sampled_logprob=tokens.sampled_logprob[:-1],
        sampled_rank=tokens.sampled_rank[:-1],
        tail_logmass=tokens.tail_logmass[:-1],
        sampled=tokens.sampled[:-1],
        prompt_ids=tokens.prompt_ids,
    )
