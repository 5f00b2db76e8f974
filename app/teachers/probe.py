"""What an OpenAI-compatible server can do, found by asking it. Documented caps are only an upper bound."""

from dataclasses import dataclass
from typing import Any

import orjson

from app.domain.fingerprints import sha256
from app.domain.reasoning import OPEN, reasoning_of
from app.errors import (
    MalformedAnswer,
    PermanentTeacherError,
    TeacherError,
    TeacherRefusedKey,
    Unsupported,
)
from app.teachers.base import Capabilities
from app.teachers.chat_answers import DEGENERATE, TEXT_ONLY, columns_of_choice, is_degenerate, usage_of
from app.teachers.chat_requests import logprob_fields
from app.teachers.providers import Provider
from app.teachers.replies import json_of, refused_parameter
from app.teachers.transport import Transport

QUESTION = "Count from one to ten, in words."
_SECONDS = 60.0
_TRIED_CAPS = (1024, 256, 128, 50, 20, 10, 8, 5, 2, 1)
_LEAST = 1
_MAX_TOKENS = 16
_REASONING_TOKENS = 512  # a model that reasons before it answers needs room to show it
# What every job asks for unless it is told otherwise: models that refuse it are found here, not by failing rows.
_USUAL = {"temperature": 0.7}
_LENGTHS = ("max_model_len", "context_length", "context_window", "max_context_length")


@dataclass(frozen=True, slots=True)
class Finding:
    """What a probe found out. `cap` and `refused` make the next one shorter."""

    capabilities: Capabilities
    cap: int = 0
    refused: frozenset[str] = frozenset()
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class _Served:
    engine: str | None
    max_model_len: int | None
    chat_template_sha256: str | None
    others: tuple[str, ...]


