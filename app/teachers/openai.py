"""Driver `openai`: any API in the shape of OpenAI's chat completions. What providers do differently is data."""

import asyncio
from dataclasses import replace
from typing import Any

from app.domain.columns import TokenColumns
from app.domain.fingerprints import sha256
from app.domain.teacher import TeacherSpec
from app.errors import InvalidInput, MalformedAnswer, Unsupported
from app.teachers.addresses import TeacherAccess, check_address
from app.teachers.base import Capabilities, GenerateRequest, Generation, Turn
from app.teachers.batches import BATCH_OPTION
from app.teachers.chat_answers import generations, usage_of
from app.teachers.chat_requests import chat_body, encoded
from app.teachers.elicit import Piece, elicit, instructed
from app.teachers.pressure import Pressure, read_pressure
from app.teachers.probe import Finding, Probe
from app.teachers.providers import PROVIDERS
from app.teachers.rate_headers import RatesTold
from app.teachers.replies import answer_of, json_of
from app.teachers.secrets import resolve
from app.teachers.served import Fingerprints, check_model
from app.teachers.transport import ApiTransport, LocalTransport, Transport

_DEFAULT_ELICITED = 4096  # tokens of trace and answer together, where the job bounds neither


class OpenAITeacher:
    """See `app.teachers.base.Teacher`."""

    def __init__(self, spec: TeacherSpec, access: TeacherAccess) -> None:
        """Raises `InvalidInput` for an unknown provider, `Unsupported` for an address that may not be called."""
        unknown = sorted(set(spec.options) - {"provider", BATCH_OPTION})
        if unknown:
            raise InvalidInput(
                f"the driver `openai` takes the options `provider` and `{BATCH_OPTION}`, not {', '.join(unknown)}"
            )
        name = str(spec.options.get("provider", "generic"))
        if name not in PROVIDERS:
            raise InvalidInput(f"there is no provider {name!r}; there are: {', '.join(sorted(PROVIDERS))}")
        self._model = spec.model
        self.provider = PROVIDERS[name]
        base_url = self._base_url = spec.base_url or self.provider.base_url
        check_address(base_url, access)
        secret = resolve(spec.secret_ref)
        headers = self._headers = (
            {} if secret is None else {"Authorization": f"Bearer {secret.get_secret_value()}"}
        )
        client = ApiTransport if self.provider.hosted else LocalTransport
        self._http: Transport = client(base_url or "", access, headers)
        self._root: Transport = client((base_url or "").rstrip("/").removesuffix("/v1"), access, headers)
        self._access = access
        self._found: Finding | None = None
        self._fingerprints = Fingerprints(self._looked)

    def api(self) -> ApiTransport:
        """A connection of its own, for files."""
        return ApiTransport(self._base_url or "", self._access, self._headers)

    async def capabilities(self) -> Capabilities:
        found = await self._probed()
        if found.capabilities.reachable:
            self._found = found
            # Hosted ones change with every deployment, and nothing tells what that means.
            self._fingerprints.start(None if self.provider.hosted else found.fingerprint)
        return replace(found.capabilities, hosted=self.provider.hosted)

    async def _probed(self) -> Finding:
        return await Probe(self._http, self._root, self._model, self.provider, self._found).run()

    async def _looked(self) -> Capabilities:
        return (await self._probed()).capabilities

    async def pressure(self) -> Pressure | None:
        return None if self.provider.hosted else await read_pressure(self._root)

    @property
    def rates_told(self) -> RatesTold | None:
        return self._http.rates_told if isinstance(self._http, ApiTransport) else None

    async def generate(self, request: GenerateRequest) -> list[Generation]:
        # A trace that is drawn out turn by turn has no token columns; where they are wanted, asking must do.
        if request.elicit is not None and self.provider.continues_assistant and not request.top_logprobs:
            return list(await asyncio.gather(*(self._elicited(request, i) for i in request.sample_indices)))
        body, unsent = self.body(request)
        answer, response_hash = await self._asked(body, request.deadline_s)
        return generations(answer, request, sha256(body), response_hash, unsent)

    async def _asked(self, body: bytes, seconds: float) -> tuple[Any, bytes]:
        """(the answer of whoever was probed, its hash)."""
        reply = await self._http.post("/chat/completions", body, seconds)
        answer = json_of(reply) if self.provider.refuses_by_404 else answer_of(reply)
        self.check_model(answer)
        if self._found is not None and isinstance(answer, dict):
            await self._fingerprints.check(answer.get("system_fingerprint"), self._found.capabilities)
        return answer, sha256(reply.body)

    def check_model(self, answer: Any) -> None:
        """Raises `IdentityChanged` for an answer of another model than the probe's."""
        if self._found is not None and isinstance(answer, dict):
            check_model(answer.get("model"), self._found.capabilities.served_model)

    def body(self, request: GenerateRequest) -> tuple[bytes, tuple[str, ...]]:
        """(the request as it is sent, names of the sampling parameters that it leaves out)."""
        refused = frozenset() if self._found is None else self._found.refused
        body, unsent = chat_body(self._model, self.provider, request, refused)
        return encoded(body), unsent

    async def score(self, prompt_ids: list[int], token_ids: list[int], top_logprobs: int) -> TokenColumns:
        raise Unsupported("chat completions cannot score given tokens: use the driver `vllm`")

    async def aclose(self) -> None:
        await self._http.aclose()
        await self._root.aclose()

    async def _elicited(self, request: GenerateRequest, index: int) -> Generation:
        """A turn that is begun for the teacher. Its token ids are not known, so it has no token columns."""
        assert request.elicit is not None
        elicitation = request.elicit
        one = replace(request, sample_indices=(index,), elicit=None)
        messages = instructed(request.messages, elicitation)
        most = one.sampling.max_tokens or _DEFAULT_ELICITED
        left_out: tuple[str, ...] = ()

        async def go_on(text: str, ids: list[int] | None, limit: int) -> Piece:
            nonlocal left_out
            turns: tuple[Turn, ...] = (*messages, {"role": "assistant", "content": text})
            sampling = one.sampling.model_copy(update={"max_tokens": limit})
            body, left_out = self.body(replace(one, messages=turns, sampling=sampling))
            answer, response_hash = await self._asked(body, request.deadline_s)
            found = generations(answer, one, sha256(body), response_hash)
            if not found:
                raise MalformedAnswer("the answer has no choice")
            made = found[0]
            return Piece(
                text=made.answer
                if made.reasoning is None
                else f"{made.reasoning}\n</think>\n\n{made.answer}",
                finish_reason=made.finish_reason,
                tokens=None,
                usage=usage_of(answer.get("usage"), 1),
                request_hash=made.request_hash,
                response_hash=made.response_hash,
                engine=made.engine,
            )

        made = await elicit(index, go_on, elicitation, most, None)
        return replace(made, provider_extra={"not_sent": list(left_out)} if left_out else None)
