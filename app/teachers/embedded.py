"""Driver `embedded`: a small real model in this process, through llama.cpp. No key, no GPU, no server to install.

Token ids go in and come out. Logprobs are of the raw distribution (temperature 1, before any truncation or grammar),
whatever the sampling; nothing is truncated unless it was asked for.
"""

import asyncio
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from app.domain.columns import TokenColumns, ids_only
from app.domain.fingerprints import sha256
from app.domain.reasoning import split_reasoning
from app.domain.sampling import SamplingParameters
from app.errors import InvalidInput, MalformedAnswer, NotFound, StorageError, TeacherUnavailable, Unsupported
from app.teachers import embedded_model, llama_cpp
from app.teachers.addresses import TeacherAccess
from app.teachers.base import Capabilities, GenerateRequest, Generation, TeacherSpec, Turn, Usage
from app.teachers.elicit import BEGIN, END, Forced, Piece, elicit, instructed
from app.teachers.embedded_shots import with_shots
from app.teachers.gguf_metadata import read_metadata
from app.teachers.llama_rows import placed, tokens_before
from app.teachers.pressure import Pressure
from app.teachers.replies import json_of
from app.teachers.token_rows import columns_of_rows
from app.teachers.transport import LocalTransport

MAX_TOP_LOGPROBS = 128
_MARKS = b"<|im_start|>", b"<|im_end|>"  # ChatML, the model's template
_DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # the template's own


def token_texts(ids: list[int]) -> dict[int, str]:
    """The text of each token id; a piece of a character reads as �. Reads the model file, loads no model."""
    tokens = read_metadata(embedded_model.model_path()).tokens
    return {identifier: tokens[identifier].decode("utf-8", "replace") for identifier in ids}


