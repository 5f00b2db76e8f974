"""A reasoning trace from a model that does not reason by itself, in two calls at most.

The turn is begun with `<think>`. The first call may use `max_reasoning_tokens`; a trace that has not closed by then is
closed for the model, and a second call asks for the answer ("budget forcing", Muennighoff et al. 2025, s1: Simple
test-time scaling). Tokens that were put there are marked as not sampled.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from app.domain.columns import TokenColumns, concatenated, first_of, forced
from app.domain.fingerprints import sha256
from app.domain.reasoning import CLOSE, OPEN, split_reasoning
from app.domain.sampling import Elicitation
from app.teachers.base import Generation, Turn, Usage

BEGIN = f"{OPEN}\n"
END = f"\n{CLOSE}\n\n"


@dataclass(frozen=True, slots=True)
class Piece:
    """What one call added to a turn. `tokens`: its columns, without the prompt's ids; None where ids are not told."""

    text: str
    finish_reason: str
    tokens: TokenColumns | None
    usage: Usage
    request_hash: bytes
    response_hash: bytes
    engine: str | None = None
    ended_by: int | None = None  # the id that ended the turn, where it is the last of `tokens`


# Go on with a turn: (its text so far, its token ids so far or None, tokens that may be added) to the piece added.
GoOn = Callable[[str, list[int] | None, int], Awaitable[Piece]]


@dataclass(frozen=True, slots=True)
class Forced:
    """Token ids of `BEGIN` and `END` as they stand in a turn; None where the teacher has no token ids."""

    begin: list[int]
    end: list[int]


def instructed(messages: tuple[Turn, ...], elicitation: Elicitation) -> tuple[Turn, ...]:
    """The messages with the instruction before the system message, or as one."""
    first = messages[0] if messages else None
    if first is not None and first.get("role") == "system":
        text = f"{elicitation.instruction}\n\n{first.get('content')}"
        return ({**first, "content": text}, *messages[1:])
    return ({"role": "system", "content": elicitation.instruction}, *messages)


def reasoning_limit(elicitation: Elicitation, max_tokens: int) -> int:
    """Tokens for the trace: never so many that nothing is left for the answer."""
    return max(1, min(elicitation.max_reasoning_tokens, max_tokens // 2))


async def elicit(
    sample_index: int,
    go_on: GoOn,
    elicitation: Elicitation,
    max_tokens: int,
    ids: Forced | None,
    eos: int | None = None,
) -> Generation:
    """Draw a trace and an answer. `max_tokens` bounds both together, forced tokens not counted.

    `eos`: the id that ends a turn, where no piece says so itself; where a trace ends with it unclosed, it is taken
    back. The columns begin with the tokens of `BEGIN`, as the turn does; they are None where ids are not told.
    """
    limit = reasoning_limit(elicitation, max_tokens)
    first = await go_on(BEGIN, None if ids is None else ids.begin, limit)
    closed = CLOSE in first.text
    if closed and first.finish_reason != "length":
        return _generation(sample_index, [first], first.text, ids, first.tokens, False)
    text, kept = first.text, first.tokens
    if not closed:
        text = text.rstrip() + END
        ends = eos if first.ended_by is None else first.ended_by
        if kept is not None and len(kept) and int(kept.token_ids[-1]) == ends:
            kept = first_of(kept, len(kept) - 1)
    used = len(first.tokens) if first.tokens is not None else first.usage.completion_tokens
    rest = max(1, max_tokens - (limit if used is None else used))
    second = await go_on(BEGIN + text, _so_far(ids, kept, closed), rest)
    return _generation(sample_index, [first, second], text + second.text, ids, kept, not closed)


def _so_far(ids: Forced | None, kept: TokenColumns | None, closed: bool) -> list[int] | None:
    if ids is None or kept is None:
        return None
    return [*ids.begin, *kept.token_ids.tolist(), *([] if closed else ids.end)]


def _generation(
    sample_index: int,
    pieces: list[Piece],
    text: str,
    ids: Forced | None,
    kept: TokenColumns | None,
    forced_shut: bool,
) -> Generation:
    last = pieces[-1]
    split = split_reasoning(text, begun=True)
    return Generation(
        sample_index=sample_index,
        answer=split.answer,
        reasoning=(split.reasoning or "").strip(),
        reasoning_source="elicited",
        reasoning_truncated=forced_shut or split.truncated,
        finish_reason=last.finish_reason,
        tokens=_columns(pieces, ids, kept, forced_shut),
        usage=_summed([piece.usage for piece in pieces]),
        request_hash=_hash([piece.request_hash for piece in pieces]),
        response_hash=_hash([piece.response_hash for piece in pieces]),
        engine=last.engine,
        calls=len(pieces),
    )


def _columns(
    pieces: list[Piece], ids: Forced | None, kept: TokenColumns | None, forced_shut: bool
) -> TokenColumns | None:
    last = pieces[-1].tokens
    if ids is None or kept is None or last is None:
        return None
    parts = [forced(np.array(ids.begin, np.int32), kept.k), kept]
    if forced_shut:
        parts.append(forced(np.array(ids.end, np.int32), kept.k))
    if len(pieces) > 1:
        parts.append(last)
    return concatenated(parts)


def _hash(hashes: list[bytes]) -> bytes:
    """Of one call its own; of several the hash of them in order."""
    return hashes[0] if len(hashes) == 1 else sha256(b"".join(hashes))


def _summed(usages: list[Usage]) -> Usage:
    """What was paid for, over all calls; unknown stays unknown."""

    def total(values: list[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    return Usage(
        prompt_tokens=total([usage.prompt_tokens for usage in usages]),
        completion_tokens=total([usage.completion_tokens for usage in usages]),
        cached_tokens=total([usage.cached_tokens for usage in usages]),
    )
