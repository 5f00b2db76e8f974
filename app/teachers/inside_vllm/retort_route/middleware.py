"""The ASGI side: two paths, the key, the size of the body, a client that leaves, errors as JSON."""

import asyncio
import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from .about import about, fingerprint
from .request import Refused, answer, read_request, run
from .wire import GENERATE, INFO, MEDIA_TYPE, encode

log = logging.getLogger("retort_route")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_ROOM = 1024 * 1024  # bytes of a body beside 16 for each token id of the longest prompt


class CompactRoute:
    """An ASGI middleware that answers two paths of its own and hands everything else on."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._about: dict[str, Any] | None = None
        self._looking = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", "")).removeprefix(scope.get("root_path") or "")
        if scope["type"] != "http" or path not in (GENERATE, INFO):
            await self._app(scope, receive, send)
            return
        try:
            status, kind, body = await self._reply(path, scope, receive)
        except Refused as refused:
            status, kind, body = refused.status, "application/json", _problem(refused)
        except _Gone:
            return
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _reply(self, path: str, scope: Scope, receive: Receive) -> tuple[int, str, bytes]:
        state = scope["app"].state
        _authenticate(scope, state)
        method = "POST" if path == GENERATE else "GET"
        if scope["method"] != method:
            raise Refused(405, f"{path} takes {method}")
        engine = getattr(state, "engine_client", None)
        if engine is None:
            raise Refused(503, "the server has no engine yet")
        if path == INFO:
            return 200, "application/json", json.dumps(await self._info(state, engine)).encode()
        length = engine.model_config.max_model_len
        asked = read_request(await _body(scope, receive, _ROOM + 16 * length), length)
        served = _served_names(state)
        if "model" in asked and asked["model"] not in served:
            raise Refused(404, f"the model {asked['model'][:200]!r} is not served here", "model")
        request_id = f"retort-{asked.get('request_id') or secrets.token_hex(8)}"
        started = time.monotonic()
        final = await _unless_gone(run(engine, asked, request_id), receive)
        for output in final.outputs:
            if output.finish_reason == "error":
                raise Refused(500, "the engine failed at this request")
        tokenizer = engine.get_tokenizer()
        if hasattr(tokenizer, "__await__"):
            tokenizer = await tokenizer
        try:
            choices, prompt = answer(
                final, asked, lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
            )
        except ValueError as error:
            raise Refused(500, str(error)) from error
        header = {
            "model": asked.get("model") or served[0],
            "fingerprint": fingerprint(engine),
            "request_id": request_id,
            "k": asked.get("top_logprobs"),
            "prompt_k": asked.get("prompt_logprobs"),
            "prompt_tokens": len(asked["prompt_token_ids"]),
            "cached_tokens": getattr(final, "num_cached_tokens", None),
            "engine_seconds": round(time.monotonic() - started, 3),
        }
        return 200, MEDIA_TYPE, encode(header, choices, prompt)

    async def _info(self, state: Any, engine: Any) -> dict[str, Any]:
        async with self._looking:
            if self._about is None:
                self._about = await asyncio.get_running_loop().run_in_executor(None, about, engine)
        return {**self._about, "models": list(_served_names(state))}


def _served_names(state: Any) -> tuple[str, ...]:
    names = getattr(state.args, "served_model_name", None) or [state.args.model]
    return tuple([names] if isinstance(names, str) else names)


def _authenticate(scope: Scope, state: Any) -> None:
    """The keys are vLLM's own: `--api-key`, else VLLM_API_KEY. Without any, all may call, as on its own routes."""
    args = getattr(state, "args", None)
    if args is None:
        raise Refused(503, "the server's keys are not known: nobody is let in")
    given_keys = getattr(args, "api_key", None) or [os.environ.get("VLLM_API_KEY")]
    keys = [key for key in ([given_keys] if isinstance(given_keys, str) else given_keys) if key]
    if not keys:
        return
    given = b""
    for name, value in scope["headers"]:
        if name.lower() == b"authorization":
            scheme, _, token = value.partition(b" ")
            given = token if scheme.lower() == b"bearer" else b""
    digest = hashlib.sha256(given).digest()
    fits = False
    for key in keys:  # all of them, each in constant time
        fits |= hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest())
    if not fits:
        raise Refused(401, "the key is not one of this server's")


async def _body(scope: Scope, receive: Receive, most: int) -> bytes:
    too_long = Refused(413, f"the body is longer than {most} bytes")
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and (not value.isdigit() or int(value) > most):
            raise too_long
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise too_long
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


class _Gone(Exception):
    """The client hung up: nobody is left to answer."""


async def _unless_gone(work: Awaitable[Any], receive: Receive) -> Any:
    """The result of `work`, which is cancelled when the client goes. Raises `_Gone`, `Refused`."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise _Gone
        return doing.result()
    except (_Gone, Refused, asyncio.CancelledError):
        raise
    except Exception as error:
        raise refusal_of(error) from error
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


def refusal_of(error: Exception) -> Refused:
    """What vLLM's own routes would answer to an exception of the engine."""
    from vllm import exceptions as known

    status = getattr(error, "http_status", None) or getattr(error, "status_code", None)
    client = getattr(known, "VLLMClientError", ValueError)
    if status is not None:
        return Refused(int(status), str(error)[:500])
    if isinstance(error, (client, ValueError, TypeError, OverflowError)):
        return Refused(400, str(error)[:500], getattr(error, "parameter", None))
    log.error("the engine failed", exc_info=error)
    if type(error).__name__ == "EngineDeadError":
        return Refused(503, "the engine is dead")
    return Refused(500, f"the engine failed: {type(error).__name__}")


def _problem(refused: Refused) -> bytes:
    """The shape of vLLM's own errors."""
    phrase = HTTPStatus(refused.status).phrase.replace(" ", "")
    told = {
        "message": refused.message,
        "type": phrase if phrase.endswith("Error") else f"{phrase}Error",
        "param": refused.parameter,
        "code": refused.status,
    }
    return json.dumps({"error": told}).encode()
