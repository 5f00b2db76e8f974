"""Driver `openai`: any API in the shape of OpenAI's chat completions. What providers do differently is data."""

import asyncio
from dataclasses import replace
from typing import Any

import orjson

from app.domain.columns import TokenColumns
from app.domain.fingerprints import sha256
from app.domain.sampling import SamplingParameters
from app.domain.teacher import TeacherSpec
from app.errors import InvalidInput, Unsupported
from app.teachers.addresses import TeacherAccess, check_address
from app.teachers.base import Capabilities, GenerateRequest, Generation, Turn
from app.teachers.chat_answers import generations, usage_of
from app.teachers.elicit import Piece, elicit, instructed
from app.teachers.probe import probe
from app.teachers.providers import PROVIDERS, Provider
from app.teachers.replies import json_of
from app.teachers.secrets import resolve
from app.teachers.transport import ApiTransport, LocalTransport, Transport

_DEFAULT_ELICITED = 4096  # tokens of trace and answer together, where the job bounds neither


class OpenAITeacher:
    """See `app.teachers.base.Teacher`."""

    def __init__(self, spec: TeacherSpec, access: TeacherAccess) -> None:
        """Raises `InvalidInput` for an unknown provider, `Unsupported` for an address that may not be called."""
        unknown = sorted(set(spec.options) - {"provider"})
        if unknown:
            raise InvalidInput(f"the driver `openai` takes the option `provider`, not {', '.join(unknown)}")
        name = str(spec.options.get("provider", "generic"))
        if name not in PROVIDERS:
            raise InvalidInput(f"there is no provider {name!r}; there are: {', '.join(sorted(PROVIDERS))}")
        self._model = spec.model
        self._provider = PROVIDERS[name]
        base_url = spec.base_url or self._provider.base_url
        check_address(base_url, access)
        secret = resolve(spec.secret_ref)
        headers = {} if secret is None else {"Authorization": f"Bearer {secret.get_secret_value()}"}
        client = ApiTransport if self._provider.hosted else LocalTransport
        self._http: Transport = client(base_url or "", access, headers)
        self._root: Transport = client((base_url or "").rstrip("/").removesuffix("/v1"), access, headers)

    async def capabilities(self) -> Capabilities:
        return await probe(self._http, self._root, self._model, self._provider)

    async def generate(self, request: GenerateRequest) -> list[Generation]:
        if request.elicit is not None and self._provider.continues_assistant:
            return list(await asyncio.gather(*(self._elicited(request, i) for i in request.sample_indices)))
        body = orjson.dumps(chat_body(self._model, self._provider, request))
        reply = await self._http.post("/chat/completions", body, request.deadline_s)
        return generations(json_of(reply), request, sha256(body), sha256(reply.body))

    async def score(self, prompt_ids: list[int], token_ids: list[int], top_logprobs: int) -> TokenColumns:
        raise Unsupported("chat completions cannot score given tokens: use the driver `vllm`")

    async def aclose(self) -> None:
        await self._http.aclose()
        await self._root.aclose()

    async def _elicited(self, request: GenerateRequest, index: int) -> Generation:
        """A turn that is begun for the teacher. Its token ids are not known, so it has no token columns."""
        assert request.elicit is not None
        elicitation = request.elicit
        one = replace(request, sample_indices=(index,), top_logprobs=0, elicit=None)
        messages = instructed(request.messages, elicitation)
        most = one.sampling.max_tokens or _DEFAULT_ELICITED

        async def go_on(text: str, ids: list[int] | None, limit: int) -> Piece:
            turns: tuple[Turn, ...] = (*messages, {"role": "assistant", "content": text})
            sampling = one.sampling.model_copy(update={"max_tokens": limit})
            body = orjson.dumps(
                chat_body(self._model, self._provider, replace(one, messages=turns, sampling=sampling))
            )
            reply = await self._http.post("/chat/completions", body, request.deadline_s)
            answer = json_of(reply)
            made = generations(answer, one, sha256(body), sha256(reply.body))[0]
            usage = usage_of(answer.get("usage"), 1)
            return Piece(
                text=made.answer
                if made.reasoning is None
                else f"{made.reasoning}\n</think>\n\n{made.answer}",
                finish_reason=made.finish_reason,
                tokens=None,
                usage=usage,
                request_hash=made.request_hash,
                response_hash=made.response_hash,
                engine=made.engine,
            )

        return await elicit(index, go_on, elicitation, most, None)


def chat_body(model: str, provider: Provider, request: GenerateRequest) -> dict[str, Any]:
    """The request, JSON-ready."""
    sampling = request.sampling.for_sample(request.sample_indices[0])
    messages = request.messages if request.elicit is None else instructed(request.messages, request.elicit)
    body: dict[str, Any] = {"model": model, "messages": list(messages)}
    _put_sampling(body, sampling, provider, request)
    if len(request.sample_indices) > 1:
        body["n"] = len(request.sample_indices)
    if request.top_logprobs:
        wanted = request.top_logprobs + 1 if provider.sampled_eats_candidate else request.top_logprobs
        cap = provider.max_top_logprobs
        body |= {"logprobs": True, "top_logprobs": wanted if cap is None else min(cap, wanted)}
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
        for name in ("top_k", "min_p", "repetition_penalty", "chat_template_kwargs", "thinking_token_budget"):
            given.pop(name, None)
    body.update(given)
