"""Driver `vllm`: a server of vLLM, by whichever of its routes fits what is asked.

Plain prompts go in as token ids and come back as columns: by the compact route of our own where the server has it, else
by `/v1/completions`. Tools, images and traces that only the server's own parser can tell apart go by
`/v1/chat/completions`.
"""

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from app.domain.columns import TokenColumns, first_of, widened
from app.domain.fingerprints import sha256
from app.domain.reasoning import CLOSE, OPEN, split_reasoning
from app.domain.sampling import SamplingParameters
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
from app.teachers.elicit import BEGIN, END, Forced, Piece, elicit, instructed
from app.teachers.inside_vllm.retort_route.wire import GENERATE
from app.teachers.replies import json_of
from app.teachers.secrets import resolve
from app.teachers.thinking import with_forced_end
from app.teachers.transport import MAX_ANSWER, LocalTransport, Reply, Transport
from app.teachers.vllm_probe import Looker, Server, unreachable
from app.teachers.vllm_prompts import Prompts, Rendered, template_arguments
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
_MOST_BYTES = MAX_ANSWER * 3 // 4
_FAILED = ("abort", "error")  # reasons to finish that are none


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
        self._fingerprints: set[str | None] = set()
        self._looking = asyncio.Lock()
        self._scoring = asyncio.Semaphore(_SCORES_IN_FLIGHT)

    async def capabilities(self) -> Capabilities:
        """Probed once; from then on only looked at, unless it is another server by now."""
        async with self._looking:
            try:
                return (await self._found()).capabilities
            except TeacherError as error:
                self._server = None
                return unreachable(error).capabilities

    async def generate(self, request: GenerateRequest) -> list[Generation]:
        server = await self._known()
        route = _route(server, request)
        if request.top_logprobs > server.capabilities.max_top_logprobs:
            raise Unsupported(
                f"{request.top_logprobs} top logprobs were asked for; this teacher gives at most "
                f"{server.capabilities.max_top_logprobs}"
            )
        if route == "chat":
            rendered, most = None, request.sampling.max_tokens or server.max_model_len
        else:
            messages = request.messages
            if request.elicit is not None:
                messages = instructed(messages, request.elicit)
            rendered = await self._prompts.render(messages, template_arguments(request.sampling))
            most = _room(server, rendered, request.sampling)
        if request.elicit is not None and rendered is not None:
            return await _together(
                self._elicited(server, route, request, rendered, index, most)
                for index in request.sample_indices
            )
        at_once = samples_at_once(route, _MOST_BYTES, most, request.top_logprobs)
        groups = _groups(request, at_once)
        if rendered is None:
            return _flat(await _together(self._chat(server, request, group) for group in groups))
        return _flat(
            await _together(self._plain(server, route, request, rendered, group, most) for group in groups)
        )

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
        if self._server is not None:
            return self._server
        async with self._looking:
            try:
                return await self._found()
            except (TransientTeacherError, TeacherRefusedKey):
                raise
            except TeacherError as error:
                raise TeacherUnavailable(error.detail) from error

    async def _found(self) -> Server:
        """The server as it is now; the lock is held."""
        before = self._server
        if before is not None:
            now = await self._looker.look()
            if (now.capabilities.identity(), now.route) == (before.capabilities.identity(), before.route):
                return before
        self._prompts = Prompts(self._root, self._model)
        self._server = await self._looker.probe()
        self._fingerprints = {self._server.fingerprint}
        return self._server

    async def _check_same(self, fingerprint: str | None) -> None:
        """An answer of a server that is configured otherwise than the probed one: is it still the same teacher?

        Raises `IdentityChanged`.
        """
        if fingerprint is None or fingerprint in self._fingerprints:
            return
        async with self._looking:
            before = self._server
            if before is None or fingerprint in self._fingerprints:
                return
            now = await self._looker.look()
            if now.capabilities.identity() != before.capabilities.identity():
                self._server = None
                raise IdentityChanged(
                    f"the server is another one since it was probed: {before.capabilities.identity()} has become "
                    f"{now.capabilities.identity()}"
                )
            self._fingerprints.add(fingerprint)

    async def _posted(self, route: Route, body: bytes, seconds: float) -> Reply:
        """The reply; a route or model that is gone is a server that changed, and no fault of the prompt."""
        match route:
            case "compact":
                reply = await self._root.post(GENERATE, body, seconds)
            case "completions":
                reply = await self._v1.post("/completions", body, seconds)
            case "chat":
                reply = await self._v1.post("/chat/completions", body, seconds)
        if reply.status in (404, 405, 501):
            async with self._looking:
                before, self._server = self._server, None
                now = await self._found()
            if before is not None and now.capabilities.identity() != before.capabilities.identity():
                raise IdentityChanged(
                    f"the server serves something else by now: {now.capabilities.identity()}"
                )
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
        body = chat_body(self._model, one, _priority(server, request))
        reply = await self._posted("chat", body, request.deadline_s)
        made = [
            generation
            for generation in generations(json_of(reply), one, sha256(body), sha256(reply.body))
            if generation.finish_reason not in _FAILED
        ]
        if not made:
            raise TransientTeacherError("the engine gave the request up")
        await self._check_same(made[0].engine)
        return [await self._marked(server, one, _whole(server, request, each), begun=False) for each in made]

    async def _plain(
        self,
        server: Server,
        route: Route,
        request: GenerateRequest,
        rendered: Rendered,
        indices: tuple[int, ...],
        most: int,
    ) -> list[Generation]:
        sampling = request.sampling.for_sample(indices[0])
        asked = TokenRequest(
            ids=rendered.ids,
            sampling=sampling,
            n=len(indices),
            max_tokens=most,
            top_logprobs=request.top_logprobs,
            schema=request.response_schema,
            priority=_priority(server, request),
            request_id=request.request_id,
        )
        answers = await self._ask(route, asked, request.deadline_s)
        made = []
        for answer in answers:
            split = split_reasoning(answer.text, begun=rendered.begun)
            generation = Generation(
                sample_index=indices[answer.index],
                answer=split.answer,
                reasoning=split.reasoning,
                reasoning_source=None if split.reasoning is None else "native",
                reasoning_truncated=split.truncated,
                finish_reason=answer.finish_reason,
                usage=answer.usage,
                tokens=answer.tokens,
                engine=answer.fingerprint or server.capabilities.engine,
                request_hash=answer.request_hash,
                response_hash=answer.response_hash,
                provider_extra=None if answer.stop_reason is None else {"stop_reason": answer.stop_reason},
            )
            made.append(await self._marked(server, request, generation, rendered.begun))
        return made

    async def _ask(self, route: Route, asked: TokenRequest, seconds: float) -> list[TokenAnswer]:
        if route == "compact":
            body = compact_body(self._model, asked)
            answers = compact_answers(asked, body, await self._posted(route, body, seconds))
        else:
            body = completions_body(self._model, asked)
            answers = completions_answers(asked, body, await self._posted(route, body, seconds))
        whole = [answer for answer in answers if answer.finish_reason not in _FAILED]
        if not whole:
            raise TransientTeacherError("the engine gave the request up")
        await self._check_same(whole[0].fingerprint)
        return [await self._without_stop(answer) for answer in whole] if asked.sampling.stop else whole

    async def _without_stop(self, answer: TokenAnswer) -> TokenAnswer:
        """vLLM cuts a stop string off the text and leaves its tokens: they go as well, but one that is half text."""
        if not isinstance(answer.stop_reason, str):
            return answer
        kept = len(answer.tokens)
        while kept and (await self._prompts.text_of(answer.tokens.token_ids[: kept - 1])).startswith(
            answer.text
        ):
            kept -= 1
        return replace(answer, tokens=first_of(answer.tokens, kept))

    async def _elicited(
        self,
        server: Server,
        route: Route,
        request: GenerateRequest,
        rendered: Rendered,
        index: int,
        most: int,
    ) -> Generation:
        assert request.elicit is not None
        sampling = request.sampling.for_sample(index)
        forced = Forced(begin=await self._prompts.ids_of(BEGIN), end=await self._prompts.ids_of(END))

        async def go_on(text: str, ids: list[int] | None, limit: int) -> Piece:
            asked = TokenRequest(
                ids=np.concatenate([rendered.ids, np.array(ids or [], np.int32)]),
                sampling=sampling,
                n=1,
                max_tokens=limit,
                top_logprobs=request.top_logprobs,
                schema=None,
                priority=_priority(server, request),
                request_id=request.request_id,
            )
            (answer,) = await self._ask(route, asked, request.deadline_s)
            own = answer.tokens.token_ids
            by_end = (
                answer.finish_reason == "stop" and not isinstance(answer.stop_reason, str) and len(own) > 0
            )
            return Piece(
                text=answer.text,
                finish_reason=answer.finish_reason,
                tokens=answer.tokens,
                usage=answer.usage,
                request_hash=answer.request_hash,
                response_hash=answer.response_hash,
                engine=answer.fingerprint or server.capabilities.engine,
                ended_by=int(own[-1]) if by_end else None,
            )

        room = max(1, most - len(forced.begin) - len(forced.end))
        made = await elicit(index, go_on, request.elicit, room, forced)
        columns = made.tokens
        return replace(made, tokens=None if columns is None else replace(columns, prompt_ids=rendered.ids))

    async def _marked(
        self, server: Server, request: GenerateRequest, made: Generation, begun: bool
    ) -> Generation:
        """Where a budget ended the trace, its end was forced: no logprob explains that it stands there."""
        budget = request.sampling.thinking_token_budget
        if budget is None or made.tokens is None:
            return made
        end = list(server.reasoning_end_ids) or await self._prompts.ids_of(CLOSE)
        start = [] if begun else await self._prompts.ids_of(OPEN)
        columns = with_forced_end(made.tokens, budget, start, end)
        if columns is made.tokens:
            return made
        return replace(made, tokens=columns, reasoning_truncated=True)


