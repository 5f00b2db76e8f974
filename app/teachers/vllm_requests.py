"""What is sent to a vLLM server, and what comes back, by each of its three routes."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson

from app.domain.columns import Int32, TokenColumns, ids_only, token_columns
from app.domain.fingerprints import sha256
from app.domain.sampling import SamplingParameters
from app.errors import MalformedAnswer
from app.teachers.base import GenerateRequest, Usage
from app.teachers.chat_answers import usage_of
from app.teachers.compact import decode
from app.teachers.replies import json_of, refusal
from app.teachers.token_rows import columns_of_maps
from app.teachers.transport import Reply

Route = Literal["compact", "completions", "chat"]
# Bytes of an answer per candidate of a token, by route: measured on vLLM 0.32.
_BYTES = {"compact": 8, "completions": 40, "chat": 125}


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """Ids to go on from. `sampling` is the first sample's own; siblings follow with seed + 1, + 2, …"""

    ids: Int32
    sampling: SamplingParameters
    n: int
    max_tokens: int
    top_logprobs: int  # 0: none are asked for
    schema: dict[str, Any] | None
    priority: int | None
    request_id: str


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """One sample. `tokens` hold the prompt's ids."""

    index: int
    text: str
    finish_reason: str
    stop_reason: int | str | None
    tokens: TokenColumns
    usage: Usage
    fingerprint: str | None
    request_hash: bytes
    response_hash: bytes


def dumped(body: dict[str, Any]) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def samples_at_once(route: Route, most_bytes: int, max_tokens: int, k: int) -> int:
    """How many samples one request may ask for, so that its answer is surely shorter than `most_bytes`."""
    return max(1, most_bytes // (max_tokens * (_BYTES[route] * (k + 1) + 64)))


def _sampling(sampling: SamplingParameters) -> dict[str, Any]:
    """The parameters that have one name on all routes. None stays the server's default."""
    given = sampling.asked()
    for name in ("max_tokens", "stop", "reasoning_effort", "chat_template_kwargs"):
        given.pop(name, None)
    return given


def _common(model: str, asked: TokenRequest) -> dict[str, Any]:
    body = {"model": model, "n": asked.n, "max_tokens": asked.max_tokens, **_sampling(asked.sampling)}
    if asked.request_id:
        body["request_id"] = asked.request_id
    if asked.priority is not None:
        body["priority"] = asked.priority
    if asked.sampling.stop:
        body["stop"] = list(asked.sampling.stop)
    if asked.schema is not None:
        body["structured_outputs"] = {"json": asked.schema}
    return body


def compact_body(model: str, asked: TokenRequest) -> bytes:
    body = _common(model, asked) | {"prompt_token_ids": asked.ids}
    if asked.top_logprobs:
        body["top_logprobs"] = asked.top_logprobs
    return dumped(body)


def completions_body(model: str, asked: TokenRequest) -> bytes:
    body = _common(model, asked) | {"prompt": asked.ids, "return_token_ids": True}
    if asked.top_logprobs:
        # Without the second, candidates that read alike overwrite each other.
        body |= {"logprobs": asked.top_logprobs, "return_tokens_as_token_ids": True}
    return dumped(body)


def chat_body(model: str, request: GenerateRequest, priority: int | None) -> bytes:
    """The route returns the first k of {sampled, top 1 … top k}, so that one more is asked for."""
    sampling, n = request.sampling.for_sample(request.sample_indices[0]), len(request.sample_indices)
    body = {"model": model, "messages": list(request.messages), "n": n, **_sampling(sampling)}
    given = sampling.asked()
    for name in ("max_tokens", "stop", "reasoning_effort", "chat_template_kwargs"):
        if name in given:
            body[name] = given[name]
    body["return_token_ids"] = True
    if request.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs + 1}
        body["return_tokens_as_token_ids"] = True
    if request.tools is not None:
        body["tools"] = list(request.tools)
    if request.response_schema is not None:
        schema = {"name": "answer", "schema": request.response_schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.request_id:
        body["request_id"] = request.request_id
    if priority is not None:
        body["priority"] = priority
    return dumped(body)


def compact_answers(asked: TokenRequest, body: bytes, reply: Reply) -> list[TokenAnswer]:
    if reply.status != 200:
        raise refusal(reply)
    found = decode(reply.body, asked.n, asked.top_logprobs or None, None, asked.ids)
    made = sum(len(choice.tokens) for choice in found.choices)
    usage = _usage(found.prompt_tokens, made, found.cached_tokens)
    response = sha256(reply.body)
    return [
        TokenAnswer(
            index=choice.index,
            text=choice.text,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            tokens=choice.tokens,
            usage=usage_of(usage, len(found.choices), position, len(choice.tokens)),
            fingerprint=found.fingerprint,
            request_hash=sha256(body),
            response_hash=response,
        )
        for position, choice in enumerate(found.choices)
    ]


def _usage(prompt: int | None, made: int, cached: int | None) -> dict[str, Any]:
    total = None if prompt is None else prompt + made
    details = {"cached_tokens": cached}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": total,
        "prompt_tokens_details": details,
    }


