"""Messages to token ids, by the server's own chat template, each conversation once.

Siblings, retries and the two calls of an elicited trace share one rendering, and the same ids sent again meet the
server's prefix cache.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from pydantic import JsonValue

from app.domain.columns import Int32
from app.domain.fingerprints import fingerprint
from app.domain.reasoning import OPEN
from app.domain.sampling import SamplingParameters
from app.errors import MalformedAnswer
from app.teachers.base import Turn
from app.teachers.elicit import BEGIN
from app.teachers.replies import json_of
from app.teachers.transport import Transport

_SECONDS = 60.0
_CACHED_IDS = 4_000_000  # token ids that are kept, 4 bytes each
_CACHED_TEXTS = 1024


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as the model sees it. `begun`: the template has opened a reasoning trace at its end."""

    ids: Int32
    begun: bool


def template_arguments(sampling: SamplingParameters) -> dict[str, JsonValue]:
    """What vLLM's chat route gives to the template for these parameters."""
    given = dict(sampling.chat_template_kwargs or {})
    if sampling.reasoning_effort is not None:
        given.setdefault("reasoning_effort", sampling.reasoning_effort)
        given.setdefault("enable_thinking", sampling.reasoning_effort != "none")
    return given


class Prompts:
    """Belongs to one server and one event loop. `root`: the server without `/v1`."""

    def __init__(self, root: Transport, model: str) -> None:
        self._root, self._model = root, model
        self._rendered: OrderedDict[bytes, asyncio.Task[Rendered]] = OrderedDict()
        self._kept = 0
        self._texts: OrderedDict[str, list[int]] = OrderedDict()

    async def render(self, messages: tuple[Turn, ...], arguments: dict[str, JsonValue]) -> Rendered:
        """Raises what the server's refusal means; a template that refuses the messages is permanent."""
        key = fingerprint([list(messages), arguments])
        task = self._rendered.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self._render(messages, arguments))
            task.add_done_callback(self._count)
            self._rendered[key] = task
        self._rendered.move_to_end(key)
        return await asyncio.shield(task)  # others may wait for it too

    async def ids_of(self, text: str) -> list[int]:
        """The ids of a piece of text by itself, without a beginning-of-sequence token."""
        known = self._texts.get(text)
        if known is None:
            body = {"model": self._model, "prompt": text, "add_special_tokens": False}
            known = _ids(await self._post("/tokenize", body)).tolist()
            self._texts[text] = known
            if len(self._texts) > _CACHED_TEXTS:
                self._texts.popitem(last=False)
        return known

    async def text_of(self, ids: list[int] | Int32) -> str:
        """The text of ids, special tokens included."""
        found = await self._post("/detokenize", {"model": self._model, "tokens": ids})
        text = found.get("prompt") if isinstance(found, dict) else None
        if not isinstance(text, str):
            raise MalformedAnswer("the server's /detokenize answered without text")
        return text

    async def _render(self, messages: tuple[Turn, ...], arguments: dict[str, JsonValue]) -> Rendered:
        body: dict[str, Any] = {"model": self._model, "messages": list(messages)}
        if arguments:
            body["chat_template_kwargs"] = arguments
        ids = _ids(await self._post("/tokenize", body))
        return Rendered(ids, await self._begins(ids.tolist()))

    async def _begins(self, ids: list[int]) -> bool:
        """Whether the ids end with an opened trace, with nothing but line breaks after the tag."""
        tags = [await self.ids_of(OPEN), await self.ids_of(BEGIN)]
        breaks = {*(await self.ids_of("\n")), *(await self.ids_of("\n\n"))}
        bare = list(ids)
        while bare and bare[-1] in breaks:
            bare.pop()
        return any(end[-len(tag) :] == tag for end in (ids, bare) for tag in tags if tag)

    def _count(self, task: asyncio.Task[Rendered]) -> None:
        if task.cancelled() or task.exception() is not None:
            return
        self._kept += len(task.result().ids)
        while self._kept > _CACHED_IDS and len(self._rendered) > 1:
            _, oldest = self._rendered.popitem(last=False)
            if oldest.done() and not oldest.cancelled() and oldest.exception() is None:
                self._kept -= len(oldest.result().ids)

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        return json_of(await self._root.post(path, content, _SECONDS))


def _ids(answer: Any) -> Int32:
    given = answer.get("tokens") if isinstance(answer, dict) else None
    if not isinstance(given, list) or not all(type(one) is int and 0 <= one < 2**31 for one in given):
        raise MalformedAnswer("the server's /tokenize answered without token ids")
    return np.array(given, np.int32)