class Probe:
    """One round of questions. `root` is the same server without `/v1`; `before` what an earlier round found."""

    def __init__(
        self, http: Transport, root: Transport, model: str, provider: Provider, before: Finding | None = None
    ) -> None:
        self._http, self._root = http, root
        self._model, self._provider = model, provider
        self._before = before
        self._refused: set[str] = set() if before is None else set(before.refused)

    async def run(self) -> Finding:
        """Ask for version, models, and one short answer with logprobs.

        A server that cannot be asked is `reachable=False` with the reason; one that answers without usable logprobs is
        reachable with `max_top_logprobs=0` and the reason.
        """
        served: _Served | None = None
        try:
            served = await self._served()
            cap, choice, answer, problems = await self._logprobs()
            trace, reasoned = await self._reasoning(choice, answer)
            batch_api = await self._batch_api()
        except TeacherError as error:
            told = [error.detail]
            if served is not None and served.others and self._model not in served.others:
                named = ", ".join(served.others[:10])
                told.append(f"the server has no model {self._model!r}; it has: {named}")
            return Finding(Capabilities(reachable=False, problems=tuple(reversed(told))))
        if reasoned and trace is None:
            problems.append("the model reasons, and its API does not tell what: there will be no traces")
        provider, fingerprint = self._provider, answer.get("system_fingerprint")
        engine = served.engine
        if engine is None and isinstance(fingerprint, str) and not provider.hosted:
            engine = fingerprint
        found = Capabilities(
            reachable=True,
            engine=engine,
            served_model=str(answer.get("model") or self._model),
            max_model_len=served.max_model_len,
            max_top_logprobs=cap,
            token_ids=isinstance(choice.get("token_ids", choice.get("response_token_ids")), list) or cap > 0,
            prompt_token_ids=isinstance(answer.get("prompt_token_ids", choice.get("prompt_token_ids")), list),
            reasoning_field=trace,
            native_n=provider.takes_n,
            seed=provider.seed_field is not None and "seed" not in self._refused,
            batch_api=batch_api,
            chat_template_sha256=served.chat_template_sha256,
            refuses=tuple(sorted(self._refused | provider.refuses)),
            problems=tuple(problems),
        )
        seen = fingerprint if isinstance(fingerprint, str) else None
        return Finding(found, cap, frozenset(self._refused), seen)

    # -- the server ------------------------------------------------------------------------------------------------

    async def _served(self) -> _Served:
        listed: list[dict[str, Any]] = []
        try:
            found = json_of(await self._http.get("/models", _SECONDS))
            data = found.get("data") if isinstance(found, dict) else found
            listed = [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []
        except (PermanentTeacherError, MalformedAnswer) as error:
            if isinstance(error, TeacherRefusedKey):
                raise
        mine = next((one for one in listed if one.get("id") == self._model), {})
        lengths = [mine[name] for name in _LENGTHS if isinstance(mine.get(name), int)]
        engine, template = await self._engine(mine)
        names = () if self._provider.hosted else tuple(str(one["id"]) for one in listed if one.get("id"))
        return _Served(engine, lengths[0] if lengths else None, template, names)

    async def _engine(self, model: dict[str, Any]) -> tuple[str | None, str | None]:
        """(`vllm 0.32.0` and the like, hash of the chat template); None where the server does not tell."""
        if self._provider.version is None:
            return None, None
        path, name, engine = self._provider.version
        try:
            told = json_of(await self._root.get(path, _SECONDS))
        except TeacherError:
            return None, None
        if not isinstance(told, dict):
            return None, None
        version, template = told.get(name), told.get("chat_template")
        if self._provider.name == "generic":
            engine = str(model.get("owned_by") or engine)
        return (
            f"{engine} {version}" if isinstance(version, str) else None,
            sha256(template.encode()).hex() if isinstance(template, str) else None,
        )

    async def _batch_api(self) -> bool:
        if self._provider.batch is None:
            return False
        try:
            json_of(await self._http.get("/batches?limit=1", _SECONDS))
        except (PermanentTeacherError, MalformedAnswer):
            return False
        return True

    # -- logprobs --------------------------------------------------------------------------------------------------

    async def _logprobs(self) -> tuple[int, dict[str, Any], dict[str, Any], list[str]]:
        """(usable candidates a position, choice, answer, problems)."""
        refused: TeacherError | None = None
        caps = self._caps()
        for position, cap in enumerate(caps):
            found = await self._asked_for(cap)
            if not isinstance(found, TeacherError):
                return found
            refused = found
            # Whether it is a matter of how many, or of logprobs at all, one candidate tells.
            if position == 0 and isinstance(await self._asked_for(_LEAST), TeacherError):
                break
        answer, choice = await self._ask(0)
        problems = [f"the teacher gives no logprobs: {refused.detail}"] if refused is not None else []
        if self._provider.logprobs == "none":
            problems = [f"{self._provider.name} gives no logprobs"]
        return 0, choice, answer, problems

    async def _asked_for(
        self, cap: int
    ) -> tuple[int, dict[str, Any], dict[str, Any], list[str]] | TeacherError:
        """One answer with `cap` candidates a position; what came instead where the server does not give so many."""
        try:
            answer, choice = await self._ask(cap)
        except (PermanentTeacherError, MalformedAnswer) as error:
            # A 403 may mean the key, or that this model gives no logprobs; NaN is no JSON. Without logprobs it is
            # asked once more.
            return error
        try:
            return self._usable(choice, cap), choice, answer, []
        except (Unsupported, MalformedAnswer) as error:
            return 0, choice, answer, [error.detail]

    def _caps(self) -> list[int]:
        """How many candidates to ask for, the most first; none where it is known that there are none."""
        provider, before = self._provider, self._before
        if provider.logprobs == "none" or (before is not None and not before.cap):
            return []
        most = provider.max_top_logprobs
        caps = [cap for cap in _TRIED_CAPS if most is None or cap < most]
        if most is not None:
            caps.insert(0, most)
        if before is not None:
            caps.insert(0, before.cap + 1 if provider.sampled_eats_candidate else before.cap)
        return caps

    def _usable(self, choice: dict[str, Any], cap: int) -> int:
        """How many candidates can be kept. Raises `Unsupported` with the reason for refusing soft labels."""
        columns = columns_of_choice(choice, cap, None)
        if columns is None:
            raise Unsupported(TEXT_ONLY)
        if not len(columns):
            raise Unsupported(
                "the teacher answered a plain question with no token: its logprobs were not seen"
            )
        if is_degenerate(columns):
            raise Unsupported(DEGENERATE)
        # Servers of vLLM's kind return the first k of {sampled, top 1 … top k}: the last candidate may be lost.
        most = cap - 1 if self._provider.sampled_eats_candidate else cap
        # Some servers cut a larger request to their own cap without a word.
        return min(most, int((columns.topk_ids >= 0).sum(axis=1).max()))

    # -- one answer ------------------------------------------------------------------------------------------------

    async def _reasoning(self, choice: dict[str, Any], answer: dict[str, Any]) -> tuple[str | None, bool]:
        """(the name that traces go by, whether the model reasoned at all)."""
        found = _trace(choice)
        counted = usage_of(answer.get("usage"), 1).reasoning_tokens
        if found is not None or counted or choice.get("finish_reason") != "length":
            return found, found is not None or bool(counted)
        message = choice.get("message")
        if isinstance(message, dict) and message.get("content"):
            return None, False
        # Nothing but the limit was seen: ask once more, with room.
        answer, choice = await self._ask(0, _REASONING_TOKENS)
        found = _trace(choice)
        return found, found is not None or bool(usage_of(answer.get("usage"), 1).reasoning_tokens)

    async def _ask(self, cap: int, max_tokens: int = _MAX_TOKENS) -> tuple[dict[str, Any], dict[str, Any]]:
        """One answer. What it is refused for, parameter by parameter, is noted and left out from then on."""
        provider = self._provider
        while True:
            body: dict[str, Any] = {
                "model": self._model,
                "messages": [{"role": "user", "content": QUESTION}],
                provider.max_tokens_field: max_tokens,
                **provider.extra,
                **provider.ids,
                **{name: value for name, value in _USUAL.items() if name not in self._refused},
            }
            if cap:
                body |= logprob_fields(provider, cap)
                if provider.sampled_eats_candidate:
                    body["top_logprobs"] = cap
            reply = await self._http.post("/chat/completions", orjson.dumps(body), _SECONDS)
            refused = refused_parameter(reply)
            if refused not in _USUAL or refused in self._refused:
                break
            self._refused.add(refused)
        answer = json_of(reply)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise MalformedAnswer("the teacher's answer has no `choices`")
        return answer, choices[0]


def _trace(choice: dict[str, Any]) -> str | None:
    message = choice.get("message")
    if not isinstance(message, dict):
        return None
    for name in ("reasoning", "reasoning_content"):
        if isinstance(message.get(name), str) and message[name]:
            return name
    trace, text = reasoning_of(message)
    if trace is not None:
        return "content[].thinking"
    return OPEN if text.lstrip().startswith(OPEN) else None
