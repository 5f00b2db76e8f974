"""A request, as OpenAI's chat completions and their many relatives take it."""

from typing import Any

import orjson

from app.errors import Unsupported
from app.teachers.base import GenerateRequest
from app.teachers.elicit import instructed
from app.teachers.providers import Provider


def chat_body(
    model: str, provider: Provider, request: GenerateRequest, refused: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the request, JSON-ready; sampling parameters that were asked for and are not sent, by name).

    `refused`: parameters that this model was found not to take, beside those of its provider.
    Raises `Unsupported` for what must not be passed over in silence.
    """
    sampling = request.sampling.for_sample(request.sample_indices[0])
    messages = request.messages if request.elicit is None else instructed(request.messages, request.elicit)
    body: dict[str, Any] = {"model": model, "messages": list(messages), **provider.extra, **provider.ids}
    given = sampling.asked()
    unsent = sorted(set(given) & (provider.refuses | refused))
    if provider.seed_field is None and "seed" in given:
        unsent.append("seed")
    for name in unsent:
        del given[name]
    most = given.pop("max_tokens", None)
    if most is not None:
        extra = request.elicit.max_reasoning_tokens if request.elicit is not None else 0
        body[provider.max_tokens_field] = most + extra
    if (seed := given.pop("seed", None)) is not None and provider.seed_field is not None:
        body[provider.seed_field] = seed
    if (effort := given.pop("reasoning_effort", None)) is not None:
        _put_effort(body, provider, effort)
    body.update(given)
    if len(request.sample_indices) > 1:
        body["n"] = len(request.sample_indices)
    if request.top_logprobs:
        body |= logprob_fields(provider, request.top_logprobs)
    if request.tools is not None:
        body["tools"] = list(request.tools)
    if request.response_schema is not None:
        if not provider.response_schema:
            raise Unsupported(f"{provider.name} takes no response schema, only the wish for some JSON")
        schema = {"name": "answer", "schema": request.response_schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body, tuple(unsent)


def logprob_fields(provider: Provider, k: int) -> dict[str, Any]:
    """What asks for k candidates a position."""
    wanted = k + 1 if provider.sampled_eats_candidate else k
    if provider.max_top_logprobs is not None:
        wanted = min(wanted, provider.max_top_logprobs)
    if provider.logprobs == "count":
        return {"logprobs": wanted, **provider.ids_of_logprobs}
    return {"logprobs": True, "top_logprobs": wanted, **provider.ids_of_logprobs}


def encoded(body: dict[str, Any]) -> bytes:
    """The bytes that are sent, and hashed."""
    return orjson.dumps(body)


def _put_effort(body: dict[str, Any], provider: Provider, effort: str) -> None:
    if provider.effort == "reasoning.effort":
        body["reasoning"] = {"effort": effort}
    else:
        body["reasoning_effort"] = effort