def completions_answers(asked: TokenRequest, body: bytes, reply: Reply) -> list[TokenAnswer]:
    answer = json_of(reply)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) > asked.n:
        raise MalformedAnswer("the answer has no `choices`, or more of them than were asked for")
    fingerprint = answer.get("system_fingerprint")
    response, request = sha256(reply.body), sha256(body)
    made = []
    for position, choice in enumerate(choices):
        index, text = choice.get("index"), choice.get("text")
        if type(index) is not int or not 0 <= index < asked.n or not isinstance(text, str):
            raise MalformedAnswer("a choice of the answer has no index or no text")
        columns = _columns(choice, asked)
        made.append(
            TokenAnswer(
                index=index,
                text=text,
                finish_reason=str(choice.get("finish_reason") or "unknown"),
                stop_reason=choice.get("stop_reason"),
                tokens=columns,
                usage=usage_of(answer.get("usage"), len(choices), position, len(columns)),
                fingerprint=fingerprint if isinstance(fingerprint, str) else None,
                request_hash=request,
                response_hash=response,
            )
        )
    return made


def _columns(choice: dict[str, Any], asked: TokenRequest) -> TokenColumns:
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < 2**31 for one in ids):
        raise MalformedAnswer("the answer has no token ids, which were asked for")
    if not asked.top_logprobs:
        return ids_only(np.array(ids, np.int32), asked.ids)
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        raise MalformedAnswer("logprobs were asked for, and the answer has none")
    tops, own = logprobs.get("top_logprobs"), logprobs.get("token_logprobs")
    return columns_of_maps(ids, tops, own, asked.top_logprobs, asked.ids)


# -- scoring -----------------------------------------------------------------------------------------------------------


def compact_score_body(model: str, ids: list[int], start: int, k: int) -> bytes:
    """Logprobs of `ids[start:]`, each given all before it."""
    scored = {"prompt_logprobs": k, "prompt_logprobs_start": start}
    return dumped({"model": model, "prompt_token_ids": ids, "max_tokens": 0, "text": False, **scored})


def completions_score_body(model: str, ids: list[int], k: int) -> bytes:
    """vLLM generates one token at least; it is not looked at."""
    return dumped({"model": model, "prompt": ids, "max_tokens": 1, "prompt_logprobs": k})


def compact_scores(reply: Reply, k: int, prompt_ids: Int32) -> TokenColumns | None:
    if reply.status != 200:
        raise refusal(reply)
    return decode(reply.body, 1, None, k, prompt_ids).prompt


def completions_scores(reply: Reply, token_ids: list[int], start: int, k: int) -> TokenColumns:
    """Raises `MalformedAnswer` where the rows are not of these tokens."""
    answer = json_of(reply)
    try:
        rows = answer["choices"][0]["prompt_logprobs"][start:]
        if len(rows) != len(token_ids):
            raise MalformedAnswer(f"{len(token_ids)} tokens were to be scored, and {len(rows)} came back")
        width = k + 1
        ids = np.full((len(rows), width), -1, np.int32)
        logprobs = np.full((len(rows), width), -np.inf, np.float32)
        own = np.empty(len(rows), np.float32)
        ranks = np.empty(len(rows), np.int32)
        for i, (row, token) in enumerate(zip(rows, token_ids, strict=True)):
            for j, (candidate, told) in enumerate(row.items()):
                ids[i, j], logprobs[i, j] = int(candidate), told["logprob"]
            own[i], ranks[i] = row[str(token)]["logprob"], row[str(token)]["rank"]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MalformedAnswer(f"the answer's prompt logprobs are not in vLLM's shape: {error!r}") from error
    return token_columns(np.array(token_ids, np.int32), ids, logprobs, own, k, rank=ranks)
