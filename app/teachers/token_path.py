"""Samples by token ids: what every driver of vLLM does between a rendered prompt and its generations."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from app.domain.columns import Int32, first_of
from app.domain.reasoning import CLOSE, OPEN, split_reasoning
from app.errors import TransientTeacherError, Unsupported
from app.teachers.base import GenerateRequest, Generation
from app.teachers.elicit import BEGIN, END, Forced, Piece, elicit
from app.teachers.thinking import with_forced_end
from app.teachers.vllm_prompts import Rendered
from app.teachers.vllm_requests import TokenAnswer, TokenRequest

T = TypeVar("T")
FAILED = ("abort", "error")  # reasons to finish that are none


@dataclass(frozen=True, slots=True)
class TokenPath:
    """One way to a model. `ask` sends a request, `ids_of` and `text_of` are its tokenizer."""

    ask: Callable[[TokenRequest, float], Awaitable[list[TokenAnswer]]]
    ids_of: Callable[[str], Awaitable[list[int]]]
    text_of: Callable[[Int32], Awaitable[str]]
    engine: str | None
    max_model_len: int
    takes_priority: bool
    reasoning_end_ids: tuple[int, ...] = ()

    async def generate(self, request: GenerateRequest, rendered: Rendered, at_once: int) -> list[Generation]:
        """What succeeded of the request's samples. `at_once`: how many may travel in one request."""
        if request.elicit is not None:
            return await together(
                self._elicited(request, rendered, index) for index in request.sample_indices
            )
        grouped = groups(request, at_once)
        return flat(await together(self._plain(request, rendered, group) for group in grouped))

    def room(self, request: GenerateRequest, rendered: Rendered) -> int:
        """Tokens that may be generated. Raises `Unsupported` where the prompt leaves none."""
        room = self.max_model_len - len(rendered.ids)
        if room < 1:
            raise Unsupported(
                f"the prompt has {len(rendered.ids)} tokens; this teacher takes fewer than {self.max_model_len} in all"
            )
        return min(room, request.sampling.max_tokens or room)

    async def marked(self, request: GenerateRequest, made: Generation, begun: bool) -> Generation:
        """Where a budget ended the trace, its end was forced: no logprob explains that it stands there."""
        budget = request.sampling.thinking_token_budget
        if budget is None or made.tokens is None:
            return made
        end = list(self.reasoning_end_ids) or await self.ids_of(CLOSE)
        start = [] if begun else await self.ids_of(OPEN)
        columns = with_forced_end(made.tokens, budget, start, end)
        if columns is made.tokens:
            return made
        return replace(made, tokens=columns, reasoning_truncated=True)

    async def _plain(
        self, request: GenerateRequest, rendered: Rendered, indices: tuple[int, ...]
    ) -> list[Generation]:
        asked = self._request(request, indices[0], rendered.ids, len(indices), self.room(request, rendered))
        made = []
        for answer in await self._asked(asked, request.deadline_s):
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
                engine=answer.fingerprint or self.engine,
                request_hash=answer.request_hash,
                response_hash=answer.response_hash,
                provider_extra=None if answer.stop_reason is None else {"stop_reason": answer.stop_reason},
            )
            made.append(await self.marked(request, generation, rendered.begun))
        return made

    async def _elicited(self, request: GenerateRequest, rendered: Rendered, index: int) -> Generation:
        assert request.elicit is not None
        forced = Forced(begin=await self.ids_of(BEGIN), end=await self.ids_of(END))

        async def go_on(text: str, ids: list[int] | None, limit: int) -> Piece:
            whole = np.concatenate([rendered.ids, np.array(ids or [], np.int32)])
            asked = replace(self._request(request, index, whole, 1, limit), schema=None)
            (answer,) = await self._asked(asked, request.deadline_s)
            own = answer.tokens.token_ids
            by_id = (
                answer.finish_reason == "stop" and not isinstance(answer.stop_reason, str) and len(own) > 0
            )
            return Piece(
                text=answer.text,
                finish_reason=answer.finish_reason,
                tokens=answer.tokens,
                usage=answer.usage,
                request_hash=answer.request_hash,
                response_hash=answer.response_hash,
                engine=answer.fingerprint or self.engine,
                ended_by=int(own[-1]) if by_id else None,
            )

        room = self.room(request, rendered) - len(forced.begin) - len(forced.end)
        made = await elicit(index, go_on, request.elicit, max(1, room), forced)
        columns = made.tokens
        return replace(made, tokens=None if columns is None else replace(columns, prompt_ids=rendered.ids))

    def _request(self, request: GenerateRequest, index: int, ids: Int32, n: int, most: int) -> TokenRequest:
        return TokenRequest(
            ids=ids,
            sampling=request.sampling.for_sample(index),
            n=n,
            max_tokens=most,
            top_logprobs=request.top_logprobs,
            schema=request.response_schema,
            priority=priority_of(request, self.takes_priority),
            request_id=request.request_id,
        )

    async def _asked(self, asked: TokenRequest, seconds: float) -> list[TokenAnswer]:
        """The whole answers; a stop string's tokens are cut off them, as vLLM cuts its text."""
        answers = [one for one in await self.ask(asked, seconds) if one.finish_reason not in FAILED]
        if not answers:
            raise TransientTeacherError("the engine gave the request up")
        return [await self._without_stop(answer) for answer in answers]

    async def _without_stop(self, answer: TokenAnswer) -> TokenAnswer:
        """All tokens that the text needs: one that is half of it and half of the stop string stays."""
        if not isinstance(answer.stop_reason, str):
            return answer
        kept = len(answer.tokens)
        while kept and (await self.text_of(answer.tokens.token_ids[: kept - 1])).startswith(answer.text):
            kept -= 1
        return replace(answer, tokens=first_of(answer.tokens, kept))


def priority_of(request: GenerateRequest, taken: bool) -> int | None:
    """vLLM's lower is earlier."""
    return -request.priority if taken and request.priority else None


def groups(request: GenerateRequest, at_once: int) -> list[tuple[int, ...]]:
    """Sample indices by request. vLLM gives child i seed + i, so with a seed only neighbours; greedy ones alone."""
    sampling = request.sampling
    if sampling.temperature is not None and sampling.temperature < 1e-5:
        at_once = 1
    found: list[tuple[int, ...]] = []
    for index in request.sample_indices:
        last = found[-1] if found else ()
        next_to_it = bool(last) and (sampling.seed is None or index == last[-1] + 1)
        if next_to_it and len(last) < at_once:
            found[-1] = (*last, index)
        else:
            found.append((index,))
    return found


async def together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What succeeded, the rest being asked again; the first error where nothing did."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    made = [one for one in found if not isinstance(one, BaseException)]
    if not made:
        raise next(one for one in found if isinstance(one, BaseException))
    return made


def flat(parts: list[list[Generation]]) -> list[Generation]:
    return [generation for part in parts for generation in part]
