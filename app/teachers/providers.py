"""What OpenAI-compatible APIs do differently, as data. A teacher names its provider in `options.provider`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Provider:
    """One API's ways. The default is what servers of your own do (SGLang, llama.cpp, TGI, vLLM's chat route)."""

    name: str
    base_url: str | None = None  # where the teacher gives none
    max_tokens_field: str = "max_tokens"
    max_top_logprobs: int | None = None  # a documented cap; None: the probe finds it
    takes_sampling_extras: bool = True  # top_k, min_p, repetition_penalty
    takes_seed: bool = True
    takes_n: bool = True
    continues_assistant: bool = False  # a last message of role assistant is gone on with (prefill)
    token_id_fields: bool = False  # return_tokens_as_token_ids and return_token_ids are understood
    sampled_eats_candidate: bool = (
        False  # gives the first k of {sampled, top 1 … top k}: k + 1 keeps candidate k
    )
    hosted: bool = False  # over the internet: httpx
    prices: str | None = None  # its name in genai-prices


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("generic"),
        Provider("vllm", token_id_fields=True, sampled_eats_candidate=True),
        Provider("llama.cpp", continues_assistant=True, takes_n=False),
        Provider("sglang", takes_seed=False),
        Provider("tgi", takes_n=False, max_top_logprobs=5),
        Provider(
            "openai",
            "https://api.openai.com/v1",
            max_tokens_field="max_completion_tokens",
            max_top_logprobs=20,
            takes_sampling_extras=False,
            hosted=True,
            prices="openai",
        ),
        Provider(
            "deepseek",
            "https://api.deepseek.com/v1",
            max_top_logprobs=20,
            takes_sampling_extras=False,
            takes_seed=False,
            takes_n=False,
            hosted=True,
            prices="deepseek",
        ),
        Provider(
            "together", "https://api.together.xyz/v1", max_top_logprobs=5, hosted=True, prices="together"
        ),
        Provider(
            "fireworks",
            "https://api.fireworks.ai/inference/v1",
            max_top_logprobs=5,
            hosted=True,
            prices="fireworks",
        ),
        Provider(
            "openrouter", "https://openrouter.ai/api/v1", takes_n=False, hosted=True, prices="openrouter"
        ),
    )
}