_SCORE_SECONDS = 600.0


def _route(server: Server, request: GenerateRequest) -> Route:
    """Raises `Unsupported` for what no route can do."""
    tokens = server.tokens_route
    wants_chat = bool(request.tools) or any(_has_media(turn.get("content")) for turn in request.messages)
    if request.elicit is not None:
        if wants_chat or tokens is None:
            raise Unsupported("a trace is elicited by token ids, which goes with neither tools nor images")
        return "completions" if request.sampling.stop else tokens
    if wants_chat or server.route == "chat" or tokens is None:
        return "chat"
    # A stop string is looked for in text, which the compact route's engine does not make.
    return "completions" if request.sampling.stop else server.route


def _whole(server: Server, request: GenerateRequest, made: Generation) -> Generation:
    """At the server's cap the chat route has one candidate less than the others: its place stays open."""
    tokens = made.tokens
    if tokens is not None and tokens.k < request.top_logprobs:
        tokens = widened(tokens, request.top_logprobs)
    return replace(made, tokens=tokens, engine=made.engine or server.capabilities.engine)


def _has_media(content: Any) -> bool:
    parts = content if isinstance(content, list) else []
    return any(not isinstance(part, dict) or part.get("type") not in (None, "text") for part in parts)


def _room(server: Server, rendered: Rendered, sampling: SamplingParameters) -> int:
    """Tokens that may be generated. Raises `Unsupported` where the prompt leaves none."""
    room = server.max_model_len - len(rendered.ids)
    if room < 1:
        raise Unsupported(
            f"the prompt has {len(rendered.ids)} tokens; this teacher takes fewer than {server.max_model_len} in all"
        )
    return min(room, sampling.max_tokens or room)


def _priority(server: Server, request: GenerateRequest) -> int | None:
    """vLLM's lower is earlier."""
    return -request.priority if server.takes_priority and request.priority else None


def _groups(request: GenerateRequest, at_once: int) -> list[tuple[int, ...]]:
    """Sample indices by request. vLLM gives child i seed + i, so with a seed only neighbours; greedy ones alone."""
    sampling = request.sampling
    if sampling.temperature is not None and sampling.temperature < 1e-5:
        at_once = 1
    groups: list[tuple[int, ...]] = []
    for index in request.sample_indices:
        last = groups[-1] if groups else ()
        next_to_it = bool(last) and (sampling.seed is None or index == last[-1] + 1)
        if next_to_it and len(last) < at_once:
            groups[-1] = (*last, index)
        else:
            groups.append((index,))
    return groups


T = TypeVar("T")


async def _together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What succeeded, the rest being asked again; the first error where nothing did."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    made = [one for one in found if not isinstance(one, BaseException)]
    if not made:
        raise next(one for one in found if isinstance(one, BaseException))
    return made


def _flat(parts: list[list[Generation]]) -> list[Generation]:
    return [generation for part in parts for generation in part]
