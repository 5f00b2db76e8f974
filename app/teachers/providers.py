"""What OpenAI-compatible APIs do differently, as data. A teacher names its provider in `options.provider`.

Read in their own clients and servers: openai 3.57, groq 1.7, mistralai 3.7, together 3.1, fireworks-ai 1.2, openrouter
1.3, sglang 0.5.23, vLLM 0.32, llama.cpp. What a model can do beyond that, the probe finds out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

# What only servers of your own know.
_BUDGET = frozenset({"thinking_token_budget"})
_TEMPLATE = _BUDGET | {"chat_template_kwargs"}
_SERVED = _TEMPLATE | {"top_k", "min_p", "repetition_penalty"}
_NONE: Mapping[str, object] = MappingProxyType({})


def _fields(**given: object) -> Mapping[str, object]:
    return MappingProxyType(given)


@dataclass(frozen=True, slots=True)
class BatchWays:
    """A provider's batch API of OpenAI's kind: a file of requests, worked off within a day, cheaper."""

    file_purpose: str = "batch"
    endpoint: str = "/v1/chat/completions"
    max_requests: int = 50_000
    max_bytes: int = 190 * 1024 * 1024  # 200 MB is the documented bound
    window: str = "24h"


@dataclass(frozen=True, slots=True)
class Provider:
    """One API's ways. The default is what a server of your own does that claims to be OpenAI's chat completions."""

    name: str
    base_url: str | None = None  # where the teacher gives none
    hosted: bool = False  # over the internet: httpx
    prices: str | None = None  # its name in genai-prices
    max_tokens_field: str = "max_tokens"
    seed_field: str | None = "seed"
    takes_n: bool = True
    refuses: frozenset[str] = frozenset()  # sampling parameters that it has no notion of: they are not sent
    effort: Literal["reasoning_effort", "reasoning.effort"] = "reasoning_effort"
    response_schema: bool = True  # `response_format` of type `json_schema`
    # `logprobs: true, top_logprobs: k`; Together's `logprobs: k`; or none at all.
    logprobs: Literal["chat", "count", "none"] = "chat"
    max_top_logprobs: int | None = None  # a documented cap; None: the probe finds it
    sampled_eats_candidate: bool = (
        False  # gives the first k of {sampled, top 1 … top k}: k + 1 keeps the k-th
    )
    ids: Mapping[str, object] = field(default_factory=lambda: _NONE)  # sent always: asks for token ids
    ids_of_logprobs: Mapping[str, object] = field(default_factory=lambda: _NONE)  # sent with logprobs
    extra: Mapping[str, object] = field(default_factory=lambda: _NONE)  # sent always
    refuses_by_404: bool = False  # says so where none of its servers can do what a prompt asks for
    continues_assistant: bool = False  # a last message of role assistant is gone on with (prefill)
    # Where a server of your own tells its version: path outside `/v1`, field, and the engine's name.
    version: tuple[str, str, str] | None = None
    batch: BatchWays | None = None


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("generic", version=("/version", "version", "server"), batch=BatchWays()),
        Provider(
            "vllm",
            sampled_eats_candidate=True,
            ids=_fields(return_token_ids=True),
            ids_of_logprobs=_fields(return_tokens_as_token_ids=True),
            version=("/version", "version", "vllm"),
        ),
        Provider(
            "sglang",
            refuses=_BUDGET,
            # Flat arrays with ids stand in `meta_info`; older servers pass over these fields and tell text only.
            ids=_fields(return_token_ids=True),
            ids_of_logprobs=_fields(return_meta_info=True, return_flat_raw_output_top_logprobs=True),
            version=("/server_info", "version", "sglang"),
        ),
        Provider(
            "llama.cpp",
            refuses=_BUDGET,
            takes_n=False,
            continues_assistant=True,
            version=("/props", "build_info", "llama.cpp"),
        ),
        Provider(
            "tgi", refuses=_BUDGET, takes_n=False, max_top_logprobs=5, version=("/info", "version", "tgi")
        ),
        Provider(
            "openai",
            "https://api.openai.com/v1",
            hosted=True,
            prices="openai",
            max_tokens_field="max_completion_tokens",
            refuses=_SERVED,
            max_top_logprobs=20,
            batch=BatchWays(),
        ),
        Provider(
            "deepseek",
            "https://api.deepseek.com/v1",
            hosted=True,
            prices="deepseek",
            seed_field=None,
            takes_n=False,
            refuses=_SERVED,
            response_schema=False,
            max_top_logprobs=20,
        ),
        Provider(
            "mistral",
            "https://api.mistral.ai/v1",
            hosted=True,
            prices="mistral",
            seed_field="random_seed",
            refuses=_TEMPLATE | {"min_p"},
        ),
        Provider(
            "xai",
            "https://api.x.ai/v1",
            hosted=True,
            prices="x-ai",
            max_tokens_field="max_completion_tokens",
            refuses=_SERVED,
            max_top_logprobs=8,
        ),
        Provider(
            "groq",
            "https://api.groq.com/openai/v1",
            hosted=True,
            prices="groq",
            max_tokens_field="max_completion_tokens",
            takes_n=False,
            refuses=_SERVED,
            logprobs="none",
            batch=BatchWays(),
        ),
        Provider(
            "together",
            "https://api.together.xyz/v1",
            hosted=True,
            prices="together",
            refuses=_TEMPLATE,
            logprobs="count",
            max_top_logprobs=20,
        ),
        Provider(
            "fireworks",
            "https://api.fireworks.ai/inference/v1",
            hosted=True,
            prices="fireworks",
            refuses=_TEMPLATE,
            max_top_logprobs=5,
        ),
        Provider(
            "openrouter",
            "https://openrouter.ai/api/v1",
            hosted=True,
            prices="openrouter",
            takes_n=False,
            refuses=_TEMPLATE,
            effort="reasoning.effort",
            refuses_by_404=True,
            extra=_fields(usage={"include": True}),  # then it says what it charged
        ),
    )
}
