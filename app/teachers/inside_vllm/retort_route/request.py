"""A request, judged field by field, and what becomes of it in the engine."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .wire import Choice, Rows, rows_of

_INT64 = 2**63


class Refused(Exception):
    """What the client is told instead of an answer."""

    def __init__(self, status: int, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.parameter = status, message, parameter


@dataclass(frozen=True)
class Field:
    """What a field of the request may hold. `bool` is never an integer here."""

    kind: type | tuple[type, ...]
    least: float | None = None
    most: float | None = None

    def check(self, name: str, value: Any) -> None:
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        if type(value) not in kinds:
            raise Refused(400, f"{name} must be {' or '.join(kind.__name__ for kind in kinds)}", name)
        if self.least is not None and not value >= self.least:  # NaN fails as well
            raise Refused(400, f"{name} must be at least {self.least:g}", name)
        if self.most is not None and not value <= self.most:
            raise Refused(400, f"{name} must be at most {self.most:g}", name)


_NUMBER = (int, float)
FIELDS: dict[str, Field] = {
    "model": Field(str),
    "prompt_token_ids": Field(list),
    "request_id": Field(str),
    "top_logprobs": Field(int, 0, 1_000_000),
    "prompt_logprobs": Field(int, 0, 1_000_000),
    "prompt_logprobs_start": Field(int, 0, _INT64),
    "text": Field(bool),
    "priority": Field(int, -_INT64, _INT64 - 1),
    "structured_outputs": Field(dict),
    # The rest goes into vLLM's SamplingParams under the same name, which judges it once more.
    "n": Field(int, 1, 16_384),
    "max_tokens": Field(int, 0, _INT64),
    "min_tokens": Field(int, 0, _INT64),
    "temperature": Field(_NUMBER, 0, 2),
    "top_p": Field(_NUMBER, 0, 1),
    "top_k": Field(int, -1, _INT64 - 1),
    "min_p": Field(_NUMBER, 0, 1),
    "presence_penalty": Field(_NUMBER, -2, 2),
    "frequency_penalty": Field(_NUMBER, -2, 2),
    "repetition_penalty": Field(_NUMBER, 0, 1_000_000),
    "seed": Field(int, -_INT64, _INT64 - 1),
    "stop_token_ids": Field(list),
    "stop": Field(list),
    "ignore_eos": Field(bool),
    "thinking_token_budget": Field(int, -1, _INT64 - 1),
}
_OURS = {
    *("model", "prompt_token_ids", "request_id", "top_logprobs", "prompt_logprobs", "prompt_logprobs_start"),
    *("text", "priority", "structured_outputs", "max_tokens", "stop_token_ids"),
}
_TEXTS = {"model", "request_id", "stop", "structured_outputs"}
_STRUCTURED = {
    *("json", "regex", "choice", "grammar", "json_object", "structural_tag"),
    *("whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"),
}
_SERVER_DEFAULTS = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")


def read_request(body: bytes, max_model_len: int) -> dict[str, Any]:
    """The request, every field of the right kind and within its bounds, those that are null left out.

    Raises `Refused`. What only the model can judge (vocabulary, cap of logprobs, grammars) is left to vLLM.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {type(error).__name__}") from None
    if not isinstance(given, dict):
        raise Refused(400, "the body must be a JSON object")
    unknown = sorted(set(given) - set(FIELDS))
    if unknown:
        raise Refused(400, f"there is no field {unknown[0][:100]!r}", unknown[0][:100])
    asked = {name: value for name, value in given.items() if value is not None}
    for name, value in asked.items():
        FIELDS[name].check(name, value)
    for name in _TEXTS & asked.keys():
        _check_text(name, asked[name])
    _check_ids("prompt_token_ids", asked.get("prompt_token_ids", []), max_model_len)
    _check_ids("stop_token_ids", asked.get("stop_token_ids", []), 4096)
    stops = asked.get("stop", [])
    if len(stops) > 64 or not all(isinstance(stop, str) and 0 < len(stop) <= 1024 for stop in stops):
        raise Refused(400, "stop must hold at most 64 strings of 1 to 1024 characters", "stop")
    if not asked.get("prompt_token_ids"):
        raise Refused(400, "prompt_token_ids must hold at least one token id", "prompt_token_ids")
    if len(asked.get("request_id", "")) > 256 or not asked.get("request_id", "").isprintable():
        raise Refused(400, "request_id must be printable and at most 256 characters long", "request_id")
    if asked.get("max_tokens") == 0 and "prompt_logprobs" not in asked:
        raise Refused(400, "max_tokens 0 is for scoring: it needs prompt_logprobs", "max_tokens")
    strange = sorted(set(asked.get("structured_outputs", {})) - set(_STRUCTURED))
    if strange:
        raise Refused(400, f"structured_outputs has no {strange[0][:100]!r}", "structured_outputs")
    return asked


