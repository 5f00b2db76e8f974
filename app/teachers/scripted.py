"""A scripted teacher: a real HTTP server in vLLM's shape, with answers, faults and rates from a script.

For tests and benchmarks of everything around a teacher; it proves nothing about one, and no driver is named after it.

    python -m app.teachers.scripted --port 0 --script '{"tokens": 64, "faults": [{"kind": "429", "share": 0.1}]}'

The first line it prints is its URL. The same prompt, seed and sample index give the same answer. `GET /_stats` tells
calls, samples (`?prompt=…`: of one prompt, too) and slot-seconds; `POST /_script` replaces the script while it runs.
"""

import argparse
import asyncio
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from app.teachers.inside_vllm.retort_route.wire import GENERATE, INFO, MEDIA_TYPE
from app.teachers.scripted_faults import Fault, after, before, json_response
from app.teachers.scripted_tokens import (
    Conversations,
    about,
    candidates,
    compact_payload,
    ids_of,
    logprob_of,
    prompt_logprobs,
    sample_ids,
    sampled_logprob,
    text_of,
)

Route = Literal["chat", "completions", "compact"]


class Script(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "scripted"
    version: str = "0.32.0"
    tokens: int = Field(64, ge=1, description="Length of an answer, at most the request's max_tokens.")
    shortest: int | None = Field(None, ge=1, description="Lengths differ, by hash, from this up to `tokens`.")
    max_logprobs: int = 20
    reasoning: Literal["none", "reasoning", "reasoning_content", "think"] = "none"
    delay: float = Field(0.0, ge=0, description="Seconds before each answer.")
    delay_per_token: float = Field(0.0, ge=0)
    slots: int | None = Field(None, ge=1, description="Answers made at the same time; the rest waits.")
    counted: str = Field(
        "", description="Slot-seconds count for prompts that contain this; a probe's do not."
    )
    native_n: bool = True
    compact: bool = Field(True, description="The compact route is there.")
    logprobs_mode: str = "raw_logprobs"
    down: bool = False
    faults: tuple[Fault, ...] = ()

    @property
    def fingerprint(self) -> str:
        return f"vllm-{self.version}-scripted"


def length_of(key: str, script: Script) -> int:
    """How many tokens the answer to this prompt has, before the request's own limit."""
    if script.shortest is None:
        return script.tokens
    drawn = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return script.shortest + int(drawn * (script.tokens + 1 - script.shortest))


def _token_name(as_ids: bool) -> Callable[[int], str]:
    return "token_id:{}".format if as_ids else " t{}".format


@lru_cache(maxsize=4096)
def _chat_logprobs(ids: tuple[int, ...], k: int, as_ids: bool) -> bytes:
    name = _token_name(as_ids)

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = name(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = []
    for token in ids:
        own = sampled_logprob(token, k)
        # vLLM returns the first k of {sampled, top 1 … top k}, the sampled one first.
        ranked = [(token, own)] + [c for c in candidates(token, k) if c[0] != token]
        content.append({**entry(token, own), "top_logprobs": [entry(i, lp) for i, lp in ranked[:k]]})
    return orjson.dumps({"content": content})


@lru_cache(maxsize=4096)
def _completion_logprobs(ids: tuple[int, ...], k: int, as_ids: bool) -> bytes:
    name = _token_name(as_ids)
    return orjson.dumps(
        {
            "tokens": [name(i) for i in ids],
            "token_logprobs": [sampled_logprob(i, k) for i in ids],
            "top_logprobs": [
                {name(c): lp for c, lp in [(i, sampled_logprob(i, k)), *candidates(i, k)]} for i in ids
            ],
            "text_offset": [0] * len(ids),
        }
    )


class ScriptedTeacher:
    """The server's state. One event loop."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls = 0
        self.samples = 0
        self.by_prompt: Counter[str] = Counter()
        self._conversations = Conversations()
        self.samples_by_prompt: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.busy_seconds = 0.0
        self.running = self.waiting = 0
        self.first_call = self.last_call = 0.0
        self.answered_bytes = 0
        self._counted, self._starts = 0, 0.0  # answers that are being made, and when they began, summed
        self.last_arrival = self.busy_at_last_arrival = 0.0
        self._slots = asyncio.Semaphore(script.slots or 1_000_000)

    def application(self) -> web.Application:
        made = web.Application(client_max_size=64 * 1024 * 1024)
        made.router.add_get("/_stats", self.stats)
        made.router.add_post("/_script", self.replace)
        made.router.add_get("/version", self.version)
        made.router.add_get("/v1/models", self.models)
        made.router.add_get("/metrics", self.metrics)
        made.router.add_post("/tokenize", self.tokenize)
        made.router.add_post("/detokenize", self.detokenize)
        made.router.add_post("/v1/chat/completions", self.chat)
        made.router.add_post("/v1/completions", self.completions)
        made.router.add_get(INFO, self.about)
        made.router.add_post(GENERATE, self.compact)
        return made

    async def stats(self, request: web.Request) -> web.Response:
        return json_response(
            {
                "calls": self.calls,
                "samples": self.samples,
                "prompts": len(self.by_prompt),
                "most_for_one_prompt": max(self.by_prompt.values(), default=0),
                "samples_for_prompt": self.samples_by_prompt[request.query.get("prompt", "")],
                "faults": dict(self.faults),
                "answered_bytes": self.answered_bytes,
                "busy_seconds": self.busy_seconds,
                "running": self.running,
                "waiting": self.waiting,
                "slots": self.script.slots,
                "span_seconds": max(0.0, self.last_call - self.first_call),
                # Until the last call came: from then on there is not work enough for every slot.
                "fed_seconds": max(0.0, self.last_arrival - self.first_call),
                "fed_busy_seconds": self.busy_at_last_arrival,
            }
        )

    async def replace(self, request: web.Request) -> web.Response:
        self.script = Script.model_validate_json(await request.read())
        self._slots = asyncio.Semaphore(self.script.slots or 1_000_000)
        if request.query.get("reset"):
            self.calls = self.samples = self.answered_bytes = 0
            self.by_prompt.clear()
            self.samples_by_prompt.clear()
            self.faults.clear()
            self.busy_seconds = self.first_call = self.last_call = 0.0
            self.last_arrival = self.busy_at_last_arrival = 0.0
        return json_response({})

    async def version(self, request: web.Request) -> web.StreamResponse:
        return self._refusing() or json_response({"version": self.script.version})

    async def models(self, request: web.Request) -> web.StreamResponse:
        model = {"id": self.script.model, "object": "model", "owned_by": "vllm", "max_model_len": 32768}
        return self._refusing() or json_response({"object": "list", "data": [model]})

    def _refusing(self) -> web.Response | None:
        return web.Response(status=503, text="down") if self.script.down else None

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            text=(
                f'vllm:num_requests_running{{engine="0"}} {self.running}\n'
                f'vllm:num_requests_waiting{{engine="0"}} {self.waiting}\n'
                'vllm:kv_cache_usage_perc{engine="0"} 0.1\n'
                'vllm:num_preemptions_total{engine="0"} 0\n'
            )
        )

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        if self.script.down:
            return web.Response(status=503, text="down")
        if "messages" in body:
            ids = self._conversations.render(body["messages"])
        else:
            ids = ids_of(body["prompt"], max(1, len(body["prompt"]) // 4))
        return json_response({"tokens": ids, "count": len(ids), "max_model_len": 32768})

    async def detokenize(self, request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        return json_response({"prompt": text_of(tuple(body["tokens"]))})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        if not body.get("messages"):
            return json_response(
                {"error": {"message": "no messages", "type": "BadRequestError", "code": 400}}, 400
            )
        key = str(body["messages"][-1].get("content"))
        k = int(body.get("top_logprobs") or 0) if body.get("logprobs") else 0
        return await self._answer(request, body, key, k, "chat")

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        key = self._conversations.key(body["prompt"])
        return await self._answer(request, body, key, int(body.get("logprobs") or 0), "completions")

    async def about(self, request: web.Request) -> web.StreamResponse:
        script = self.script
        if not script.compact:
            return web.Response(status=404, text="not found")
        told = about(
            script.model, script.version, script.max_logprobs, script.logprobs_mode, script.fingerprint
        )
        return self._refusing() or json_response(told)

    async def compact(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        if not self.script.compact:
            return web.Response(status=404, text="not found")
        key = self._conversations.key(body["prompt_token_ids"])
        return await self._answer(request, body, key, int(body.get("top_logprobs") or 0), "compact")

    async def _answer(
        self, request: web.Request, body: dict[str, Any], key: str, k: int, route: Route
    ) -> web.StreamResponse:
        script = self.script
        now = time.monotonic()
        counted = script.counted in key
        if counted:
            self.first_call = self.first_call or now
            self.last_arrival = now
            self.busy_at_last_arrival = self.busy_seconds + self._counted * now - self._starts
        self.calls += 1
        self.by_prompt[key] += 1
        if script.down:
            return web.Response(status=503, text="down")
        if k > script.max_logprobs:
            message = f"Requested logprobs of {k}, which is greater than max allowed: {script.max_logprobs}"
            return json_response({"error": {"message": message, "type": "BadRequestError", "code": 400}}, 400)
        if body.get("model") not in (None, script.model):
            message = f"The model `{body['model']}` does not exist."
            return json_response({"error": {"message": message, "type": "NotFoundError", "code": 404}}, 404)
        n = int(body.get("n") or 1)
        if n > 1 and not script.native_n:
            return json_response(
                {"error": {"message": "n must be 1", "type": "BadRequestError", "code": 400}}, 400
            )
        fault = self._fault(key)
        if fault is not None:
            self.faults[fault.kind] += 1
            early = await before(request, fault)
            if early is not None:
                return early
        length = length_of(key, script)
        count = min(length, int(body.get("max_tokens") or body.get("max_completion_tokens") or 1 << 30))
        await self._generate(count * n, counted)
        self.samples += n
        self.samples_by_prompt[key] += n
        prompt = self._conversations.render(body["messages"]) if route == "chat" else body.get("prompt")
        cut_short = count < length
        payload = _payload(body, key, prompt, k, n, count, route, script, fault, cut_short)
        kind = MEDIA_TYPE if route == "compact" else "application/json"
        if counted:
            self.last_call = time.monotonic()
        if fault is not None:
            late = await after(request, fault, payload, kind)
            if late is not None:
                return late
        self.answered_bytes += len(payload)
        return web.Response(body=payload, content_type=kind)

    async def _generate(self, tokens: int, counted: bool) -> None:
        seconds = self.script.delay + self.script.delay_per_token * tokens
        if self.script.slots is None and not seconds:
            return
        self.waiting += 1
        try:
            async with self._slots:
                self.waiting -= 1
                self.running += 1
                start = time.monotonic()
                self._counted += counted
                self._starts += start * counted
                try:
                    await asyncio.sleep(seconds)
                finally:
                    self.running -= 1
                    self.waiting += 1
                    self._counted -= counted
                    self._starts -= start * counted
                    self.busy_seconds += (time.monotonic() - start) * counted
        finally:
            self.waiting -= 1

    def _fault(self, key: str) -> Fault | None:
        for fault in self.script.faults:
            if fault.contains is not None and fault.contains not in key:
                continue
            if fault.first_calls is not None and self.by_prompt[key] > fault.first_calls:
                continue
            if fault.share < 1:
                drawn = hashlib.sha256(f"{fault.kind}{key}{self.by_prompt[key]}".encode()).digest()
                if int.from_bytes(drawn[:4], "big") / 2**32 >= fault.share:
                    continue
            return fault
        return None


def _payload(
    body: dict[str, Any],
    key: str,
    prompt: Any,
    k: int,
    n: int,
    count: int,
    route: Route,
    script: Script,
    fault: Fault | None,
    cut_short: bool,
) -> bytes:
    kind = fault.kind if fault is not None else None
    finish = "length" if cut_short else "stop"
    if route == "compact":
        return compact_payload(body, key, count, finish, script.model, script.fingerprint, kind)
    chat = route == "chat"
    as_ids, return_ids = bool(body.get("return_tokens_as_token_ids")), bool(body.get("return_token_ids"))
    seed = body.get("seed")
    choices = []
    for index in range(n):
        ids = sample_ids(key, seed, index, count)
        choice: dict[str, Any] = {
            "index": index,
            "finish_reason": finish,
        }
        if chat:
            choice["message"] = _message(text_of(ids), script.reasoning)
        else:
            choice["text"] = text_of(ids)
            if body.get("prompt_logprobs") is not None:
                choice["prompt_logprobs"] = prompt_logprobs(
                    tuple(body["prompt"]), int(body["prompt_logprobs"])
                )
        if (k or body.get("logprobs")) and kind != "no-logprobs":
            made = (_chat_logprobs if chat else _completion_logprobs)(ids, k, as_ids)
            if kind == "nan-logprobs":
                made = made.replace(b"%s," % orjson.dumps(logprob_of(0)), b"NaN,")
            elif kind == "zero-logprobs":
                made = _flattened(made)
            choice["logprobs"] = orjson.Fragment(made)
        if return_ids:
            choice["token_ids"] = ids
        choices.append(choice)
    answer: dict[str, Any] = {
        "id": "scripted",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": script.model,
        "system_fingerprint": script.fingerprint,
        "choices": choices,
    }
    if return_ids:
        answer["prompt_token_ids"] = prompt
    if kind != "no-usage":
        prompt = max(1, len(key) // 4)
        answer["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": count * n,
            "total_tokens": prompt + count * n,
        }
    return orjson.dumps(answer)


def _flattened(logprobs: bytes) -> bytes:
    """All logprobs 0 or −9999, as some APIs return them."""

    def walk(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {k: (0.0 if k == "logprob" else walk(v, k)) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(v, name) for v in value]
        return -9999.0 if isinstance(value, float) else value

    return orjson.dumps(walk(orjson.loads(logprobs)))


def _message(text: str, reasoning: str) -> dict[str, Any]:
    trace = "I look at the words one by one."
    match reasoning:
        case "reasoning" | "reasoning_content":
            return {"role": "assistant", "content": text, reasoning: trace}
        case "think":
            return {"role": "assistant", "content": f"<think>\n{trace}\n</think>\n\n{text}"}
    return {"role": "assistant", "content": text}


async def serve(script: Script, host: str, port: int) -> None:
    """Run until cancelled."""
    runner = web.AppRunner(ScriptedTeacher(script).application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, port, backlog=1024)
    await site.start()
    bound = runner.addresses[0][1]
    print(f"http://{host}:{bound}", flush=True)  # noqa: T201 - whoever started it reads this
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(prog="app.teachers.scripted", description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", default="{}", help="the script as JSON")
    given = parser.parse_args()
    try:
        asyncio.run(serve(Script.model_validate_json(given.script), given.host, given.port))
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
