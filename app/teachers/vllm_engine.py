"""Driver `vllm-engine`: vLLM in the worker's own process, for one machine with a GPU and no server. Extra `vllm`.

An engine takes the whole GPU, so one process of a machine has it: a file lock holds the others off, a Celery child of a
prefork pool among them. Only a worker loads it; elsewhere (the API, which checks and probes) nothing is loaded.
"""

import asyncio
import fcntl
import hashlib
import importlib.util
import json
import os
import tempfile
from collections import OrderedDict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from app.domain.columns import Int32, TokenColumns
from app.domain.fingerprints import fingerprint as hash_of
from app.domain.fingerprints import sha256
from app.domain.reasoning import OPEN
from app.errors import (
    InvalidInput,
    MalformedAnswer,
    PermanentTeacherError,
    TeacherError,
    TeacherUnavailable,
    TransientTeacherError,
    Unsupported,
)
from app.teachers.base import Capabilities, GenerateRequest, Generation, TeacherSpec, Turn
from app.teachers.chat_answers import usage_of
from app.teachers.compact import columns_of
from app.teachers.elicit import instructed
from app.teachers.inside_vllm.retort_route.about import about
from app.teachers.inside_vllm.retort_route.middleware import refusal_of
from app.teachers.inside_vllm.retort_route.request import Refused, answer, run
from app.teachers.token_path import TokenPath
from app.teachers.vllm_probe import CONVERSATIONS, SAMPLE, masked
from app.teachers.vllm_prompts import Rendered, template_arguments
from app.teachers.vllm_requests import TokenAnswer, TokenRequest, compact_body, compact_score_body

_OURS = {"model", "revision", "logprobs_mode"}  # of the engine's arguments: not for `options`
_RENDERED = 4096  # conversations whose ids are kept

_worker: int | None = None  # the process that may load; a child that is forked from it is another one


def load_in_this_process() -> None:
    """Called once by a worker: teachers of this driver may take this machine's GPU for it."""
    global _worker
    _worker = os.getpid()


@dataclass(frozen=True)
class _Engine:
    engine: Any  # vllm.v1.engine.async_llm.AsyncLLM
    tokenizer: Any
    told: dict[str, Any]  # what the compact route tells of a server
    lock: IO[str]


