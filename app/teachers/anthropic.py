"""Driver `anthropic`: Claude through Anthropic's own Messages API. Thinking blocks are kept with their signatures."""

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
from app.teachers.anthropic_messages import NO_LOGPROBS, REFUSES, SAMPLING, generation, message_body
from app.teachers.base import Capabilities, GenerateRequest, Generation
from app.teachers.batches import BATCH_OPTION
from app.teachers.probe import QUESTION
from app.teachers.rate_headers import RatesTold
from app.teachers.replies import answer_of, json_of
from app.teachers.secrets import resolve
from app.teachers.served import check_model
from app.teachers.transport import ApiTransport

BASE_URL = "https://api.anthropic.com/v1"
VERSION = "2023-06-01"
_SECONDS = 60.0


class AnthropicTeacher:
    """See `app.teachers.base.Teacher`. Option `thinking`: the request's `thinking`, as the API takes it."""

    def __init__(self, spec: TeacherSpec, access: TeacherAccess) -> None:
        unknown = sorted(set(spec.options) - {"thinking", BATCH_OPTION})
        if unknown:
            raise InvalidInput(
                f"the driver `anthropic` takes the options `thinking` and `{BATCH_OPTION}`, not {', '.join(unknown)}"
            )
        thinking = spec.options.get("thinking")
        if thinking is not None and not isinstance(thinking, dict):
            raise InvalidInput('`thinking` is an object, for example {"type": "adaptive"}')
        self._model, self._thinking = spec.model, thinking
        base_url = (spec.base_url or BASE_URL).rstrip("/")
        base_url = base_url if base_url.endswith("/v1") else f"{base_url}/v1"
        check_address(base_url, access)
        secret = resolve(spec.secret_ref)
        headers = {"anthropic-version": VERSION}
        if secret is not None:
            headers["x-api-key"] = secret.get_secret_value()
        self.http = ApiTransport(base_url, access, headers)
        self._refused: frozenset[str] = frozenset()
        self._served: str | None = None

    async def capabilities(self) -> Capabilities:
        try:
            model = await self._described()
            answer = await self._asked()
            batch_api = await self._batch_api()
        except TeacherError as error:
            return Capabilities(reachable=False, problems=(error.detail,))
        self._served = str(answer.get("model") or self._model)
        length = model.get("max_input_tokens")
        blocks = answer.get("content")
        thought = isinstance(blocks, list) and any(
            isinstance(block, dict) and block.get("type") == "thinking" for block in blocks
        )
        return Capabilities(
            reachable=True,
            hosted=True,
            engine=None,
            served_model=self._served,
            max_model_len=length if isinstance(length, int) else None,
            reasoning_field="thinking" if thought else None,
            batch_api=batch_api,
            refuses=tuple(sorted(REFUSES | self._refused)),
            problems=(NO_LOGPROBS,),
        )

    @property
    def rates_told(self) -> RatesTold | None:
        return self.http.rates_told

    async def generate(self, request: GenerateRequest) -> list[Generation]:
        return list(await asyncio.gather(*(self._one(request, index) for index in request.sample_indices)))

    async def _one(self, request: GenerateRequest, index: int) -> Generation:
        body, unsent = self.body(request)
        reply = await self.http.post("/messages", body, request.deadline_s)
        answer = answer_of(reply)
        self.check_model(answer)
        return generation(answer, request, index, sha256(body), sha256(reply.body), unsent)

    def check_model(self, answer: Any) -> None:
        """Raises `IdentityChanged` for an answer of another model than the probe's."""
        check_model(answer.get("model") if isinstance(answer, dict) else None, self._served)

    def body(self, request: GenerateRequest) -> tuple[bytes, tuple[str, ...]]:
        """(the request as it is sent, names of the sampling parameters that it leaves out)."""
        body, unsent = message_body(self._model, request, self._thinking, self._refused)
        return orjson.dumps(body), unsent

    async def score(self, prompt_ids: list[int], token_ids: list[int], top_logprobs: int) -> TokenColumns:
        raise Unsupported(NO_LOGPROBS)

    async def aclose(self) -> None:
        await self.http.aclose()

    # -- the probe -------------------------------------------------------------------------------------------------

    async def _described(self) -> dict[str, Any]:
        """What the API tells of the model; relays of the API may tell nothing."""
        try:
            found = json_of(await self.http.get(f"/models/{quote(self._model, safe='')}", _SECONDS))
        except (PermanentTeacherError, MalformedAnswer):
            return {}
        return found if isinstance(found, dict) else {}

    async def _asked(self) -> dict[str, Any]:
        """One answer. Newer models refuse all sampling parameters: then it is asked again without, and noted."""
        if self._thinking is not None or self._refused:
            return await self._ask({})
        try:
            return await self._ask({"temperature": 0.7})
        except TeacherRefusedKey:
            raise
        except PermanentTeacherError:
            answer = await self._ask({})
        self._refused = frozenset(SAMPLING)
        return answer

    async def _ask(self, sampling: dict[str, Any]) -> dict[str, Any]:
        request = GenerateRequest(
            messages=({"role": "user", "content": QUESTION},),
            sampling=SamplingParameters(temperature=None, max_tokens=1024 if self._thinking else 16),
        )
        body, _ = message_body(self._model, request, self._thinking)
        answer = json_of(await self.http.post("/messages", orjson.dumps(body | sampling), _SECONDS))
        if not isinstance(answer, dict) or not isinstance(answer.get("content"), list):
            raise MalformedAnswer("the answer has no `content` blocks")
        return answer

    async def _batch_api(self) -> bool:
        try:
            json_of(await self.http.get("/messages/batches?limit=1", _SECONDS))
        except (PermanentTeacherError, MalformedAnswer):
            return False
        return True
