"""The outermost layer: request id, security headers, bound of body sizes, and a problem for whatever broke."""

import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import MEDIA_TYPE, problem_body

log = logging.getLogger(__name__)

# Called with method, route template, status and seconds.
Observe = Callable[[str, str, int, float], None]

_CLIENT_LEFT = 499  # in metrics only: nobody is there to be answered
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_STRICT = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": _STRICT,
    "Cache-Control": "no-store",
}

# Routes that read their body piece by piece, in bounded memory, when it is sent as one of these types.
_STREAMED_PATH = re.compile(r"/v1/prompt-sets/[^/]+/prompts")
STREAMED_TYPES = frozenset(
    {"application/x-ndjson", "application/jsonl", "application/x-jsonlines", "application/ndjson"}
)


class Edge:
    """Pure ASGI, so that streams stay streams."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, observe: Observe) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope["request_id"] = _request_id(headers)
        started = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["X-Request-ID"] = scope["request_id"]
                for name, value in SECURITY_HEADERS.items():
                    answer.setdefault(name, value)
            await send(message)

        try:
            declared = headers.get("content-length", "")
            if self._bounded(scope, headers):
                if declared.isascii() and declared.isdigit() and int(declared) > self._max_body_bytes:
                    await _answer(scope, sending, 413, "content-too-large", self._too_large())
                    return
                receive = self._counting(receive)
            await self._app(scope, receive, sending)
        except ClientDisconnect:
            status = _CLIENT_LEFT
            log.info("request %s: the client left before its answer", scope["request_id"])
        except Exception as error:
            log.exception("request %s broke", scope["request_id"], exc_info=error)
            if status:
                raise  # the answer has begun: cutting the connection is all that is left
            detail = "the service failed; its log tells more under this request id"
            await _answer(scope, sending, 500, "internal", detail)
        finally:
            route = getattr(scope.get("route"), "path", "(none)")
            self._observe(scope["method"], route, status, time.perf_counter() - started)

    def _bounded(self, scope: Scope, headers: Headers) -> bool:
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        return not (media_type in STREAMED_TYPES and _STREAMED_PATH.fullmatch(scope["path"]))

    def _counting(self, receive: Receive) -> Receive:
        n_bytes = 0

        async def counting() -> Message:
            nonlocal n_bytes
            message = await receive()
            if message["type"] == "http.request":
                n_bytes += len(message.get("body", b""))
                if n_bytes > self._max_body_bytes:
                    raise HTTPException(413, self._too_large())
            return message

        return counting

    def _too_large(self) -> str:
        return (
            f"the body is larger than {self._max_body_bytes:,} bytes; prompts of any number can be streamed as "
            "application/x-ndjson"
        )


def _request_id(headers: Headers) -> str:
    """The caller's own, where it is one that a log can bear."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


async def _answer(scope: Scope, send: Send, status: int, kind: str, detail: str) -> None:
    body = problem_body(kind, status, detail, scope["request_id"], {})
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    if status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
