"""Chat completions, as OpenAI's API and its many relatives shape them, to generations."""

from typing import Any

import numpy as np
from pydantic import JsonValue

from app.domain.columns import Int32, TokenColumns, ids_only
from app.domain.reasoning import reasoning_of, split_reasoning
from app.errors import MalformedAnswer
from app.teachers.base import GenerateRequest, Generation, Usage
from app.teachers.token_rows import columns_of_rows


def generations(
    answer: Any, request: GenerateRequest, request_hash: bytes, response_hash: bytes
) -> list[Generation]:
    """One `Generation` per choice. Raises `MalformedAnswer`."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list):
        raise MalformedAnswer("the answer has no `choices`")
    usage = answer.get("usage")
    engine = answer.get("system_fingerprint")
    prompt_ids = _ids(answer.get("prompt_token_ids"))
    made = []
    for position, choice in enumerate(choices[: len(request.sample_indices)]):
        index = choice.get("index", position)
        if not isinstance(index, int) or not 0 <= index < len(request.sample_indices):
            raise MalformedAnswer(f"the answer numbers a choice {index!r}")
        message = choice.get("message")
        if not isinstance(message, dict):
            raise MalformedAnswer("a choice has no `message`")
        finish = choice.get("finish_reason")
        reasoning, text, truncated, source = told(message, finish, request)
        tokens = columns_of_choice(choice, request.top_logprobs, prompt_ids)
        made.append(
            Generation(
                sample_index=request.sample_indices[index],
                answer=text,
                reasoning=reasoning,
                reasoning_source=source,
                reasoning_truncated=truncated,
                finish_reason=str(finish or "unknown"),
                tool_calls=message.get("tool_calls") or None,
                tokens=tokens,
                usage=usage_of(usage, len(choices), position, None if tokens is None else len(tokens)),
                engine=engine if isinstance(engine, str) else None,
                request_hash=request_hash,
                response_hash=response_hash,
            )
        )
    return made


def told(
    message: dict[str, Any], finish: object, request: GenerateRequest
) -> tuple[str | None, str, bool, str | None]:
    """(reasoning, answer, truncated, source) of a message in any of the known spellings."""
    source = "native" if request.elicit is None else "elicited"
    trace, text = reasoning_of(message)
    if trace is not None:
        # The trace was cut off where nothing came after it and the length ended it.
        return trace, text, finish == "length" and not text.strip(), source
    split = split_reasoning(text)
    return split.reasoning, split.answer, split.truncated, None if split.reasoning is None else source


def usage_of(usage: JsonValue, choices: int, position: int = 0, own_tokens: int | None = None) -> Usage:
    """The share of the choice at `position`, of `choices` that one request made.

    Its generated tokens: `own_tokens` where they are known, else its part of the total. Some APIs count reasoning
    beside `completion_tokens` and not in it: their `total_tokens` gives them away.
    """
    if not isinstance(usage, dict):
        return Usage(completion_tokens=own_tokens)
    prompt, made, total = (_count(usage, f"{name}_tokens") for name in ("prompt", "completion", "total"))
    details, cached = usage.get("completion_tokens_details"), usage.get("prompt_tokens_details")
    reasoning = _count(details, "reasoning_tokens")
    if reasoning and None not in (prompt, made, total) and total == (prompt or 0) + (made or 0) + reasoning:
        made = (made or 0) + reasoning
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=own_tokens if own_tokens is not None else _part(made, choices, position),
        reasoning_tokens=reasoning if choices == 1 else None,
        cached_tokens=_count(cached, "cached_tokens"),
        billed_prompt_tokens=None if choices == 1 else _part(prompt, choices, position),
    )


def _part(total: int | None, parts: int, position: int) -> int | None:
    """Whole numbers that sum to the total."""
    return None if total is None else total // parts + (1 if position < total % parts else 0)


def columns_of_choice(choice: dict[str, Any], k: int, prompt_ids: Int32 | None) -> TokenColumns | None:
    """Token columns of a choice; None where the server tells token text only (ids are never guessed).

    Raises `MalformedAnswer` where logprobs were asked for and are absent, NaN or not as long as the tokens.
    """
    own = _ids(choice.get("token_ids"))
    if not k:
        return None if own is None else ids_only(own, prompt_ids)
    logprobs = choice.get("logprobs")
    rows = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(rows, list):
        raise MalformedAnswer("logprobs were asked for, and the answer has none")
    return columns_of_rows(rows, None if own is None else own.tolist(), k, prompt_ids)


def _ids(given: JsonValue) -> Int32 | None:
    if not isinstance(given, list):
        return None
    try:
        return np.array(given, np.int32)
    except (TypeError, ValueError, OverflowError) as error:
        raise MalformedAnswer(f"the answer's token ids are none: {error}") from error


def _count(found: JsonValue, name: str) -> int | None:
    value = found.get(name) if isinstance(found, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