class VllmEngineTeacher:
    """See `app.teachers.base.Teacher`."""

    def __init__(self, spec: TeacherSpec) -> None:
        """Raises `InvalidInput` for what an engine in this process has no use for."""
        if spec.base_url or spec.secret_ref:
            raise InvalidInput(
                "the driver `vllm-engine` runs in the worker: it takes no base_url and no secret_ref"
            )
        unknown = sorted(set(spec.options) - {"engine"})
        if unknown:
            raise InvalidInput(
                f"the driver `vllm-engine` takes the option `engine`, not {', '.join(unknown)}"
            )
        arguments = spec.options.get("engine", {})
        if not isinstance(arguments, dict) or _OURS & set(arguments):
            raise InvalidInput(
                "`engine` holds vLLM's engine arguments by name, for example "
                '{"max_model_len": 8192, "max_logprobs": 128}, and none of ' + ", ".join(sorted(_OURS))
            )
        self._spec = spec
        self._arguments: dict[str, Any] = {"max_logprobs": 128, **arguments}
        self._engine: _Engine | None = None
        self._loading: asyncio.Task[_Engine] | None = None
        self._rendered: OrderedDict[bytes, Rendered] = OrderedDict()

    async def capabilities(self) -> Capabilities:
        """In a worker the engine is loaded for it, which may take minutes; a lane waits for it."""
        if _worker != os.getpid():
            return self._unloaded()
        try:
            loaded = await self._loaded()
        except TeacherError as error:
            return Capabilities(reachable=False, problems=(error.detail,))
        told, tokenizer = loaded.told, loaded.tokenizer
        texts = [self._probed(tokenizer, list(turns)) for turns in CONVERSATIONS]
        return Capabilities(
            reachable=True,
            engine=f"vllm {told['engine_version']}",
            served_model=f"{self._spec.model}" + (f"@{told['revision']}" if told["revision"] else ""),
            max_model_len=told["max_model_len"],
            max_top_logprobs=told["max_logprobs"],
            token_ids=True,
            prompt_token_ids=True,
            native_n=True,
            seed=True,
            scoring=True,
            tokenizer_sha256=hash_of(_encoded(tokenizer, SAMPLE)).hex(),
            chat_template_sha256=sha256("\0".join(texts).encode()).hex(),
            vocab_size=told["vocab_size"],
            weights_sha256=told["weights_sha256"],
            details={
                name: told[name]
                for name in (
                    "dtype",
                    "quantization",
                    "hardware",
                    "logprobs_mode",
                    "max_logprobs",
                    "fingerprint",
                )
            },
        )

    async def generate(self, request: GenerateRequest) -> list[Generation]:
        loaded = await self._loaded()
        if request.tools:
            raise Unsupported(
                "the engine by itself does not parse tool calls: use the driver `vllm` with a server"
            )
        if request.top_logprobs > loaded.told["max_logprobs"]:
            raise Unsupported(f"this teacher gives at most {loaded.told['max_logprobs']} top logprobs")
        messages = (
            request.messages if request.elicit is None else instructed(request.messages, request.elicit)
        )
        rendered = self._render(loaded, messages, template_arguments(request.sampling))

        async def ids_of(text: str) -> list[int]:
            return _encoded(loaded.tokenizer, text)

        async def text_of(ids: Int32) -> str:
            return str(loaded.tokenizer.decode(ids.tolist(), skip_special_tokens=True))

        async def ask(asked: TokenRequest, seconds: float) -> list[TokenAnswer]:
            return await self._ask(loaded, asked, seconds)

        path = TokenPath(
            ask=ask,
            ids_of=ids_of,
            text_of=text_of,
            engine=f"vllm {loaded.told['engine_version']}",
            max_model_len=loaded.told["max_model_len"],
            takes_priority=loaded.told["priority"],
            reasoning_end_ids=tuple(loaded.told["reasoning_end_ids"] or ()),
        )
        return await path.generate(request, rendered, at_once=len(request.sample_indices))

    async def score(self, prompt_ids: list[int], token_ids: list[int], top_logprobs: int) -> TokenColumns:
        loaded = await self._loaded()
        if not prompt_ids or len(prompt_ids) + len(token_ids) >= loaded.told["max_model_len"]:
            raise Unsupported(
                f"one token of a prompt at least, and fewer than {loaded.told['max_model_len']} in all"
            )
        ids, start = [*prompt_ids, *token_ids], len(prompt_ids)
        asked = orjson.loads(compact_score_body("", ids, start, top_logprobs))
        final = await self._final(loaded, asked, "score", 600.0)
        _, prompt = answer(final, asked, str)
        assert prompt is not None
        return columns_of(prompt, top_logprobs, np.array(prompt_ids, np.int32))

    async def aclose(self) -> None:
        """Gives the GPU back."""
        loading, self._loading, self._engine = self._loading, None, None
        if loading is None:
            return
        try:
            loaded = await loading
        except TeacherError:
            return
        await asyncio.to_thread(_shut_down, loaded)

    # -- the engine ------------------------------------------------------------------------------------------------

    def _unloaded(self) -> Capabilities:
        if importlib.util.find_spec("vllm") is None:
            return Capabilities(
                reachable=False,
                problems=("vLLM is not installed here: the extra `vllm` brings it (retort[vllm])",),
            )
        most = self._arguments["max_logprobs"]
        return Capabilities(
            reachable=True,
            engine="vllm",
            served_model=self._spec.model,
            max_top_logprobs=most if isinstance(most, int) and most > 0 else 0,
            token_ids=True,
            native_n=True,
            seed=True,
            scoring=True,
            problems=("The engine is loaded by a worker with the first job: the rest is known then.",),
        )

    async def _loaded(self) -> _Engine:
        """The engine, loaded by the first call; all wait for the same one. Raises `TeacherUnavailable`."""
        if self._engine is not None:
            return self._engine
        if _worker != os.getpid():
            raise TeacherUnavailable("only a worker runs the engine of this driver")
        if self._loading is None or (self._loading.done() and self._loading.exception() is not None):
            self._loading = asyncio.create_task(asyncio.to_thread(self._load))
        self._engine = await asyncio.shield(self._loading)
        return self._engine

    def _load(self) -> _Engine:
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # this process has threads
        try:
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise TeacherUnavailable(f"vLLM cannot be loaded here: {error}") from error
        strange = sorted(set(self._arguments) - {field.name for field in fields(AsyncEngineArgs)})
        if strange:
            raise TeacherUnavailable(
                f"vLLM's engine takes no {', '.join(strange)}: mend the teacher's options.engine"
            )
        lock = _hold(self._spec, self._arguments)
        try:
            arguments = AsyncEngineArgs(
                model=self._spec.model,
                revision=self._spec.revision if not Path(self._spec.model).is_dir() else None,
                logprobs_mode="raw_logprobs",
                **self._arguments,
            )
            engine = AsyncLLM.from_engine_args(arguments)
        except Exception as error:  # vLLM raises whatever its parts raise: no GPU, no memory, no such model
            lock.close()
            raise TeacherUnavailable(
                f"vLLM's engine does not start: {type(error).__name__}: {error}"
            ) from error
        return _Engine(engine, engine.get_tokenizer(), about(engine), lock)

    async def _ask(self, loaded: _Engine, asked: TokenRequest, seconds: float) -> list[TokenAnswer]:
        body = compact_body("", asked)
        request = orjson.loads(body)
        final = await self._final(loaded, request, asked.request_id or "retort", seconds)
        choices, _ = answer(
            final, request, lambda ids: loaded.tokenizer.decode(ids, skip_special_tokens=True)
        )
        made = sum(len(choice.rows.ids) for choice in choices)
        usage = {
            "prompt_tokens": len(asked.ids),
            "completion_tokens": made,
            "total_tokens": len(asked.ids) + made,
        }
        details = {"prompt_tokens_details": {"cached_tokens": final.num_cached_tokens}}
        return [
            TokenAnswer(
                index=choice.index,
                text=choice.text,
                finish_reason=choice.finish_reason or "unknown",
                stop_reason=choice.stop_reason,
                tokens=columns_of(choice.rows, asked.top_logprobs or None, asked.ids),
                usage=usage_of({**usage, **details}, len(choices), position, len(choice.rows.ids)),
                fingerprint=loaded.told["fingerprint"],
                request_hash=sha256(body),
                response_hash=sha256(choice.rows.ids.tobytes() + choice.rows.logprobs.tobytes()),
            )
            for position, choice in enumerate(choices)
        ]

    async def _final(self, loaded: _Engine, asked: dict[str, Any], request_id: str, seconds: float) -> Any:
        """The engine's output; cancelling it, or its deadline, aborts it in the engine."""
        try:
            async with asyncio.timeout(seconds):
                return await run(loaded.engine, asked, request_id)
        except TimeoutError as error:
            raise TransientTeacherError(f"no whole answer within {seconds:.0f} s") from error
        except Refused as refused:
            raise TransientTeacherError(refused.message) from refused
        except Exception as error:
            meant = refusal_of(error)
            if meant.status < 500:
                raise PermanentTeacherError(meant.message) from error
            if not loaded.engine.errored:
                raise TransientTeacherError(meant.message) from error
            if self._engine is loaded:  # dead: the next call loads it anew
                self._engine = self._loading = None
                await asyncio.to_thread(_shut_down, loaded)
            raise TeacherUnavailable(meant.message) from error

    # -- prompts -----------------------------------------------------------------------------------------------

    def _render(self, loaded: _Engine, messages: tuple[Turn, ...], arguments: dict[str, Any]) -> Rendered:
        key = hash_of([list(messages), arguments])
        known = self._rendered.get(key)
        if known is None:
            text = self._text(loaded.tokenizer, list(messages), arguments)
            ids = np.array(_encoded(loaded.tokenizer, text), np.int32)
            known = self._rendered[key] = Rendered(ids, text.rstrip("\n").endswith(OPEN))
            if len(self._rendered) > _RENDERED:
                self._rendered.popitem(last=False)
        return known

    def _probed(self, tokenizer: Any, messages: list[Turn]) -> str:
        try:
            return masked(self._text(tokenizer, messages, {}))
        except PermanentTeacherError:
            return "refused"  # e.g. a template without system messages

    def _text(self, tokenizer: Any, messages: list[Turn], arguments: dict[str, Any]) -> str:
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **arguments
            )
        except Exception as error:  # templates are programs of the model's maker: they raise what they like
            raise PermanentTeacherError(f"the chat template refuses the messages: {error}") from error
        if not isinstance(text, str):
            raise MalformedAnswer("the chat template gave no text")
        return text


def _encoded(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _hold(spec: TeacherSpec, arguments: dict[str, Any]) -> IO[str]:
    """A lock that lives as long as the engine. Raises `TeacherUnavailable` where another process has it."""
    place = [spec.model, spec.revision, arguments, os.environ.get("CUDA_VISIBLE_DEVICES")]
    name = hashlib.sha256(json.dumps(place, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"retort-vllm-engine-{os.getuid()}-{name}.lock"
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise TeacherUnavailable(
            f"the engine of this teacher runs in process {holder} of this machine already: one worker process has it. "
            "Start workers for this teacher with `retort worker --teacher`, one a GPU"
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _shut_down(loaded: _Engine) -> None:
    loaded.engine.shutdown()
    loaded.lock.close()
