"""Chat completions, as OpenAI's API and its many relatives shape them, to generations."""

from decimal import Decimal
from typing import Any

import numpy as np
from pydantic import JsonValue

from app.domain.columns import Int32, TokenColumns, ids_only
from app.domain.reasoning import reasoning_of, split_reasoning
from app.errors import MalformedAnswer, TeacherError, TransientTeacherError, Unsupported
from app.teachers.base import GenerateRequest, Generation, Usage
from app.teachers.replies import error_told
from app.teachers.token_rows import columns_of_meta_info, columns_of_rows

TEXT_ONLY = (
    "the teacher tells tokens as text, not by their ids: text does not name a token, so no soft labels"
)
DEGENERATE = "the teacher returns only 0 and −9999 as logprobs: these are no distribution, so no soft labels"
UNTOLD = (
    "left out: llama.cpp tells no row for a token after which the text ends inside a character, so not every token's id"
    " is known"
)
FEW_TOKENS = 8  # tokens; a shorter answer may well be certain of each

# What is kept of a message as it came, beside what has a column of its own.
_KEPT_OF_MESSAGE = ("reasoning_details", "annotations")
_BROKEN_OFF = frozenset({"error", "abort", "aborted"})  # finish reasons of an answer that never was one


def generations(
    answer: Any,
    request: GenerateRequest,
    request_hash: bytes,
    response_hash: bytes,
    unsent: tuple[str, ...] = (),
) -> list[Generation]:
    """One `Generation` per choice that is one. `unsent`: parameters that the teacher was not told.

    Raises `MalformedAnswer`, or what an error inside the answer stands for, where no choice is left.
    """
    choices = _choices(answer)
    usage = answer.get("usage")
    engine = answer.get("system_fingerprint")
    prompt_ids = _ids(answer.get("prompt_token_ids"))
    made: list[Generation] = []
    broken: TeacherError | None = None
    for position, choice in enumerate(choices[: len(request.sample_indices)]):
        index = choice.get("index", position)
        if not isinstance(index, int) or not 0 <= index < len(request.sample_indices):
            raise MalformedAnswer(f"the answer numbers a choice {index!r}")
        if (error := _broken(choice)) is not None:
            broken = error
            continue
        message = choice.get("message")
        if not isinstance(message, dict):
            raise MalformedAnswer("a choice has no `message`")
        finish, refusal = str(choice.get("finish_reason") or "unknown"), message.get("refusal")
        reasoning, text, truncated, source = told(message, finish, request)
        tokens = columns_of_choice(choice, request.top_logprobs, prompt_ids)
        extra = _extra(answer, message, unsent)
        if tokens is not None and len(choices) == 1 and _untold_tokens(choice, finish, request, usage):
            tokens, extra = None, {**(extra or {}), "token_columns": UNTOLD}
        if isinstance(refusal, str) and refusal:
            finish, text = "refusal", text or refusal
        made.append(
            Generation(
                sample_index=request.sample_indices[index],
                answer=text,
                reasoning=reasoning,
                reasoning_source=source,
                reasoning_truncated=truncated,
                finish_reason=finish,
                tool_calls=_tool_calls(message),
                tokens=tokens,
                usage=usage_of(usage, len(choices), position, None if tokens is None else len(tokens)),
                engine=engine if isinstance(engine, str) else None,
                request_hash=request_hash,
                response_hash=response_hash,
                provider_extra=extra,
            )
        )
    if broken is not None and not made:
        raise broken
    return made


def _choices(answer: Any) -> list[dict[str, Any]]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list):
        # Some relays answer 200 and put the error of whoever they called into the body.
        error = error_told(answer)
        raise error if error is not None else MalformedAnswer("the answer has no `choices`")
    if not all(isinstance(choice, dict) for choice in choices):
        raise MalformedAnswer("a choice of the answer is no object")
    return choices


def _broken(choice: dict[str, Any]) -> TeacherError | None:
    error = error_told(choice)
    finish = choice.get("finish_reason")
    if error is None and isinstance(finish, str) and finish in _BROKEN_OFF:
        return TransientTeacherError(f"the teacher broke off: finish_reason {finish!r}")
    return error


def _tool_calls(message: dict[str, Any]) -> list[dict[str, JsonValue]] | None:
    calls = message.get("tool_calls")
    if not calls:
        return None
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise MalformedAnswer("the answer's `tool_calls` are no list of objects")
    return calls


