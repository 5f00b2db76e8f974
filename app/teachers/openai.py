"""Driver `openai`: any API in the shape of OpenAI's chat completions."""

from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from pydantic import JsonValue

from app.domain.columns import TokenColumns, ids_only, token_columns
from app.domain.fingerprints import sha256
from app.domain.reasoning import reasoning_of, split_reasoning
from app.domain.sampling import SamplingParameters
from app.domain.teacher import TeacherSpec
from app.errors import InvalidInput, MalformedAnswer, Unsupported
from app.teachers.addresses import TeacherAccess, check_address
from app.teachers.base import Capabilities, GenerateRequest, Generation, Usage
from app.teachers.elicit import BEGUN, instructed
from app.teachers.probe import probe
from app.teachers.providers import PROVIDERS, Provider
from app.teachers.secrets import resolve
from app.teachers.transport import AiohttpTransport, HttpxTransport, Transport, decoded

_TOKEN_ID = "token_id:"


class OpenAITeacher:
    """See `app.teachers.base.Teacher`."""

    def __init__(self, spec: TeacherSpec, access: TeacherAccess) -> None:
        """Raises `InvalidInput` for an unknown provider or an address that is not allowed."""
        name = str(spec.options.get("provider", "generic"))
        if name not in PROVIDERS:
            raise InvalidInput(f"there is no provider {name!r}; there are: {', '.join(sorted(PROVIDERS))}")
        self._spec = spec
        self._provider = PROVIDERS[name]
        self._http = _transport(spec, self._provider, access)

    async def capabilities(self) -> Capabilities:
        found = await probe(self._http, self._spec)
        cap = self._provider.max_top_logprobs
        if cap is not None:
            found = replace(found, max_top_logprobs=min(found.max_top_logprobs, cap))
        return replace(found, native_n=found.native_n and self._provider.takes_n)

    async def generate(self, request: GenerateRequest) -> list[Generation]:
        body = orjson.dumps(chat_body(self._spec.model, self._provider, request))
        reply = await self._http.request("POST", "/chat/completions", body, request.deadline_s)
        return generations(decoded(reply), request, sha256(body), sha256(reply.body))

    async def score(self, prompt_ids: list[int], token_ids: list[int], top_logprobs: int) -> TokenColumns:
        raise Unsupported("chat completions cannot score given tokens: use the driver `vllm`")

    async def aclose(self) -> None:
        await self._http.aclose()


def _transport(spec: TeacherSpec, provider: Provider, access: TeacherAccess) -> Transport:
    base_url = spec.base_url or provider.base_url
    if base_url is None:
        raise InvalidInput(f"teacher {spec.name!r} needs a base_url, for example http://127.0.0.1:8000/v1")
    check_address(base_url, access)
    secret = resolve(spec.secret_ref)
    headers = {} if secret is None else {"Authorization": f"Bearer {secret.get_secret_value()}"}
    return HttpxTransport(base_url, headers) if provider.hosted else AiohttpTransport(base_url, headers)


def chat_body(model: str, provider: Provider, request: GenerateRequest) -> dict[str, Any]:
    """The request, JSON-ready."""
    sampling = request.sampling.for_sample(request.sample_indices[0])
    messages: list[Any] = list(request.messages)
    if request.elicit is not None:
        messages = instructed(request.messages, request.elicit)
        if provider.continues_assistant:
            messages.append({"role": "assistant", "content": BEGUN})
    body: dict[str, Any] = {"model": model, "messages": messages}
    _put_sampling(body, sampling, provider, request)
    if len(request.sample_indices) > 1:
        body["n"] = len(request.sample_indices)
    if request.top_logprobs:
        body["logprobs"] = True
        cap = provider.max_top_logprobs
        # Servers of vLLM's kind return the first k of {sampled, top 1 … top k}: one more keeps candidate k.
        wanted = request.top_logprobs + 1 if provider.token_id_fields else request.top_logprobs
        body["top_logprobs"] = wanted if cap is None else min(cap, wanted)
    if provider.token_id_fields:
        body["return_token_ids"] = True
        if request.top_logprobs:
            body["return_tokens_as_token_ids"] = True
    if request.tools is not None:
        body["tools"] = list(request.tools)
    if request.response_schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": request.response_schema, "strict": True},
        }
    return body


def _put_sampling(
    body: dict[str, Any], sampling: SamplingParameters, provider: Provider, request: GenerateRequest
) -> None:
    given = sampling.asked()
    if (most := given.pop("max_tokens", None)) is not None:
        extra = request.elicit.max_reasoning_tokens if request.elicit is not None else 0
        body[provider.max_tokens_field] = most + extra
    if not provider.takes_seed:
        given.pop("seed", None)
    if not provider.takes_sampling_extras:
        for name in ("top_k", "min_p", "repetition_penalty", "chat_template_kwargs"):
            given.pop(name, None)
    body.update(given)


