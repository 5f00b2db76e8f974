"""Driver `embedded`: a small real model in this process, through llama.cpp. No key, no GPU, no server to install.

The engine is loaded once per process, when the first call comes, and answers on a loopback port of its own with a key
of its own. Token ids go in and come out; logprobs are of the raw distribution (temperature 1, before any truncation).
"""

import asyncio
import os
import secrets
import threading
import urllib.request
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import orjson

from app.domain.columns import TokenColumns, ids_only, token_columns
from app.domain.fingerprints import canonical_json, sha256
from app.domain.reasoning import split_reasoning
from app.domain.sampling import SamplingParameters
from app.domain.teacher import TeacherSpec
from app.errors import InvalidInput, MalformedAnswer, Unsupported
from app.teachers import embedded_model
from app.teachers.base import Capabilities, GenerateRequest, Generation, Turn, Usage
from app.teachers.elicit import BEGUN, CLOSING, Piece, instructed, think_then_answer
from app.teachers.transport import AiohttpTransport, decoded

SLOTS = 8
CONTEXT_PER_SLOT = 2048
MAX_TOP_LOGPROBS = 256

_loading = threading.Lock()


class _Engine:
    """llama.cpp's server in this process. Lives until the process ends."""

    def __init__(self) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(embedded_model.model_path())
        params.n_parallel = SLOTS
        params.n_ctx = SLOTS * CONTEXT_PER_SLOT
        params.kv_unified = False
        params.use_jinja = True
        params.warmup = False
        params.verbosity = -1
        params.port = 0
        self.key = secrets.token_urlsafe(24)
        params.api_keys = [self.key]
        for threads in (params.cpuparams, params.cpuparams_batch):
            threads.n_threads = os.cpu_count() or 2
            threads.poll = 0  # spinning threads on a busy machine cost ten times the work
        self._server = xllamacpp.Server(params)
        self.url: str = self._server.listening_address

    def post(self, path: str, body: object) -> dict[str, Any]:
        """One blocking call, for the few that are not in the event loop."""
        request = urllib.request.Request(
            self.url + path,
            orjson.dumps(body),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            found: dict[str, Any] = orjson.loads(answer.read())
            return found


@lru_cache(maxsize=1)
def _loaded() -> _Engine:
    return _Engine()


def _engine() -> _Engine:
    with _loading:
        return _loaded()


def token_texts(ids: list[int]) -> dict[int, str]:
    """The text of each token id (a token that is no whole character has replacement characters)."""
    engine = _engine()
    return {identifier: engine.post("/detokenize", {"tokens": [identifier]})["content"] for identifier in ids}


class EmbeddedTeacher:
    """See `app.teachers.base.Teacher`."""

    def __init__(self, spec: TeacherSpec) -> None:
        """Raises `InvalidInput` where the spec names another model than the one that is here."""
        if spec.model != embedded_model.MODEL:
            raise InvalidInput(f"the embedded teacher is {embedded_model.MODEL}, not {spec.model}")
        self._http: AiohttpTransport | None = None
        self._prompts: dict[bytes, list[int]] = {}
        self._closing: list[int] = []
        self._eos: frozenset[int] = frozenset()

    async def capabilities(self) -> Capabilities:
        await self._open()
        props = await self._call("GET", "/props", None)
        models = await self._call("GET", "/v1/models", None)
        template = str(props["chat_template"])
        return Capabilities(
            reachable=True,
            engine=f"llama.cpp (xllamacpp {version('xllamacpp')})",
            served_model=f"{embedded_model.MODEL} {embedded_model.REVISION}",
            max_model_len=CONTEXT_PER_SLOT,
            max_top_logprobs=MAX_TOP_LOGPROBS,
            token_ids=True,
            prompt_token_ids=True,
            native_n=False,
            seed=True,
            # The tokenizer is part of the model file, and has no hash of its own.
            tokenizer_sha256=embedded_model.SHA256,
            chat_template_sha256=sha256(template.encode()).hex(),
            vocab_size=int(models["data"][0]["meta"]["n_vocab"]),
        )

    async def generate(self, request: GenerateRequest) -> list[Generation]:
        if request.tools:
            raise Unsupported("the embedded teacher takes no tools")
        if request.top_logprobs > MAX_TOP_LOGPROBS:
            raise Unsupported(f"the embedded teacher gives at most {MAX_TOP_LOGPROBS} top logprobs")
        await self._open()
        return [await self._sample(request, index) for index in request.sample_indices]

    async def score(self, prompt_ids: list[int], token_ids: list[int], top_logprobs: int) -> TokenColumns:
        raise Unsupported(
            "the embedded teacher cannot score given tokens: llama.cpp's server has no such call"
        )

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()

    # -- one sample --------------------------------------------------------------------------------------------

    async def _sample(self, request: GenerateRequest, index: int) -> Generation:
        sampling = request.sampling.for_sample(index)
        max_tokens = sampling.max_tokens or CONTEXT_PER_SLOT

        async def go_on(ids: list[int], most: int) -> Piece:
            return await self._piece(ids, most, sampling, request)

        if request.elicit is not None:
            ids = await self._prompt_ids(instructed(request.messages, request.elicit), BEGUN)
            made = await think_then_answer(ids, self._closing, request.elicit, max_tokens, go_on)
            return Generation(
                sample_index=index,
                answer=made.answer,
                reasoning=made.reasoning,
                reasoning_source="elicited",
                reasoning_truncated=made.truncated,
                finish_reason=made.finish_reason,
                tokens=made.tokens,
                request_hash=sha256(b"".join(piece.request_hash for piece in made.pieces)),
                response_hash=sha256(b"".join(piece.response_hash for piece in made.pieces)),
                usage=_usage(ids, made.pieces),
                engine=f"xllamacpp {version('xllamacpp')}",
                calls=len(made.pieces),
            )
        ids = await self._prompt_ids(list(request.messages), "")
        piece = await go_on(ids, max_tokens)
        split = split_reasoning(piece.text)
        return Generation(
            sample_index=index,
            answer=split.answer,
            reasoning=split.reasoning,
            reasoning_source=None if split.reasoning is None else "native",
            reasoning_truncated=split.truncated,
            finish_reason=piece.finish_reason,
            tokens=replace(piece.tokens, prompt_ids=np.array(ids, np.int32)),
            request_hash=piece.request_hash,
            response_hash=piece.response_hash,
            usage=_usage(ids, (piece,)),
            engine=f"xllamacpp {version('xllamacpp')}",
        )

    async def _piece(
        self, ids: list[int], most: int, sampling: SamplingParameters, request: GenerateRequest
    ) -> Piece:
        room = CONTEXT_PER_SLOT - len(ids) - 1
        if room < 1:
            raise Unsupported(
                f"the prompt has {len(ids)} tokens; the embedded teacher takes {CONTEXT_PER_SLOT - 2}"
            )
        body: dict[str, Any] = {
            "prompt": ids,
            "n_predict": min(most, room),
            "n_probs": request.top_logprobs,
            "return_tokens": True,
            "cache_prompt": True,
            # llama.cpp's own defaults would cut the distribution: nothing is cut unless it was asked for.
            "temperature": 1.0 if sampling.temperature is None else sampling.temperature,
            "top_k": sampling.top_k or 0,
            "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
            "min_p": sampling.min_p or 0.0,
            "presence_penalty": sampling.presence_penalty or 0.0,
            "frequency_penalty": sampling.frequency_penalty or 0.0,
            "repeat_penalty": sampling.repetition_penalty or 1.0,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            body["seed"] = sampling.seed % 2**32
        if request.response_schema is not None:
            body["json_schema"] = request.response_schema
        sent = orjson.dumps(body)
        assert self._http is not None
        reply = await self._http.request("POST", "/completion", sent, request.deadline_s)
        answer: dict[str, Any] = decoded(reply)
        tokens = _columns(answer, request.top_logprobs)
        return Piece(
            text=answer["content"],
            tokens=tokens,
            finish_reason="length" if answer["stop_type"] == "limit" else "stop",
            ends_with_eos=len(tokens) > 0 and int(tokens.token_ids[-1]) in self._eos,
            request_hash=sha256(sent),
            response_hash=sha256(reply.body),
        )

    # -- the engine --------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        if self._http is not None:
            return
        engine = await asyncio.to_thread(_engine)
        self._http = AiohttpTransport(engine.url, {"Authorization": f"Bearer {engine.key}"})
        self._closing = await self._tokenize(CLOSING)
        ends = [await self._tokenize(text) for text in ("<|im_end|>", "<|endoftext|>")]
        self._eos = frozenset(ids[0] for ids in ends if len(ids) == 1)

    async def _call(self, method: str, path: str, body: object) -> dict[str, Any]:
        assert self._http is not None
        sent = None if body is None else orjson.dumps(body)
        return decoded(await self._http.request(method, path, sent, 60))

    async def _tokenize(self, text: str) -> list[int]:
        found = await self._call(
            "POST", "/tokenize", {"content": text, "add_special": False, "parse_special": True}
        )
        ids: list[int] = found["tokens"]
        return ids

    async def _prompt_ids(self, messages: list[Turn], prefill: str) -> list[int]:
        """The chat template rendered, and the prefill, as token ids. Siblings render once."""
        key = sha256(canonical_json(messages) + prefill.encode())
        known = self._prompts.get(key)
        if known is None:
            rendered = await self._call("POST", "/apply-template", {"messages": messages})
            known = await self._tokenize(str(rendered["prompt"]) + prefill)
            if len(self._prompts) > 1024:
                self._prompts.clear()
            self._prompts[key] = known
        return known


def _columns(answer: dict[str, Any], k: int) -> TokenColumns:
    ids = np.array(answer["tokens"], np.int32)
    if not k:
        return ids_only(ids)
    rows = answer.get("completion_probabilities") or []
    if len(rows) != len(ids) and len(ids):
        raise MalformedAnswer(f"llama.cpp returned {len(ids)} tokens and {len(rows)} rows of logprobs")
    candidates = np.full((len(rows), k), -1, np.int32)
    logprobs = np.full((len(rows), k), -np.inf, np.float32)
    for i, row in enumerate(rows):
        top = row["top_logprobs"][:k]
        candidates[i, : len(top)] = [one["id"] for one in top]
        logprobs[i, : len(top)] = [one["logprob"] for one in top]
    own = np.array([row["logprob"] for row in rows], np.float32)
    return token_columns(ids, candidates, logprobs, own, k)


def _usage(prompt_ids: list[int], pieces: tuple[Piece, ...]) -> Usage:
    made = [len(piece.tokens) for piece in pieces]
    return Usage(
        prompt_tokens=len(prompt_ids),
        completion_tokens=sum(made),
        reasoning_tokens=made[0] if len(made) > 1 else None,
    )
