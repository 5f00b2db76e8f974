"""Driver `vllm`: a server of vLLM, by whichever of its routes fits what is asked.

Plain prompts go in as token ids and come back as columns: by the compact route of our own where the server has it, else
by `/v1/completions`. Tools, images and traces that only the server's own parser can tell apart go by
`/v1/chat/completions`.
"""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from pydantic import JsonValue

from app.domain.columns import TokenColumns, widened
from app.domain.fingerprints import sha256
from app.errors import (
    IdentityChanged,
    InvalidInput,
    MalformedAnswer,
    TeacherError,
    TeacherRefusedKey,
    TeacherUnavailable,
    TransientTeacherError,
    Unsupported,
)
from app.teachers.addresses import TeacherAccess, check_address
from app.teachers.base import Capabilities, GenerateRequest, Generation, TeacherSpec
from app.teachers.chat_answers import generations
from app.teachers.elicit import instructed
from app.teachers.inside_vllm.retort_route.wire import GENERATE
from app.teachers.pressure import Pressure, read_pressure
from app.teachers.replies import json_of
from app.teachers.secrets import resolve
from app.teachers.token_path import FAILED, TokenPath, flat, groups, priority_of, together
from app.teachers.transport import MAX_ANSWER, LocalTransport, Reply, Transport
from app.teachers.vllm_probe import Looker, Server, unreachable
from app.teachers.vllm_prompts import Prompts, template_arguments
from app.teachers.vllm_requests import (
    Route,
    TokenAnswer,
    TokenRequest,
    chat_body,
    compact_answers,
    compact_body,
    compact_score_body,
    compact_scores,
    completions_answers,
    completions_body,
    completions_score_body,
    completions_scores,
    samples_at_once,
)

_ROUTES = ("auto", "compact", "completions", "chat")
_SCORES_IN_FLIGHT = 4  # logprobs of a whole prompt take memory of the engine that nothing else accounts for
_SCORE_SECONDS = 600.0
_MOST_BYTES = MAX_ANSWER * 3 // 4


