"""What an OpenAI-compatible server can do, found by asking it. Documented caps are only an upper bound."""

from dataclasses import dataclass
from typing import Any

import orjson

from app.domain.columns import TokenColumns
from app.errors import (
    MalformedAnswer,
    PermanentTeacherError,
    RateLimited,
    TeacherError,
    TeacherRefusedKey,
    Unsupported,
)
from app.teachers.base import Capabilities
from app.teachers.chat_answers import columns_of_choice
from app.teachers.providers import Provider
from app.teachers.replies import json_of
from app.teachers.transport import Transport

_SECONDS = 60.0
_TRIED_CAPS = (1024, 256, 128, 50, 20, 10, 8, 5, 1)
_QUESTION = "Count from one to ten, in words."


@dataclass(frozen=True, slots=True)
class _Served:
    engine: str | None
    model: str
    max_model_len: int | None
    known: bool  # the server lists its models, and this one is among them (or it lists none)
    others: tuple[str, ...]


async def probe(http: Transport, root: Transport, model: str, provider: Provider) -> Capabilities:
    """Ask for version, models, and one short answer with logprobs. `root`: the same server without `/v1`.

    A server that cannot be asked is `reachable=False` with the reason; one that answers without usable logprobs
    is reachable with `max_top_logprobs=0` and the reason.
    """
    try:
        served = await _served(http, root, model)
        if not served.known:
            named = ", ".join(served.others[:10])
            return Capabilities(
                reachable=False,
                engine=served.engine,
                problems=(f"the server has no model {model!r}; it has: {named or 'none'}",),
            )
        cap, choice, answer, problems = await _logprobs(http, model, provider)
    except TeacherError as error:
        return Capabilities(reachable=False, problems=(error.detail,))
    message = choice.get("message") or {}
    fingerprint = answer.get("system_fingerprint")
    return Capabilities(
        reachable=True,
        engine=served.engine
        or (fingerprint if isinstance(fingerprint, str) and not provider.hosted else None),
        served_model=str(answer.get("model") or served.model),
        max_model_len=served.max_model_len,
        max_top_logprobs=cap,
        token_ids=isinstance(choice.get("token_ids"), list) or cap > 0,
        prompt_token_ids=isinstance(answer.get("prompt_token_ids"), list),
        reasoning_field=next(
            (name for name in ("reasoning", "reasoning_content") if message.get(name)), None
        ),
        native_n=provider.takes_n,
        seed=provider.takes_seed,
        problems=tuple(problems),
    )


async def _served(http: Transport, root: Transport, model: str) -> _Served:
    listed: list[dict[str, Any]] = []
    try:
        found = json_of(await http.get("/models", _SECONDS))
        data = found.get("data") if isinstance(found, dict) else None
        listed = [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []
    except (PermanentTeacherError, MalformedAnswer) as error:
        if isinstance(error, TeacherRefusedKey):
            raise
    names = tuple(str(one.get("id")) for one in listed)
    mine = next((one for one in listed if one.get("id") == model), {})
    owner, length = mine.get("owned_by"), mine.get("max_model_len")
    return _Served(
        engine=await _engine(root, str(owner) if owner else None),
        model=model,
        max_model_len=length if isinstance(length, int) else None,
        known=not names or bool(mine) or not any(names),
        others=names,
    )


async def _engine(root: Transport, owner: str | None) -> str | None:
    """`vllm 0.32.0` and the like; None where the server tells no version (a hosted API)."""
    try:
        told = json_of(await root.get("/version", _SECONDS))
    except TeacherError:
        return None
    version = told.get("version") if isinstance(told, dict) else None
    return f"{owner or 'server'} {version}" if isinstance(version, str) else None


async def _logprobs(
    http: Transport, model: str, provider: Provider
) -> tuple[int, dict[str, Any], dict[str, Any], list[str]]:
    """(usable candidates a position, choice, answer, problems)."""
    problems: list[str] = []
    refused: PermanentTeacherError | None = None
    for cap in _TRIED_CAPS:
        if provider.max_top_logprobs is not None and cap > provider.max_top_logprobs:
            continue
        try:
            answer, choice = await _ask(http, model, provider, cap)
        except (TeacherRefusedKey, RateLimited):
            raise
        except PermanentTeacherError as error:
            refused = error
            continue
        try:
            return _usable(choice, cap, provider), choice, answer, problems
        except (Unsupported, MalformedAnswer) as error:
            problems.append(error.detail)
            return 0, choice, answer, problems
    if refused is not None:
        problems.append(f"the teacher gives no logprobs: {refused.detail}")
    answer, choice = await _ask(http, model, provider, 0)
    return 0, choice, answer, problems


async def _ask(
    http: Transport, model: str, provider: Provider, cap: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": _QUESTION}],
        provider.max_tokens_field: 8,
    }
    if cap:
        body |= {"logprobs": True, "top_logprobs": cap}
    if provider.token_id_fields:
        body |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
    answer = json_of(await http.post("/chat/completions", orjson.dumps(body), _SECONDS))
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedAnswer("the teacher's answer has no `choices`")
    return answer, choices[0]


def _usable(choice: dict[str, Any], cap: int, provider: Provider) -> int:
    """How many candidates can be kept. Raises `Unsupported` with the reason for refusing soft labels."""
    columns = columns_of_choice(choice, cap, None)
    if columns is None:
        raise Unsupported(
            "the teacher tells tokens as text, not by their ids: text does not name a token, so no soft labels"
        )
    if not len(columns):
        raise Unsupported("the teacher answered a plain question with no token: its logprobs were not seen")
    if _degenerate(columns):
        raise Unsupported(
            "the teacher returns only 0 and −9999 as logprobs: these are no distribution, so no soft labels"
        )
    # Servers of vLLM's kind return the first k of {sampled, top 1 … top k}: the last candidate may be lost.
    most = cap - 1 if provider.sampled_eats_candidate else cap
    return min(most, _widest(choice))


def _degenerate(columns: TokenColumns) -> bool:
    finite = columns.topk_logprobs[columns.topk_logprobs > -9000.0]
    return bool((finite == 0.0).all()) and bool((columns.sampled_logprob == 0.0).all())


def _widest(choice: dict[str, Any]) -> int:
    """Some servers cut a larger request to their own cap without a word."""
    return max(len(row["top_logprobs"]) for row in choice["logprobs"]["content"])