def _extra(
    answer: dict[str, Any], message: dict[str, Any], unsent: tuple[str, ...]
) -> dict[str, JsonValue] | None:
    """What tells where the answer came from, and what of its reasoning must go back unchanged in a next turn."""
    found: dict[str, JsonValue] = {
        name: answer[name] for name in ("id", "provider", "service_tier") if isinstance(answer.get(name), str)
    }
    found |= {name: message[name] for name in _KEPT_OF_MESSAGE if message.get(name)}
    if isinstance(message.get("content"), list) and any(
        isinstance(part, dict) and part.get("type") != "text" for part in message["content"]
    ):
        found["content"] = message["content"]
    if unsent:
        found["not_sent"] = list(unsent)
    return found or None


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

    Its generated tokens: all of them where it is alone, else `own_tokens` where they are known, else its part. Some
    APIs count reasoning beside `completion_tokens` and not in it: their `total_tokens` gives them away.
    """
    if not isinstance(usage, dict):
        return Usage(completion_tokens=own_tokens)
    prompt, made, total = (_count(usage, f"{name}_tokens") for name in ("prompt", "completion", "total"))
    details, cached = usage.get("completion_tokens_details"), usage.get("prompt_tokens_details")
    reasoning = _count(details, "reasoning_tokens")
    if reasoning is None:
        reasoning = _count(usage, "reasoning_tokens")
    if reasoning and None not in (prompt, made, total) and total == (prompt or 0) + (made or 0) + reasoning:
        made = (made or 0) + reasoning
    own = made if choices == 1 and made is not None else own_tokens
    hits = _count(cached, "cached_tokens")
    cost = usage.get("cost")
    known = isinstance(cost, int | float) and not isinstance(cost, bool) and cost >= 0
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=own if own is not None else _part(made, choices, position),
        reasoning_tokens=reasoning if choices == 1 else None,
        cached_tokens=_count(usage, "prompt_cache_hit_tokens") if hits is None else hits,
        billed_prompt_tokens=None if choices == 1 else _part(prompt, choices, position),
        cost_usd=Decimal(str(cost)) / choices if known else None,
    )


def _part(total: int | None, parts: int, position: int) -> int | None:
    """Whole numbers that sum to the total."""
    return None if total is None else total // parts + (1 if position < total % parts else 0)


def columns_of_choice(choice: dict[str, Any], k: int, prompt_ids: Int32 | None) -> TokenColumns | None:
    """Token columns of a choice; None where neither logprobs were asked for nor ids are told.

    Raises `MalformedAnswer` where logprobs were asked for and are absent, NaN, no distribution, or not as long as the
    tokens; `Unsupported` where they come with token text only: ids are never guessed.
    """
    own = _ids(choice.get("token_ids", choice.get("response_token_ids")))
    if prompt_ids is None:
        prompt_ids = _ids(choice.get("prompt_token_ids"))
    if not k:
        return None if own is None else ids_only(own, prompt_ids)
    columns = _asked_columns(choice, own, k, prompt_ids)
    if columns is None:
        raise Unsupported(TEXT_ONLY)
    if len(columns) >= FEW_TOKENS and is_degenerate(columns):
        raise MalformedAnswer(DEGENERATE)
    return columns


def _asked_columns(
    choice: dict[str, Any], own: Int32 | None, k: int, prompt_ids: Int32 | None
) -> TokenColumns | None:
    meta_info, logprobs = choice.get("meta_info"), choice.get("logprobs")
    if isinstance(meta_info, dict) and "output_token_logprobs" in meta_info:
        return columns_of_meta_info(meta_info, k, prompt_ids)
    if not isinstance(logprobs, dict):
        raise MalformedAnswer("logprobs were asked for, and the answer has none")
    rows = logprobs.get("content")
    if not isinstance(rows, list):
        if isinstance(logprobs.get("tokens"), list):  # the shape of the older completions: candidates by text
            return None
        raise MalformedAnswer("logprobs were asked for, and the answer has none")
    return columns_of_rows(rows, None if own is None else own.tolist(), k, prompt_ids)


def _untold_tokens(choice: dict[str, Any], finish: str, request: GenerateRequest, usage: JsonValue) -> bool:
    """Whether these are llama.cpp's rows, known by their `id`, and fewer than the tokens that it generated.

    A stop string's tokens lack rows too, and rightly: then an answer in plain ASCII has all that are its own.
    """
    logprobs = choice.get("logprobs")
    rows = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row.get("id"), int) for row in rows):
        return False
    generated = _count(usage, "completion_tokens")
    if generated is None or generated <= len(rows):
        return False
    stopped = finish == "stop" and bool(request.sampling.stop)
    return not stopped or any(byte >= 0x80 for row in rows for byte in row.get("bytes") or ())


def is_degenerate(columns: TokenColumns) -> bool:
    """Whether nothing but 0 and −inf stands there: some APIs pretend that every token was certain."""
    finite = columns.topk_logprobs[columns.topk_logprobs > -9000.0]
    return bool((finite == 0.0).all()) and bool((columns.sampled_logprob == 0.0).all())


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