class VllmTeacher:
    """See `app.teachers.base.Teacher`."""

    def __init__(self, spec: TeacherSpec, access: TeacherAccess) -> None:
        """Raises `InvalidInput` for an unknown option, `Unsupported` for an address that may not be called."""
        unknown = sorted(set(spec.options) - {"route"})
        if unknown:
            raise InvalidInput(f"the driver `vllm` takes the option `route`, not {', '.join(unknown)}")
        wanted = spec.options.get("route", "auto")
        if wanted not in _ROUTES:
            raise InvalidInput(
                f"there is no route {wanted!r} of a vLLM server; there are: {', '.join(_ROUTES)}"
            )
        check_address(spec.base_url, access)
        root = (spec.base_url or "").rstrip("/").removesuffix("/v1")
        secret = resolve(spec.secret_ref)
        headers = {} if secret is None else {"Authorization": f"Bearer {secret.get_secret_value()}"}
        self._model = spec.model
        self._root: Transport = LocalTransport(root, access, headers)
        self._v1: Transport = LocalTransport(f"{root}/v1", access, headers)
        self._prompts = Prompts(self._root, spec.model)
        self._looker = Looker(self._v1, self._root, spec.model, str(wanted))
        self._server: Server | None = None
        self._identity: dict[str, JsonValue] | None = None  # as `capabilities` told it last
        self._fingerprints: set[str | None] = set()  # of configurations that have this identity
        self._others: dict[str, str] = {}  # of configurations that have another one, and what is said of them
        self._looking = asyncio.Lock()
        self._scoring = asyncio.Semaphore(_SCORES_IN_FLIGHT)

    async def capabilities(self) -> Capabilities:
        """Probed once, then only looked at, unless it is another server by now. Calls go to the one this told of."""
        async with self._looking:
            try:
                server = await self._found()
            except TeacherError as error:
                self._server = None
                return unreachable(error).capabilities
            self._identity = server.capabilities.identity()
            self._others.clear()
            return server.capabilities

    async def pressure(self) -> Pressure | None:
        return await read_pressure(self._root)

    async def generate(self, request: GenerateRequest) -> list[Generation]:
        server = await self._known()
        route = _route(server, request)
        if request.top_logprobs > server.capabilities.max_top_logprobs:
            raise Unsupported(
                f"{request.top_logprobs} top logprobs were asked for; this teacher gives at most "
                f"{server.capabilities.max_top_logprobs}"
            )
        if route == "chat":
            most = request.sampling.max_tokens or server.max_model_len
            grouped = groups(request, samples_at_once(route, _MOST_BYTES, most, request.top_logprobs))
            return flat(await together(self._chat(server, request, group) for group in grouped))
        messages = request.messages
        if request.elicit is not None:
            messages = instructed(messages, request.elicit)
        rendered = await self._prompts.render(messages, template_arguments(request.sampling))
        path = self._path(server, route)
        most = path.room(request, rendered)
        at_once = samples_at_once(route, _MOST_BYTES, most, request.top_logprobs)
        return await path.generate(request, rendered, at_once)

    async def score(self, prompt_ids: list[int], token_ids: list[int], top_logprobs: int) -> TokenColumns:
        """The teacher's own distribution along a given answer: row i is over the place of `token_ids[i]`."""
        server = await self._known()
        found = server.capabilities
        if not found.scoring:
            raise Unsupported("this teacher does not score given tokens")
        if top_logprobs > found.max_top_logprobs:
            raise Unsupported(
                f"{top_logprobs} top logprobs were asked for; this teacher gives at most {found.max_top_logprobs}"
            )
        if not prompt_ids or len(prompt_ids) + len(token_ids) >= server.max_model_len:
            raise Unsupported(
                f"{len(prompt_ids)} and {len(token_ids)} tokens were to be scored; this teacher takes at least one "
                f"of a prompt and fewer than {server.max_model_len} in all"
            )
        ids, start = [*prompt_ids, *token_ids], len(prompt_ids)
        prompt = np.array(prompt_ids, np.int32)
        async with self._scoring:
            if found.compact_route:
                body = compact_score_body(self._model, ids, start, top_logprobs)
                reply = await self._posted("compact", body, _SCORE_SECONDS)
                columns = compact_scores(reply, top_logprobs, prompt)
            else:
                body = completions_score_body(self._model, ids, top_logprobs)
                reply = await self._posted("completions", body, _SCORE_SECONDS)
                columns = completions_scores(reply, token_ids, start, top_logprobs)
        if columns is None or columns.token_ids.tolist() != token_ids:
            raise MalformedAnswer("other tokens were scored than were asked for")
        return replace(columns, prompt_ids=prompt)

    async def aclose(self) -> None:
        await self._root.aclose()
        await self._v1.aclose()

    # -- the server ------------------------------------------------------------------------------------------------

    async def _known(self) -> Server:
        """The server, probed if need be. Raises `IdentityChanged` where it is not the one that was told of."""
        server = self._server
        if server is None:
            async with self._looking:
                server = self._server or await self._found()
        self._same(server)
        return server

    async def _found(self) -> Server:
        """The server as it is now; the lock is held. A server that is of no use is no fault of a prompt."""
        before = self._server
        try:
            if before is not None:
                now = await self._looker.look()
                same = now.capabilities.compact_route == before.capabilities.compact_route
                if same and now.capabilities.identity() == before.capabilities.identity():
                    return before
            self._prompts = Prompts(self._root, self._model)
            self._server = await self._looker.probe()
        except (TransientTeacherError, TeacherRefusedKey):
            raise
        except TeacherError as error:
            raise TeacherUnavailable(error.detail) from error
        self._fingerprints = {self._server.fingerprint}
        return self._server

    def _same(self, server: Server) -> None:
        now = server.capabilities.identity()
        if self._identity is None:
            self._identity = now
        elif now != self._identity:
            raise IdentityChanged(f"the server is another one by now: {self._identity} has become {now}")

    async def _check_same(self, fingerprint: str | None) -> None:
        """An answer of a server that is configured otherwise than the probed one: is it still the same teacher?

        Raises `IdentityChanged`.
        """
        if fingerprint is None or fingerprint in self._fingerprints:
            return
        async with self._looking:
            if fingerprint in self._fingerprints:
                return
            if fingerprint in self._others:
                raise IdentityChanged(self._others[fingerprint])
            try:
                self._same(await self._looker.look())
            except IdentityChanged as error:
                self._server = None
                self._others[fingerprint] = error.detail
                raise
            self._fingerprints.add(fingerprint)

    async def _posted(self, route: Route, body: bytes, seconds: float) -> Reply:
        """The reply; a route or model that is gone is a server that changed, and no fault of the prompt."""
        asked = self._server
        match route:
            case "compact":
                reply = await self._root.post(GENERATE, body, seconds)
            case "completions":
                reply = await self._v1.post("/completions", body, seconds)
            case "chat":
                reply = await self._v1.post("/chat/completions", body, seconds)
        if reply.status in (404, 405, 501):
            async with self._looking:
                if self._server is asked:  # the first of the calls that were under way
                    self._server = None
                self._same(self._server or await self._found())
            raise TransientTeacherError(
                f"the server's {route} route answered {reply.status}: it was probed again"
            )
        return reply

    # -- one request -----------------------------------------------------------------------------------------------

    async def _chat(
        self, server: Server, request: GenerateRequest, indices: tuple[int, ...]
    ) -> list[Generation]:
        k = min(request.top_logprobs, server.chat_top_logprobs)
        if request.top_logprobs and not k:
            raise Unsupported(
                "tools and images go by chat, and the server's --max-logprobs leaves it no logprobs"
            )
        one = replace(request, sample_indices=indices, top_logprobs=k)
        body = chat_body(self._model, one, priority_of(request, server.takes_priority))
        reply = await self._posted("chat", body, request.deadline_s)
        made = [
            generation
            for generation in generations(json_of(reply), one, sha256(body), sha256(reply.body))
            if generation.finish_reason not in FAILED
        ]
        if not made:
            raise TransientTeacherError("the engine gave the request up")
        await self._check_same(made[0].engine)
        path = self._path(server, "chat")
        return [await path.marked(one, _whole(server, request, each), begun=False) for each in made]

    def _path(self, server: Server, route: Route) -> TokenPath:
        return TokenPath(
            ask=partial(self._ask, route),
            ids_of=self._prompts.ids_of,
            text_of=self._prompts.text_of,
            engine=server.capabilities.engine,
            max_model_len=server.max_model_len,
            takes_priority=server.takes_priority,
            reasoning_end_ids=server.reasoning_end_ids,
        )

    async def _ask(self, route: Route, asked: TokenRequest, seconds: float) -> list[TokenAnswer]:
        if route == "compact":
            body = compact_body(self._model, asked)
            answers = compact_answers(asked, body, await self._posted(route, body, seconds))
        else:
            body = completions_body(self._model, asked)
            answers = completions_answers(asked, body, await self._posted(route, body, seconds))
        if answers:
            await self._check_same(answers[0].fingerprint)
        return answers


def _route(server: Server, request: GenerateRequest) -> Route:
    """Raises `Unsupported` for what no route can do."""
    tokens = server.tokens_route
    wants_chat = bool(request.tools) or any(_has_media(turn.get("content")) for turn in request.messages)
    if request.elicit is not None:
        if wants_chat or tokens is None:
            raise Unsupported("a trace is elicited by token ids, which goes with neither tools nor images")
        return tokens
    if wants_chat or server.route == "chat" or tokens is None:
        return "chat"
    return server.route


def _whole(server: Server, request: GenerateRequest, made: Generation) -> Generation:
    """At the server's cap the chat route has one candidate less than the others: its place stays open."""
    tokens = made.tokens
    if tokens is not None and tokens.k < request.top_logprobs:
        tokens = widened(tokens, request.top_logprobs)
    return replace(made, tokens=tokens, engine=made.engine or server.capabilities.engine)


def _has_media(content: Any) -> bool:
    parts = content if isinstance(content, list) else []
    return any(not isinstance(part, dict) or part.get("type") not in (None, "text") for part in parts)