def _check_text(name: str, value: Any) -> None:
    """Half a surrogate pair is no text: it would break on its way to the engine, with the request half begun."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise Refused(400, f"{name} holds what is no text in UTF-8, or is nested too deeply", name) from None


def _check_ids(name: str, ids: list[Any], most: int) -> None:
    if len(ids) > most:
        raise Refused(400, f"{name} holds {len(ids)} ids; at most {most} are taken", name)
    if not all(type(identifier) is int and 0 <= identifier < 2**31 for identifier in ids):
        raise Refused(400, f"{name} must hold token ids", name)


def sampling_params(asked: Mapping[str, Any], model_config: Any) -> Any:
    """vLLM's SamplingParams. What the request leaves open is the server's default, as on its own routes.

    Raises what vLLM raises for a value that it does not take.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    defaults: dict[str, Any] = model_config.get_diff_sampling_param()
    values = {name: value for name, value in asked.items() if name not in _OURS}
    for name in _SERVER_DEFAULTS:
        if name not in values and defaults.get(name) is not None:
            values[name] = defaults[name]
    stops = [*asked.get("stop_token_ids", ()), *(defaults.get("stop_token_ids") or ())]
    structured = asked.get("structured_outputs")
    return SamplingParams(
        **values,
        max_tokens=_max_tokens(asked, model_config, defaults),
        stop_token_ids=stops or None,
        structured_outputs=None if structured is None else StructuredOutputsParams(**structured),
        logprobs=asked.get("top_logprobs"),
        prompt_logprobs=asked.get("prompt_logprobs"),
        flat_logprobs=True,
        detokenize=bool(asked.get("stop")),  # only to look for these: else the text is made once, at the end
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def _max_tokens(asked: Mapping[str, Any], model_config: Any, defaults: Mapping[str, Any]) -> int:
    """The least of what is asked for, what the context has room for, and what the server allows."""
    room = model_config.max_model_len - len(asked["prompt_token_ids"])
    if model_config.generation_config in ("auto", "vllm"):
        allowed = (model_config.override_generation_config or {}).get("max_new_tokens")
    else:
        allowed = defaults.get("max_tokens")
    wanted = asked.get("max_tokens", defaults.get("max_tokens"))
    found: int = min(value for value in (room, allowed, wanted) if value is not None)
    return max(1, found)  # no room: vLLM says so; 0 is for scoring, where the one token is thrown away


async def run(engine: Any, asked: Mapping[str, Any], request_id: str) -> Any:
    """The engine's final output. Cancelling it aborts the request in the engine."""
    from vllm.inputs import TokensPrompt

    prompt: Any = TokensPrompt(prompt_token_ids=asked["prompt_token_ids"])
    try:
        from vllm.inputs import tokens_input

        prompt = tokens_input(asked["prompt_token_ids"])
    except ImportError:  # before 0.20: the engine renders raw prompts itself
        pass
    params = sampling_params(asked, engine.model_config)
    final = None
    async for output in engine.generate(prompt, params, request_id, priority=asked.get("priority", 0)):
        final = output
    if final is None or not final.finished:
        raise Refused(500, "the engine ended the request without an answer")
    return final


def answer(
    final: Any, asked: Mapping[str, Any], decode: Callable[[list[int]], str]
) -> tuple[list[Choice], Rows | None]:
    """(choices, rows of the prompt) of an engine's output."""
    k = asked.get("top_logprobs")
    choices = []
    for output in final.outputs if asked.get("max_tokens") != 0 else ():
        ids = list(output.token_ids)
        text = ""
        if asked.get("text", True):
            text = output.text if asked.get("stop") else decode(ids)
        rows = rows_of(ids, output.logprobs, k)
        choices.append(Choice(output.index, rows, text, output.finish_reason, output.stop_reason))
    prompt = None
    if "prompt_logprobs" in asked:
        ids = asked["prompt_token_ids"]
        start = max(1, asked.get("prompt_logprobs_start", 1))  # nothing predicts the first token
        prompt = rows_of(ids[start:], final.prompt_logprobs[start:], asked["prompt_logprobs"])
    return choices, prompt
