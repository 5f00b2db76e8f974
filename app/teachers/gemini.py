"""Driver `gemini`: Google's Gemini API through its own generateContent. Thought signatures are kept."""

import asyncio
from typing import Any
from urllib.parse import quote

import orjson

from app.domain.columns import TokenColumns
from app.domain.fingerprints import sha256
from app.domain.sampling import SamplingParameters
from app.domain.teacher import TeacherSpec
from app.errors import (
    InvalidInput,
    MalformedAnswer,
    PermanentTeacherError,
    TeacherError,
    TeacherRefusedKey,
    Unsupported,
)
from app.teachers.addresses import TeacherAccess, check_address
from app.teachers.base import Capabilities, GenerateRequest, Generation
from app.teachers.batches import BATCH_OPTION
from app.teachers.gemini_content import MAX_TOP_LOGPROBS, REFUSES, content_body, generation
from app.teachers.probe import QUESTION
from app.teachers.replies import answer_of, json_of
from app.teachers.secrets import resolve
from app.teachers.served import check_model
from app.teachers.transport import ApiTransport

BASE_URL = "https://generativelanguage.googleapis.com/v1beta"
_SECONDS = 60.0
_KINDS = {dict: "an object", list: "a list", int: "a number"}
_OPTIONS = {"thinking": dict, "safety_settings": list, BATCH_OPTION: int}


class GeminiTeacher:
    """See `app.teachers.base.Teacher`.

    Options: `thinking`, the request's `thinkingConfig` (default: thoughts are asked for, where the model has any);
    `safety_settings`, as the API takes them.
    """

    def __init__(self, spec: TeacherSpec, access: TeacherAccess) -> None:
        unknown = sorted(set(spec.options) - set(_OPTIONS))
        if unknown:
            raise InvalidInput(
                f"the driver `gemini` takes the options {', '.join(_OPTIONS)}, not {', '.join(unknown)}"
            )
        for name, kind in _OPTIONS.items():
            if not isinstance(spec.options.get(name, kind()), kind):
                raise InvalidInput(f"the option `{name}` is {_KINDS[kind]}")
        self._model = spec.model.removeprefix("models/")
        given: Any = spec.options.get("thinking")
        safety: Any = spec.options.get("safety_settings")
        self._given, self._safety = given, safety
        self._thinking: dict[str, Any] | None = given
        base_url = (spec.base_url or BASE_URL).rstrip("/")
        check_address(base_url, access)
        secret = resolve(spec.secret_ref)
        headers = {} if secret is None else {"x-goog-api-key": secret.get_secret_value()}
        self.http = ApiTransport(base_url, access, headers)
        self._served: str | None = None

    async def capabilities(self) -> Capabilities:
        try:
            model = await self._described()
            answer = await self._thoughts()
            made = generation(answer, _question(0), 0, b"", b"")
            cap, problems = await self._logprobs()
        except TeacherError as error:
            return Capabilities(reachable=False, problems=(error.detail,))
        self._served = made.engine or self._model
        length, methods = model.get("inputTokenLimit"), model.get("supportedGenerationMethods")
        return Capabilities(
            reachable=True,
            hosted=True,
            engine=None,
            served_model=self._served,
            max_model_len=length if isinstance(length, int) else None,
            max_top_logprobs=cap,
            token_ids=cap > 0,
            reasoning_field="thought" if made.reasoning else None,
            seed=True,
            batch_api=isinstance(methods, list) and "batchGenerateContent" in methods,
            refuses=tuple(sorted(REFUSES)),
            problems=tuple(problems),
        )

    async def generate(self, request: GenerateRequest) -> list[Generation]:
        return list(await asyncio.gather(*(self._one(request, index) for index in request.sample_indices)))

    async def _one(self, request: GenerateRequest, index: int) -> Generation:
        body, unsent = self.body(request, index)
        reply = await self.http.post(self.path("generateContent"), body, request.deadline_s)
        answer = answer_of(reply)
        self.check_model(answer)
        return generation(answer, request, index, sha256(body), sha256(reply.body), unsent)

    def check_model(self, answer: Any) -> None:
        """Raises `IdentityChanged` for an answer of another model than the probe's."""
        check_model(answer.get("modelVersion") if isinstance(answer, dict) else None, self._served)

    def body(self, request: GenerateRequest, index: int) -> tuple[bytes, tuple[str, ...]]:
        """(the request as it is sent, names of the sampling parameters that it leaves out)."""
        body, unsent = content_body(request, index, self._thinking, self._safety)
        return orjson.dumps(body), unsent

    async def score(self, prompt_ids: list[int], token_ids: list[int], top_logprobs: int) -> TokenColumns:
        raise Unsupported("Gemini's API cannot score given tokens")

    async def aclose(self) -> None:
        await self.http.aclose()

    def path(self, verb: str) -> str:
        return f"/models/{quote(self._model, safe='')}:{verb}"

    # -- the probe -------------------------------------------------------------------------------------------------

    async def _described(self) -> dict[str, Any]:
        found = json_of(await self.http.get(f"/models/{quote(self._model, safe='')}", _SECONDS))
        return found if isinstance(found, dict) else {}

    async def _thoughts(self) -> dict[str, Any]:
        """One answer, with thoughts where the model has any: those that have none refuse to be asked."""
        if self._given is None:
            self._thinking = {"includeThoughts": True}
            try:
                return await self._ask(0)
            except TeacherRefusedKey:
                raise
            except PermanentTeacherError:
                self._thinking = None
        return await self._ask(0)

    async def _logprobs(self) -> tuple[int, list[str]]:
        """(usable candidates a position, why not more)."""
        try:
            answer = await self._ask(MAX_TOP_LOGPROBS)
        except TeacherRefusedKey:
            raise
        except PermanentTeacherError as error:
            return 0, [f"the teacher gives no logprobs: {error.detail}"]
        try:
            made = generation(answer, _question(MAX_TOP_LOGPROBS), 0, b"", b"")
        except (Unsupported, MalformedAnswer) as error:
            return 0, [error.detail]
        if made.tokens is None or not len(made.tokens):
            return 0, ["the teacher answered a plain question with no token: its logprobs were not seen"]
        return int((made.tokens.topk_ids >= 0).sum(axis=1).max()), []

    async def _ask(self, k: int) -> dict[str, Any]:
        body, _ = content_body(_question(k), 0, self._thinking, self._safety)
        answer = json_of(await self.http.post(self.path("generateContent"), orjson.dumps(body), _SECONDS))
        if not isinstance(answer, dict):
            raise MalformedAnswer("the answer is no object")
        return answer


def _question(k: int) -> GenerateRequest:
    return GenerateRequest(
        messages=({"role": "user", "content": QUESTION},),
        sampling=SamplingParameters(temperature=None, max_tokens=1024),  # thoughts are counted in
        top_logprobs=k,
    )