class EmbeddedTeacher:
    """See `app.teachers.base.Teacher`."""

    def __init__(self, spec: TeacherSpec) -> None:
        """Raises `InvalidInput` for another model than the one there is, and for options."""
        if spec.model != embedded_model.MODEL:
            raise InvalidInput(f"the driver `embedded` has one model, {embedded_model.MODEL}")
        if spec.options or spec.base_url or spec.secret_ref:
            raise InvalidInput("the driver `embedded` takes no options, no base_url and no secret_ref")
        self._opening = asyncio.Lock()
        self._http: LocalTransport | None = None
        self._marks = (-1, -1)  # ids of _MARKS, known once the model is open
        self._texts: list[bytes] = []  # of each token id, as it stands in an answer; filled with _marks
        self._known: OrderedDict[str, list[int]] = OrderedDict()
        # More calls than the engine has slots wait here, where they hold none of its threads.
        self._room = asyncio.Semaphore(2 * llama_cpp.SLOTS)
        self._samples = 0  # under way, those that wait included

    async def capabilities(self) -> Capabilities:
        """Read from the model file: the engine is not loaded for it."""
        engine = llama_cpp.engine_version()
        try:
            path = embedded_model.model_path()
            metadata = await asyncio.to_thread(read_metadata, path)
        except (NotFound, StorageError) as error:
            return Capabilities(reachable=False, problems=(error.detail,))
        if engine is None:
            return Capabilities(
                reachable=False, problems=("there is no wheel of xllamacpp for this machine",)
            )
        return Capabilities(
            reachable=True,
            engine=engine,
            served_model=f"{embedded_model.MODEL} {embedded_model.REVISION}",
            max_model_len=llama_cpp.CONTEXT,
            max_top_logprobs=MAX_TOP_LOGPROBS,
            token_ids=True,
            prompt_token_ids=True,
            seed=True,
            tokenizer_sha256=metadata.tokenizer_sha256,
            chat_template_sha256=sha256(metadata.chat_template.encode()).hex(),
            vocab_size=len(metadata.tokens),
        )

    async def generate(self, request: GenerateRequest) -> list[Generation]:
        _check(request)
        await self._open()
        count = len(request.sample_indices)
        self._samples += count
        try:
            return list(
                await asyncio.gather(*(self._sample(request, index) for index in request.sample_indices))
            )
        finally:
            self._samples -= count

    async def pressure(self) -> Pressure | None:
        """Counted here: the engine's own metrics know neither what it has not read yet nor who waits before it."""
        running = min(self._samples, llama_cpp.SLOTS)
        return Pressure(running=running, waiting=self._samples - running)

    async def score(self, prompt_ids: list[int], token_ids: list[int], top_logprobs: int) -> TokenColumns:
        raise Unsupported(
            "the embedded teacher does not score given text: llama.cpp's server has no such call"
        )

    async def aclose(self) -> None:
        """The engine stays: it belongs to the process."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    # -- one sample --------------------------------------------------------------------------------------------

    async def _sample(self, request: GenerateRequest, index: int) -> Generation:
        sampling = request.sampling.for_sample(index)
        messages = request.messages
        if request.elicit is not None:
            messages = with_shots(instructed(messages, request.elicit))
        prompt = await self._prompt_ids(messages)
        room = llama_cpp.CONTEXT - len(prompt) - 1
        if room < 1:
            raise Unsupported(
                f"the prompt has {len(prompt)} tokens and the embedded teacher takes {llama_cpp.CONTEXT - 2}"
            )
        most = min(room, sampling.max_tokens or room)

        async def go_on(text: str, ids: list[int] | None, limit: int) -> Piece:
            return await self._piece(request, sampling, [*prompt, *(ids or [])], limit)

        if request.elicit is None:
            piece = await go_on("", [], most)
            split = split_reasoning(piece.text)
            made = Generation(
                sample_index=index,
                answer=split.answer,
                reasoning=split.reasoning,
                reasoning_source=None if split.reasoning is None else "native",
                reasoning_truncated=split.truncated,
                finish_reason=piece.finish_reason,
                usage=piece.usage,
                tokens=piece.tokens,
                request_hash=piece.request_hash,
                response_hash=piece.response_hash,
            )
        else:
            forced = Forced(begin=await self._ids_of(BEGIN), end=await self._ids_of(END))
            most = max(1, most - len(forced.begin) - len(forced.end))
            made = await elicit(index, go_on, request.elicit, most, forced, self._marks[1])
        columns = made.tokens
        if columns is not None:
            columns = replace(columns, prompt_ids=np.array(prompt, np.int32))
        return replace(made, tokens=columns, engine=llama_cpp.engine_version())

    async def _piece(
        self, request: GenerateRequest, sampling: SamplingParameters, ids: list[int], limit: int
    ) -> Piece:
        body = orjson.dumps(_completion(request, sampling, ids, limit))
        assert self._http is not None
        async with self._room:
            reply = await self._http.post("/completion", body, request.deadline_s)
        answer = json_of(reply)
        columns = await self._columns(request, ids, answer)
        return Piece(
            text=answer["content"],
            finish_reason="length" if answer["stop_type"] == "limit" else "stop",
            tokens=columns,
            usage=Usage(
                prompt_tokens=answer["tokens_evaluated"],
                completion_tokens=answer["tokens_predicted"],
                cached_tokens=answer["timings"]["cache_n"],
            ),
            request_hash=sha256(body),
            response_hash=sha256(reply.body),
        )

    # -- logprobs ----------------------------------------------------------------------------------------------

    async def _columns(
        self, request: GenerateRequest, before: list[int], answer: dict[str, Any]
    ) -> TokenColumns:
        """Columns of what was generated after `before`, without the tokens of a stop string."""
        ids: list[int] = answer["tokens"]
        texts = [self._texts[one] for one in ids]
        count = tokens_before(answer["stopping_word"], texts) if answer["stop_type"] == "word" else len(ids)
        k = request.top_logprobs
        if not k:
            return ids_only(np.array(ids[:count], np.int32))
        rows = placed(answer.get("completion_probabilities") or [], ids, texts)[:count]
        whole = [
            await self._row(request, [*before, *ids[:place]], ids[place]) if row is None else row
            for place, row in enumerate(rows)
        ]
        columns = columns_of_rows(whole, ids[:count], k)
        if columns is None:
            raise MalformedAnswer("llama.cpp answered without token ids")
        return columns

    async def _row(self, request: GenerateRequest, before: list[int], token: int) -> dict[str, Any]:
        """The row of a token that the engine gave none for: the same distribution, asked for once more.

        Another token is drawn in its place, one after which the engine does answer. Of candidates alone the token
        may be missing; then all of the vocabulary is asked for, half a second's work.
        """
        for width in (request.top_logprobs, len(self._texts)):
            body = {
                "prompt": before,
                "n_predict": 1,
                "n_probs": width,
                "temperature": 0.0,
                "logit_bias": [[self._marks[1], 1e9]],
            }
            assert self._http is not None
            async with self._room:
                reply = await self._http.post("/completion", orjson.dumps(body), request.deadline_s)
            rows = json_of(reply).get("completion_probabilities") or [{}]
            tops: list[dict[str, Any]] = rows[0].get("top_logprobs", [])
            for entry in tops:
                if entry["id"] == token:
                    return {**entry, "top_logprobs": tops[: request.top_logprobs]}
        raise MalformedAnswer(f"llama.cpp tells no logprob of token {token}, which it generated")

    # -- prompts -----------------------------------------------------------------------------------------------

    async def _prompt_ids(self, messages: tuple[Turn, ...]) -> list[int]:
        """The model's chat template, by token ids: text of a prompt never becomes one of the template's marks."""
        opening, closing = self._marks
        newline = await self._ids_of("\n")
        turns = [(_role(turn), _text(turn)) for turn in messages]
        if not turns or turns[0][0] != "system":
            turns.insert(0, ("system", _DEFAULT_SYSTEM))
        ids: list[int] = []
        for role, text in turns:
            ids += [opening, *await self._ids_of(f"{role}\n{text}"), closing, *newline]
        return [*ids, opening, *await self._ids_of("assistant\n")]

    async def _ids_of(self, text: str) -> list[int]:
        known = self._known.get(text)
        if known is not None:
            self._known.move_to_end(text)
            return known
        assert self._http is not None
        asked = {"content": text, "add_special": False, "parse_special": False}
        found: list[int] = json_of(await self._http.post("/tokenize", orjson.dumps(asked), 60))["tokens"]
        self._known[text] = found
        if len(self._known) > 512:
            self._known.popitem(last=False)
        return found

    async def _open(self) -> None:
        """Load the model into this process, unless it is there. Raises `TeacherUnavailable`."""
        async with self._opening:
            if self._http is not None:
                return
            try:
                path = await asyncio.to_thread(embedded_model.verified_path)
                metadata = await asyncio.to_thread(read_metadata, path)
            except (NotFound, StorageError) as error:
                raise TeacherUnavailable(error.detail) from error
            engine = await asyncio.to_thread(llama_cpp.running, path)
            opening, closing = (metadata.tokens.index(mark) for mark in _MARKS)
            self._marks = (opening, closing)
            self._texts = [
                b"" if identifier in metadata.control else text
                for identifier, text in enumerate(metadata.tokens)
            ]
            self._http = LocalTransport(
                engine.url, TeacherAccess(allow_loopback=True), {"Authorization": f"Bearer {engine.key}"}
            )


def _check(request: GenerateRequest) -> None:
    """Raises `Unsupported` for what this teacher has no notion of, rather than pass over it."""
    if request.top_logprobs > MAX_TOP_LOGPROBS:
        raise Unsupported(f"the embedded teacher gives at most {MAX_TOP_LOGPROBS} top logprobs")
    if request.tools:
        raise Unsupported("the embedded teacher takes no tools: its chat template has no place for them")
    if request.sampling.chat_template_kwargs:
        raise Unsupported("the embedded teacher's chat template takes no arguments")
    if request.sampling.reasoning_effort:
        raise Unsupported("the embedded teacher takes no reasoning_effort")
    if request.sampling.thinking_token_budget is not None:
        raise Unsupported(
            "the embedded teacher takes no thinking_token_budget: elicitation has one of its own"
        )


def _completion(
    request: GenerateRequest, sampling: SamplingParameters, ids: list[int], limit: int
) -> dict[str, Any]:
    """The body for llama.cpp's `/completion`. Its own defaults truncate; ours do not."""
    body: dict[str, Any] = {
        "prompt": ids,
        "n_predict": limit,
        "n_probs": request.top_logprobs,
        "return_tokens": True,
        "temperature": 1.0 if sampling.temperature is None else sampling.temperature,
        "top_k": sampling.top_k or 0,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "min_p": sampling.min_p or 0.0,
        "presence_penalty": sampling.presence_penalty or 0.0,
        "frequency_penalty": sampling.frequency_penalty or 0.0,
        "repeat_penalty": sampling.repetition_penalty or 1.0,
        "repeat_last_n": llama_cpp.CONTEXT,
        "stop": list(sampling.stop or ()),
        "seed": -1 if sampling.seed is None else sampling.seed % (2**32 - 1),  # 2³²−1 would mean: any
    }
    if request.response_schema is not None:
        body["json_schema"] = request.response_schema
    return body


def _role(turn: Turn) -> str:
    role = str(turn.get("role"))
    return "system" if role == "developer" else role


def _text(turn: Turn) -> str:
    """A turn's text. Raises `Unsupported` for images and the like."""
    content = turn.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = (
        [part.get("text") for part in content if isinstance(part, dict)]
        if isinstance(content, list)
        else [None]
    )
    if any(not isinstance(text, str) for text in texts):
        raise Unsupported("the embedded teacher reads text only")
    return "".join(str(text) for text in texts)