def generations(
    answer: dict[str, Any], request: GenerateRequest, request_hash: bytes, response_hash: bytes
) -> list[Generation]:
    """All choices of a chat completion. Raises `MalformedAnswer`."""
    choices = answer.get("choices")
    if not isinstance(choices, list):
        raise MalformedAnswer("the answer has no `choices`")
    found = answer.get("usage")
    usage: dict[str, Any] = found if isinstance(found, dict) else {}
    fingerprint = answer.get("system_fingerprint")
    made = []
    for position, choice in enumerate(choices[: len(request.sample_indices)]):
        index = choice.get("index", position)
        if not isinstance(index, int) or not 0 <= index < len(request.sample_indices):
            raise MalformedAnswer(f"the answer numbers a choice {index!r}")
        message = choice.get("message")
        if not isinstance(message, dict):
            raise MalformedAnswer("a choice has no `message`")
        reasoning, text, truncated, source = _told(message, choice.get("finish_reason"), request)
        tokens = columns_of_choice(choice, request.top_logprobs, answer.get("prompt_token_ids"))
        made.append(
            Generation(
                sample_index=request.sample_indices[index],
                answer=text,
                reasoning=reasoning,
                reasoning_source=source,
                reasoning_truncated=truncated,
                finish_reason=str(choice.get("finish_reason") or "unknown"),
                tool_calls=message.get("tool_calls") or None,
                tokens=tokens,
                usage=usage_of(usage, len(choices), None if tokens is None else len(tokens)),
                engine=fingerprint if isinstance(fingerprint, str) else None,
                request_hash=request_hash,
                response_hash=response_hash,
            )
        )
    return made


def _told(
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


def usage_of(usage: dict[str, Any], choices: int, own_tokens: int | None) -> Usage:
    """A choice's share: its own tokens where they are known, else the answer's total where it has one choice."""
    total = usage.get("completion_tokens")
    details = usage.get("completion_tokens_details")
    cached = usage.get("prompt_tokens_details")
    completion = own_tokens if own_tokens is not None else (total if choices == 1 else None)
    if completion is None and isinstance(total, int):
        completion = total // choices  # the answer does not tell them apart
    return Usage(
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=completion,
        reasoning_tokens=details.get("reasoning_tokens")
        if isinstance(details, dict) and choices == 1
        else None,
        cached_tokens=cached.get("cached_tokens") if isinstance(cached, dict) else None,
    )


def columns_of_choice(choice: dict[str, Any], k: int, prompt_ids: JsonValue) -> TokenColumns | None:
    """Token columns of a chat choice; None where the server tells token text only (ids are never guessed).

    Raises `MalformedAnswer` where logprobs were asked for and are absent, NaN or not as long as the tokens.
    """
    prompt = np.array(prompt_ids, np.int32) if isinstance(prompt_ids, list) else None
    given = choice.get("token_ids")
    if not k:
        return None if not isinstance(given, list) else ids_only(np.array(given, np.int32), prompt)
    logprobs = choice.get("logprobs")
    rows = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(rows, list):
        raise MalformedAnswer("logprobs were asked for, and the answer has none")
    try:
        own_ids = given if isinstance(given, list) else [_id_of(row) for row in rows]
        if rows and _id_of(rows[0]) is None:
            return None  # token text only
        if len(own_ids) != len(rows):
            raise MalformedAnswer(f"the answer has {len(own_ids)} token ids and {len(rows)} rows of logprobs")
        width = max((len(row["top_logprobs"]) for row in rows), default=0)
        ids = np.full((len(rows), width), -1, np.int32)
        values = np.full((len(rows), width), -np.inf, np.float32)
        for i, row in enumerate(rows):
            top = row["top_logprobs"]
            ids[i, : len(top)] = [_id_of(one) or 0 for one in top]
            values[i, : len(top)] = [one["logprob"] for one in top]
        own = np.array([row["logprob"] for row in rows], np.float32)
        return token_columns(np.array(own_ids, np.int32), ids, values, own, k, prompt)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise MalformedAnswer(f"the logprobs of the answer are not as they should be: {error!r}") from error


def _id_of(row: dict[str, Any]) -> int | None:
    token = row.get("id")
    if isinstance(token, int):
        return token
    text = row["token"]
    return int(text[len(_TOKEN_ID) :]) if text.startswith(_TOKEN_ID) else None
