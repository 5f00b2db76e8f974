"""What a vLLM server is and can do, found by asking it.

`look` asks what costs nothing and tells whether it is still the same server; `probe` generates a few tokens as well.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson

from app.domain.columns import TokenColumns
from app.domain.fingerprints import sha256
from app.domain.reasoning import CLOSE, OPEN
from app.domain.sampling import SamplingParameters
from app.errors import (
    MalformedAnswer,
    PermanentTeacherError,
    RateLimited,
    TeacherError,
    TeacherRefusedKey,
    TeacherUnavailable,
    Unsupported,
)
from app.teachers.base import Capabilities, Turn
from app.teachers.inside_vllm.retort_route.wire import GENERATE, INFO, VERSION
from app.teachers.replies import json_of, refusal
from app.teachers.transport import Transport
from app.teachers.vllm_prompts import Prompts
from app.teachers.vllm_requests import (
    Route,
    TokenAnswer,
    TokenRequest,
    compact_answers,
    compact_body,
    compact_score_body,
    compact_scores,
    completions_answers,
    completions_body,
    completions_score_body,
    completions_scores,
    dumped,
)

_SECONDS = 120.0
_MOST_LOOKED_FOR = 1024  # a server whose cap is higher is known to give so many
_MASKED_TOLERANCE = 0.02  # logprobs at two temperatures may differ so much on a busy GPU, and be raw
_QUESTION: tuple[Turn, ...] = ({"role": "user", "content": "Count from one to ten, in words."},)
_CONVERSATION: tuple[Turn, ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 6 × 7?"},
    {"role": "assistant", "content": "42"},
    {"role": "user", "content": "  Thank you.\nAnd 6 + 7?  "},
)
SAMPLE = (
    "The quick brown fox, 3.14159 × 1,234,567 = ?\n\n\tdef f(x: int) -> str:\n        return f'{x!r}'\n"
    "Übergrößenträger naïve café — “quoted” … ½ ≠ ∞; 日本語のテキスト 한국어 العربية हिन्दी 🙂👩‍👩‍👧 \r\n   \u00a0end"
)
CONVERSATIONS = (_QUESTION, _CONVERSATION, _CONVERSATION[1:])
_DATE = re.compile(
    r"\d{4}-\d{2}-\d{2}"
    r"|\d{1,2} (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]* \d{4}"
    r"|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]* \d{1,2}, \d{4}"
)


@dataclass(frozen=True, slots=True)
class Server:
    """A vLLM server, as it was found. `route`: how plain prompts are answered."""

    capabilities: Capabilities
    route: Route = "chat"
    fingerprint: str | None = None
    takes_priority: bool = False
    max_model_len: int = 0
    reasoning_end_ids: tuple[int, ...] = ()

    @property
    def chat_top_logprobs(self) -> int:
        """How many candidates the chat route is sure to give: it returns the first k of {sampled, top 1 … top k}."""
        cap = self.capabilities.details.get("max_logprobs")
        return cap - 1 if type(cap) is int else 0

    @property
    def tokens_route(self) -> Route | None:
        """How ids are gone on from; None where the server renders no prompts for us."""
        if not self.capabilities.prompt_token_ids:
            return None
        return "compact" if self.capabilities.compact_route else "completions"


class Looker:
    """Asks one server. `v1`: its OpenAI-compatible API; `root`: the same without `/v1`; `wanted`: option `route`."""

    def __init__(self, v1: Transport, root: Transport, model: str, wanted: str) -> None:
        self._v1, self._root, self._model, self._wanted = v1, root, model, wanted
        self._prompts = Prompts(root, model)

    async def look(self) -> Server:
        """Version, model, hashes; generates nothing. Raises `TeacherError` where the server cannot be asked."""
        self._prompts = Prompts(self._root, self._model)  # what was rendered before may be another template's
        version = await self._version()
        entry = await self._entry()
        about, problems = await self._about()
        length = entry.get("max_model_len")
        tokenizer, template, unrendered = await self._renders()
        problems += unrendered
        found = Capabilities(
            reachable=True,
            engine=f"vllm {version}",
            served_model=f"{self._model} ({entry.get('root') or self._model})",
            max_model_len=length if isinstance(length, int) else None,
            native_n=True,
            seed=True,
            compact_route=about is not None,
            prompt_token_ids=template is not None,
            tokenizer_sha256=tokenizer,
            chat_template_sha256=template,
            problems=tuple(problems),
        )
        if about is None:
            return Server(found, self._route(found), max_model_len=found.max_model_len or 0)
        revision = about.get("revision")
        found = replace(
            found,
            served_model=f"{self._model} ({about.get('model')}{'' if revision is None else f'@{revision}'})",
            vocab_size=_int(about, "vocab_size"),
            weights_sha256=_str(about, "weights_sha256"),
            details={name: about.get(name) for name in _DETAILS},
        )
        ends = about.get("reasoning_end_ids")
        return Server(
            found,
            self._route(found),
            fingerprint=_str(about, "fingerprint"),
            takes_priority=about.get("priority") is True,
            max_model_len=found.max_model_len or 0,
            reasoning_end_ids=tuple(ends) if isinstance(ends, list) else (),
        )

    async def probe(self) -> Server:
        """`look`, and what only answers show: logprobs and how many, reasoning, scoring, priority.

        Where soft labels cannot be had, `max_top_logprobs` is 0 and `problems` says why.
        """
        server = await self.look()
        problems = list(server.capabilities.problems)
        reasoning, priority = await self._chats()
        route = server.tokens_route
        if (
            reasoning is not None
            and self._wanted == "auto"
            and route is not None
            and not await self._tags_show()
        ):
            server = replace(server, route="chat")
        server = replace(server, takes_priority=priority)
        found = replace(server.capabilities, reasoning_field=reasoning)
        if route is None:
            problems.append(
                "the server renders no prompts (no /tokenize): no token ids go in, and no soft labels come out"
            )
            return replace(server, capabilities=replace(found, problems=tuple(problems)))
        rendered = await self._prompts.render(_QUESTION, {})
        cap = _int(server.capabilities.details, "max_logprobs") or await self._cap(rendered.ids)
        k = cap
        if server.route == "chat" and cap:
            k = cap - 1
            if not k:
                problems.append(
                    "no soft labels: the chat route gives fewer candidates than --max-logprobs, which is 1"
                )
        fingerprint = server.fingerprint
        try:
            mode = _str(found.details, "logprobs_mode")
            answer = await self._soft_labels(route, rendered.ids, cap, mode)
            fingerprint = answer.fingerprint
        except (Unsupported, MalformedAnswer) as error:
            k = 0
            problems.append(f"no soft labels: {error.detail}")
        scoring = await self._scores(route, rendered.ids) if k else False
        details = {**found.details, "max_logprobs": cap}
        found = replace(
            found,
            max_top_logprobs=k,
            token_ids=True,
            scoring=scoring,
            details=details,
            problems=tuple(problems),
        )
        return replace(server, capabilities=found, fingerprint=fingerprint)

    def _route(self, found: Capabilities) -> Route:
        if self._wanted in ("completions", "chat"):
            return "chat" if self._wanted == "chat" or not found.prompt_token_ids else "completions"
        if not found.prompt_token_ids:
            return "chat"
        return "compact" if found.compact_route else "completions"

    async def _version(self) -> str:
        try:
            told = json_of(await self._root.get("/version", _SECONDS))
        except (PermanentTeacherError, MalformedAnswer) as error:
            if isinstance(error, TeacherRefusedKey):
                raise
            detail = f"this is no vLLM server, it tells no version ({error.detail}): use the driver `openai`"
            raise TeacherUnavailable(detail) from error
        version = told.get("version") if isinstance(told, dict) else None
        return str(version)

    async def _entry(self) -> dict[str, Any]:
        told = json_of(await self._v1.get("/models", _SECONDS))
        data = told.get("data") if isinstance(told, dict) else None
        listed = [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []
        for one in listed:
            if one.get("id") == self._model:
                return one
        named = ", ".join(str(one.get("id")) for one in listed[:10])
        raise TeacherUnavailable(f"the server has no model {self._model!r}; it has: {named or 'none'}")

    async def _about(self) -> tuple[dict[str, Any] | None, list[str]]:
        """What the compact route says of the server; None where it is not there, or not wanted."""
        if self._wanted in ("completions", "chat"):
            return None, []
        reply = await self._root.get(INFO, _SECONDS)
        if reply.status in (404, 405):
            missing = "the server has no compact route, which carries logprobs at a tenth of the cost: "
            if self._wanted == "compact":
                raise TeacherUnavailable(
                    f"{missing}start it with `retort vllm-serve`, or take the option away"
                )
            return None, [f"{missing}`retort vllm-serve` starts one that has."]
        if reply.status == 501:
            return None, [
                "the compact route does not work with this release of vLLM: completions are used instead."
            ]
        try:
            told = json_of(reply)
        except MalformedAnswer:
            return None, []  # something else answers all paths
        if not isinstance(told, dict) or told.get("version") != VERSION:
            return None, [
                f"the server's compact route is not of version {VERSION}: completions are used instead."
            ]
        if self._model not in told.get("models", ()):
            return None, []
        return told, []

    async def _renders(self) -> tuple[str | None, str | None, list[str]]:
        """(hash of what the tokenizer does, hash of what the template does, problems).

        By what they do, since a plain server does not hand them out. Dates are masked: some templates tell today's.
        """
        try:
            tokenizer = sha256(repr(await self._prompts.ids_of(SAMPLE)).encode()).hex()
        except (PermanentTeacherError, MalformedAnswer) as error:
            if isinstance(error, TeacherRefusedKey):
                raise
            return None, None, [f"prompts cannot be rendered to token ids: {error.detail}"]
        texts = []
        for messages in CONVERSATIONS:
            try:
                rendered = await self._prompts.render(messages, {})
                texts.append(masked(await self._prompts.text_of(rendered.ids)))
            except TeacherRefusedKey:
                raise
            except PermanentTeacherError as error:
                if messages is _QUESTION:
                    return tokenizer, None, [f"the server renders no chat messages: {error.detail}"]
                texts.append("refused")  # e.g. a template without system messages
        return tokenizer, sha256("\0".join(texts).encode()).hex(), []

    async def _chats(self) -> tuple[str | None, bool]:
        """(name of the field that the server's parser puts reasoning into, whether priorities are taken)."""
        body: dict[str, Any] = {"model": self._model, "messages": list(_QUESTION), "max_tokens": 16}
        body |= {"temperature": 0, "priority": -1}
        priority = True
        try:
            answer = json_of(await self._v1.post("/chat/completions", orjson.dumps(body), _SECONDS))
        except (TeacherRefusedKey, RateLimited):
            raise
        except PermanentTeacherError:
            priority = False
            del body["priority"]
            answer = json_of(await self._v1.post("/chat/completions", orjson.dumps(body), _SECONDS))
        try:
            message = answer["choices"][0]["message"]
            names = [name for name in ("reasoning", "reasoning_content") if message.get(name)]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise MalformedAnswer("the server's chat answer has no message") from error
        return (names[0] if names else None), priority

    async def _tags_show(self) -> bool:
        """Whether a reasoning trace can be told from the text of tokens: by `<think>` tags that are not cut out."""
        rendered = await self._prompts.render(_QUESTION, {})
        text = await self._text_after(rendered.ids, max_tokens=16)
        if not (rendered.begun or OPEN in text or CLOSE in text):
            return False
        close = await self._prompts.ids_of(CLOSE)
        if len(close) > 1:  # ordinary tokens
            return True
        return CLOSE in await self._text_after(rendered.ids, max_tokens=1, allowed_token_ids=close)

    async def _text_after(self, ids: Any, **asked: Any) -> str:
        body = dumped({"model": self._model, "prompt": ids, "temperature": 0, **asked})
        answer = json_of(await self._v1.post("/completions", body, _SECONDS))
        try:
            return str(answer["choices"][0]["text"])
        except (KeyError, IndexError, TypeError) as error:
            raise MalformedAnswer("the server's completion has no text") from error

    async def _cap(self, ids: Any) -> int:
        """The server's `max_logprobs`: a request for more is refused. A dozen requests, most of them refusals."""
        least, most = 0, _MOST_LOOKED_FOR + 1
        likely = iter((20, 21))  # vLLM's default
        while most - least > 1:
            trial = next((one for one in likely if least < one < most), (least + most) // 2)
            content = dumped({"model": self._model, "prompt": ids, "max_tokens": 1, "logprobs": trial})
            reply = await self._v1.post("/completions", content, _SECONDS)
            if reply.status == 200:
                least = trial
                continue
            refused = refusal(reply)
            if isinstance(refused, TeacherRefusedKey) or not isinstance(refused, PermanentTeacherError):
                raise refused
            most = trial
        return least

    async def _soft_labels(self, route: Route, ids: Any, cap: int, mode: str | None) -> TokenAnswer:
        """A short answer with all logprobs there are. Raises `Unsupported` with the reason against soft labels."""
        if not cap:
            raise Unsupported("the server gives no logprobs (--max-logprobs 0)")
        cold, hot = [await self._ask(route, ids, cap, temperature) for temperature in (0.5, 1.5)]
        refuse_unreal(cold.tokens)
        # The first position is the same whatever is drawn there; after masks or temperature it would not be.
        first, second = cold.tokens.topk_logprobs[0, 0], hot.tokens.topk_logprobs[0, 0]
        if mode not in (None, "raw_logprobs") or not abs(first - second) <= _MASKED_TOLERANCE:
            raise Unsupported(
                "the server's logprobs are not those of the model itself: start it with --logprobs-mode raw_logprobs"
            )
        return cold

    async def _ask(self, route: Route, ids: Any, k: int, temperature: float) -> TokenAnswer:
        sampling = SamplingParameters(temperature=temperature, max_tokens=8, seed=0)
        asked = TokenRequest(ids, sampling, 1, 8, k, None, None, "")
        if route == "compact":
            body = compact_body(self._model, asked)
            answers = compact_answers(asked, body, await self._root.post(GENERATE, body, _SECONDS))
        else:
            body = completions_body(self._model, asked)
            answers = completions_answers(asked, body, await self._v1.post("/completions", body, _SECONDS))
        if not answers or not len(answers[0].tokens):
            raise Unsupported(
                "the server answered a plain question with no token: its logprobs were not seen"
            )
        return answers[0]

    async def _scores(self, route: Route, ids: Any) -> bool:
        given, start = ids.tolist(), len(ids) - 1
        try:
            if route == "compact":
                body = compact_score_body(self._model, given, start, 1)
                return compact_scores(await self._root.post(GENERATE, body, _SECONDS), 1, ids) is not None
            body = completions_score_body(self._model, given, 1)
            reply = await self._v1.post("/completions", body, _SECONDS)
            return len(completions_scores(reply, given[start:], start, 1)) == 1
        except (TeacherRefusedKey, RateLimited):
            raise
        except (PermanentTeacherError, MalformedAnswer):
            return False


def masked(text: str) -> str:
    """A rendered conversation without dates: some templates tell today's."""
    return _DATE.sub("[date]", text)


def unreachable(error: TeacherError) -> Server:
    return Server(Capabilities(reachable=False, problems=(error.detail,)))


def refuse_unreal(columns: TokenColumns) -> None:
    """Raises `Unsupported` for logprobs that are none: all 0 or −∞, or sums of more than 1."""
    mass = np.exp(columns.topk_logprobs.astype(np.float64)).sum(axis=1)
    finite = columns.topk_logprobs[np.isfinite(columns.topk_logprobs)]
    if not finite.size or (finite == 0.0).all():
        raise Unsupported("the server returns only 0 and −9999 as logprobs: these are no distribution")
    if (mass > 1.001).any():
        raise Unsupported("the server's logprobs sum to more than 1: these are no distribution")


_DETAILS = ("dtype", "quantization", "hardware", "logprobs_mode", "max_logprobs", "fingerprint", "revision")


def _int(found: Any, name: str) -> int | None:
    value = found.get(name)
    return value if type(value) is int else None


def _str(found: Any, name: str) -> str | None:
    value = found.get(name)
    return value if isinstance(value, str) else None
