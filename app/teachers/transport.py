"""The one HTTP seam of the drivers: bytes out, bytes in, foreign errors translated in one place.

aiohttp serves the hot path to local engines (a tenth of httpx's CPU per call at high concurrency); httpx serves API
teachers. Redirects are never followed, answers are bounded, proxies of the environment are for API teachers only.
"""

import asyncio
import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import httpx
import orjson

from app.errors import (
    MalformedAnswer,
    PermanentTeacherError,
    RateLimited,
    TeacherError,
    TeacherRefusedKey,
    TeacherUnavailable,
    TransientTeacherError,
)

MAX_ANSWER_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer of any status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Raises `TeacherError`s only. `deadline_s` bounds the whole exchange."""

    async def request(self, method: str, path: str, body: bytes | None, deadline_s: float) -> Reply: ...

    async def aclose(self) -> None: ...


class AiohttpTransport:
    """Made on first use, inside the event loop that will use it."""

    def __init__(self, base_url: str, headers: Mapping[str, str], limit: int = MAX_ANSWER_BYTES) -> None:
        self._base = base_url.rstrip("/")
        self._headers = dict(headers)
        self._limit = limit
        self._session: aiohttp.ClientSession | None = None

    async def request(self, method: str, path: str, body: bytes | None, deadline_s: float) -> Reply:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
                auto_decompress=True,
            )
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            async with asyncio.timeout(deadline_s):
                async with self._session.request(
                    method, self._base + path, data=body, headers=headers, allow_redirects=False
                ) as answer:
                    length = answer.content_length
                    if length is not None and length > self._limit:
                        raise _too_large(self._limit)
                    return Reply(answer.status, answer.headers, await self._read(answer))
        except TimeoutError as error:
            raise TransientTeacherError(f"no whole answer within {deadline_s:.3g} s") from error
        except aiohttp.ClientError as error:
            raise translated(error) from error

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        if answer.content_length is not None and "Content-Encoding" not in answer.headers:
            return await answer.read()
        blocks, size = [], 0
        async for block in answer.content.iter_any():
            size += len(block)
            if size > self._limit:
                answer.close()
                raise _too_large(self._limit)
            blocks.append(block)
        return b"".join(blocks)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


class HttpxTransport:
    def __init__(self, base_url: str, headers: Mapping[str, str], limit: int = MAX_ANSWER_BYTES) -> None:
        self._limit = limit
        self._client = httpx.AsyncClient(
            base_url=base_url.rstrip("/"),
            headers=dict(headers),
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=10),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    async def request(self, method: str, path: str, body: bytes | None, deadline_s: float) -> Reply:
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            async with asyncio.timeout(deadline_s):
                async with self._client.stream(method, path, content=body, headers=headers) as answer:
                    blocks, size = [], 0
                    async for block in answer.aiter_bytes():
                        size += len(block)
                        if size > self._limit:
                            raise _too_large(self._limit)
                        blocks.append(block)
                    return Reply(answer.status_code, answer.headers, b"".join(blocks))
        except TimeoutError as error:
            raise TransientTeacherError(f"no whole answer within {deadline_s:.3g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise translated(error) from error

    async def aclose(self) -> None:
        await self._client.aclose()


def _too_large(limit: int) -> MalformedAnswer:
    return MalformedAnswer(f"the answer is larger than {limit >> 20} MiB and was cut off")


# Most special first. A test proves that every error class of both libraries is met.
TRANSLATIONS: tuple[tuple[type[Exception], type[TeacherError]], ...] = (
    (aiohttp.InvalidURL, PermanentTeacherError),
    (aiohttp.ClientConnectorError, TeacherUnavailable),
    (aiohttp.ConnectionTimeoutError, TeacherUnavailable),
    (aiohttp.ServerFingerprintMismatch, TeacherUnavailable),
    (aiohttp.ClientError, TransientTeacherError),
    (httpx.InvalidURL, PermanentTeacherError),
    (httpx.UnsupportedProtocol, PermanentTeacherError),
    (httpx.ConnectError, TeacherUnavailable),
    (httpx.ConnectTimeout, TeacherUnavailable),
    (httpx.ProxyError, TeacherUnavailable),
    (httpx.HTTPError, TransientTeacherError),
    (httpx.StreamError, TransientTeacherError),
)


def translated(error: Exception) -> TeacherError:
    """A foreign error as one of ours, its class kept in the text."""
    for foreign, own in TRANSLATIONS:
        if isinstance(error, foreign):
            return own(f"{type(error).__name__}: {error}")
    return TransientTeacherError(f"{type(error).__name__}: {error}")


def checked(reply: Reply) -> Reply:
    """The reply, if it is a success; else the error that its status means."""
    status = reply.status
    if status == 200:
        return reply
    said = _said(reply)
    after = retry_after(reply.headers)
    if status == 429:
        raise RateLimited(said, retry_after=after)
    if status in (401, 403):
        raise TeacherRefusedKey(said)
    if status in (408, 409, 425) or status >= 500:
        raise TransientTeacherError(said, retry_after=after)
    raise PermanentTeacherError(said)


def decoded(reply: Reply) -> dict[str, object]:
    """The JSON object of a successful reply. Raises the status's error, or `MalformedAnswer`."""
    checked(reply)
    try:
        value = orjson.loads(reply.body)
    except orjson.JSONDecodeError as error:
        kind = reply.headers.get("Content-Type", "no content type")
        raise MalformedAnswer(f"the answer ({kind}) is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise MalformedAnswer(f"the answer is a JSON {type(value).__name__}, not an object")
    return value


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of `Retry-After` (RFC 9110 §10.2.3), as a number or a date; None where absent or unreadable."""
    given = headers.get("Retry-After")
    if given is None:
        return None
    try:
        return max(0.0, float(given))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _said(reply: Reply) -> str:
    text = reply.body[:2000].decode("utf-8", "replace")
    try:
        value = orjson.loads(reply.body)
        error = value.get("error", value) if isinstance(value, dict) else value
        text = (
            str(error.get("message") or error.get("detail") or text)
            if isinstance(error, dict)
            else str(error)
        )
    except orjson.JSONDecodeError:
        pass
    return f"HTTP {reply.status}: {text[:1000]}"
