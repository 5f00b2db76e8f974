"""The one seam to HTTP: a request's bytes out, a reply's bytes back, foreign exceptions translated.

Two clients behind one Protocol: `app.teachers.http1` for engines near by, where calls are many and CPU counts; httpx
for the APIs of providers. Neither follows redirects, reads proxies from the environment, retries, or connects to an
address that `app/teachers/addresses.py` forbids: each address is judged when it is connected to.
"""

import asyncio
import ipaddress
import math
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from app.errors import MalformedAnswer, TransientTeacherError
from app.teachers.addresses import TeacherAccess, check_url, judge
from app.teachers.http1 import Connections
from app.teachers.rate_headers import RatesTold, parse
from app.teachers.translation import FOREIGN, translated

MAX_ANSWER = 64 * 1024 * 1024
_CONNECT_SECONDS = 10.0
_JSON = {"Content-Type": "application/json"}
_SECRET_LENGTH = 16
_SECRET_HEADERS = frozenset({"authorization", "x-api-key", "x-goog-api-key"})


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, whatever its status. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Bound to one base URL; `path` begins with a slash. `deadline`: seconds that the whole call may take.

    Raises a subclass of `TeacherError` where no whole reply came. A reply of any status is a reply: what it means
    is said by `app.teachers.replies`.
    """

    async def post(self, path: str, body: bytes, deadline: float) -> Reply: ...

    async def get(self, path: str, deadline: float) -> Reply: ...

    async def aclose(self) -> None: ...


class LocalTransport:
    """For engines near by: a third of a general client's CPU per call, with any number in flight."""

    def __init__(
        self,
        base_url: str,
        access: TeacherAccess,
        headers: Mapping[str, str] | None = None,
        max_answer: int = MAX_ANSWER,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """`trust`: whose certificates are believed; None: the system's authorities."""
        sent = {**_JSON, "Accept-Encoding": "identity", **(headers or {})}
        self._secrets = _secrets_of(sent)
        self._connections = Connections(check_url(base_url, access), access, sent, max_answer, trust=trust)

    async def post(self, path: str, body: bytes, deadline: float) -> Reply:
        return await self._send("POST", path, body, deadline)

    async def get(self, path: str, deadline: float) -> Reply:
        return await self._send("GET", path, None, deadline)

    async def _send(self, method: str, path: str, body: bytes | None, deadline: float) -> Reply:
        try:
            answer = await self._connections.send(method, path, body, _seconds(deadline))
        except TimeoutError as error:
            raise _late(deadline, error) from error
        return Reply(answer.status, answer.headers, _without(self._secrets, answer.body))

    async def aclose(self) -> None:
        self._connections.close()


class _JudgingTransport(httpx.AsyncBaseTransport):
    """Connects to addresses that were judged: the name is looked up once, here."""

    def __init__(self, access: TeacherAccess, trust: ssl.SSLContext | None) -> None:
        self._access = access
        self._inner = httpx.AsyncHTTPTransport(
            verify=True if trust is None else trust,
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                name, request.url.port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"the name {name} cannot be looked up", request=request) from error
        addresses = list(dict.fromkeys(str(place[0]) for *_, place in found))
        for address in addresses:
            judge(ipaddress.ip_address(address.partition("%")[0]), self._access)
        # The Host header was set from the name and stays; the certificate must be the name's.
        request.extensions = {**request.extensions, "sni_hostname": name}
        for address in addresses[:-1]:
            request.url = request.url.copy_with(host=address)
            try:
                return await self._inner.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue  # nothing was sent: another address of the same name may answer
        request.url = request.url.copy_with(host=addresses[-1])
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


class ApiTransport:
    """httpx, for the APIs of providers: tens of calls in flight, compressed answers, files to and fro."""

    def __init__(
        self,
        base_url: str,
        access: TeacherAccess,
        headers: Mapping[str, str] | None = None,
        max_answer: int = MAX_ANSWER,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """`trust`: whose certificates are believed; None: the authorities that browsers believe."""
        self._base = check_url(base_url, access)
        self._headers = dict(headers or {})
        self._secrets = _secrets_of(self._headers)
        self._max_answer = max_answer
        self._access = access
        self._trust = trust
        self._client: httpx.AsyncClient | None = None
        self.rates_told: RatesTold | None = None  # by the headers of the last answer that told any

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                transport=_JudgingTransport(self._access, self._trust),
                timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
                headers=self._headers,
                follow_redirects=False,
                trust_env=False,
            )
        return self._client

    async def post(self, path: str, body: bytes, deadline: float) -> Reply:
        return await self._send("POST", path, deadline, content=body, headers=_JSON)

    async def get(self, path: str, deadline: float) -> Reply:
        return await self._send("GET", path, deadline)

    async def delete(self, path: str, deadline: float) -> Reply:
        return await self._send("DELETE", path, deadline)

    async def upload(
        self, path: str, fields: Mapping[str, str], name: str, file: Path, deadline: float
    ) -> Reply:
        """Send a file as `multipart/form-data`, read as it is sent."""
        with file.open("rb") as content:
            files = {"file": (name, content, "application/jsonl")}
            return await self._send("POST", path, deadline, data=dict(fields), files=files)

    async def download(self, path: str, target: Path, most: int, deadline: float) -> Reply:
        """Write what comes into `target`, of `most` bytes; a reply other than 200 keeps its body instead."""
        async with self._replying("GET", path, deadline, {}) as response:
            if response.status_code != 200:
                body = await _bounded(response.aiter_bytes(), self._max_answer)
                return Reply(response.status_code, dict(response.headers), _without(self._secrets, body))
            size = 0
            with target.open("wb") as file:
                async for chunk in response.aiter_bytes():
                    size += len(chunk)
                    if size > most:
                        raise _too_long(most)
                    file.write(chunk)
            return Reply(200, dict(response.headers), b"")

    async def _send(self, method: str, path: str, deadline: float, **given: Any) -> Reply:
        async with self._replying(method, path, deadline, given) as response:
            _check_announced(response.headers.get("Content-Length"), self._max_answer)
            content = await _bounded(response.aiter_bytes(), self._max_answer)
            return Reply(response.status_code, dict(response.headers), _without(self._secrets, content))

    @asynccontextmanager
    async def _replying(
        self, method: str, path: str, deadline: float, given: Mapping[str, Any]
    ) -> AsyncIterator[httpx.Response]:
        try:
            async with (
                asyncio.timeout(_seconds(deadline)),
                self._open().stream(method, self._base + path, **given) as response,
            ):
                self.rates_told = parse(response.headers) or self.rates_told
                yield response
        except TimeoutError as error:
            raise _late(deadline, error) from error
        except FOREIGN as error:
            raise translated(error) from error

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _secrets_of(headers: Mapping[str, str]) -> tuple[bytes, ...]:
    """What must never come back into an answer, a row or a log, though a server repeats what it was sent.

    A key as short as `EMPTY` keeps no secret, and is a word that answers may hold.
    """
    values = [value for name, value in headers.items() if name.lower() in _SECRET_HEADERS]
    keys = [value.removeprefix("Bearer ") for value in values]
    return tuple(key.encode() for key in keys if len(key) >= _SECRET_LENGTH)


def _without(secrets: tuple[bytes, ...], content: bytes) -> bytes:
    for secret in secrets:
        content = content.replace(secret, b"***")
    return content


def _seconds(deadline: float) -> float | None:
    return None if math.isinf(deadline) else max(0.0, deadline)


def _late(deadline: float, error: TimeoutError) -> Exception:
    """A connection that is not made in time is a dead teacher; an answer that is not whole in time is a slow one."""
    if type(error) is not TimeoutError:  # a client's own
        return translated(error)
    return TransientTeacherError(f"no whole answer within {deadline:.0f} s")


def _check_announced(length: str | None, most: int) -> None:
    if length is not None and length.isdigit() and int(length) > most:
        raise _too_long(most)


async def _bounded(chunks: AsyncIterator[bytes], most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > most:
            raise _too_long(most)
        parts.append(chunk)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_long(most: int) -> MalformedAnswer:
    return MalformedAnswer(f"the answer is longer than {most >> 20} MiB")
