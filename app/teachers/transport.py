"""The one seam to HTTP: a request's bytes out, a reply's bytes back, foreign exceptions translated.

Two clients behind one Protocol. aiohttp for engines near by, where calls are many and CPU counts; httpx for the APIs of
providers. Neither follows redirects, reads proxies from the environment, retries, or connects to an address that
`app/teachers/addresses.py` forbids: each address is judged when it is connected to.
"""

import asyncio
import ipaddress
import math
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from app.errors import MalformedAnswer, TransientTeacherError
from app.teachers.addresses import TeacherAccess, check_url, judge
from app.teachers.translation import FOREIGN, translated

MAX_ANSWER = 64 * 1024 * 1024
_CONNECT_SECONDS = 10.0


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


class _JudgingResolver(AbstractResolver):
    """Looks names up and refuses what may not be called."""

    def __init__(self, access: TeacherAccess) -> None:
        self._access = access
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for result in found:
            judge(ipaddress.ip_address(result["host"].partition("%")[0]), self._access)
        return found

    async def close(self) -> None:
        await self._inner.close()


class LocalTransport:
    """aiohttp: a quarter of a millisecond of CPU per call, with any number in flight."""

    def __init__(
        self,
        base_url: str,
        access: TeacherAccess,
        headers: Mapping[str, str] | None = None,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        self._base = check_url(base_url, access)
        self._access = access
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **(headers or {})}
        self._max_answer = max_answer
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Servers close idle connections after 5 s (uvicorn); one that is reused at that moment is cut.
                connector=aiohttp.TCPConnector(
                    limit=0, keepalive_timeout=3, resolver=_JudgingResolver(self._access)
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent",),
            )
        return self._session

    async def post(self, path: str, body: bytes, deadline: float) -> Reply:
        return await self._send("POST", path, body, deadline)

    async def get(self, path: str, deadline: float) -> Reply:
        return await self._send("GET", path, None, deadline)

    async def _send(self, method: str, path: str, body: bytes | None, deadline: float) -> Reply:
        try:
            async with (
                asyncio.timeout(_seconds(deadline)),
                self._open().request(method, self._base + path, data=body, allow_redirects=False) as response,
            ):
                _check_announced(response.headers.get("Content-Length"), self._max_answer)
                content = await _bounded(response.content.iter_any(), self._max_answer)
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Reply(response.status, headers, content)
        except TimeoutError as error:
            raise _late(deadline, error) from error
        except FOREIGN as error:
            raise translated(error) from error

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


class _JudgingTransport(httpx.AsyncBaseTransport):
    """Connects to the address that was judged: the name is looked up once, here."""

    def __init__(self, access: TeacherAccess) -> None:
        self._access = access
        self._inner = httpx.AsyncHTTPTransport(
            trust_env=False, limits=httpx.Limits(max_connections=None, max_keepalive_connections=64)
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                name, request.url.port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"the name {name} cannot be looked up", request=request) from error
        addresses = [str(place[0]) for *_, place in found]
        for address in addresses:
            judge(ipaddress.ip_address(address.partition("%")[0]), self._access)
        if addresses[0] != name:  # the Host header was set from the name and stays
            request.extensions = {**request.extensions, "sni_hostname": name}
            request.url = request.url.copy_with(host=addresses[0])
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


class ApiTransport:
    """httpx, for the APIs of providers: tens of calls in flight, compressed answers."""

    def __init__(
        self,
        base_url: str,
        access: TeacherAccess,
        headers: Mapping[str, str] | None = None,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        self._base = check_url(base_url, access)
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._max_answer = max_answer
        self._access = access
        self._client: httpx.AsyncClient | None = None

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                transport=_JudgingTransport(self._access),
                timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
                headers=self._headers,
                follow_redirects=False,
                trust_env=False,
            )
        return self._client

    async def post(self, path: str, body: bytes, deadline: float) -> Reply:
        return await self._send("POST", path, body, deadline)

    async def get(self, path: str, deadline: float) -> Reply:
        return await self._send("GET", path, None, deadline)

    async def _send(self, method: str, path: str, body: bytes | None, deadline: float) -> Reply:
        try:
            async with (
                asyncio.timeout(_seconds(deadline)),
                self._open().stream(method, self._base + path, content=body) as response,
            ):
                _check_announced(response.headers.get("Content-Length"), self._max_answer)
                content = await _bounded(response.aiter_bytes(), self._max_answer)
                return Reply(response.status_code, dict(response.headers), content)
        except TimeoutError as error:
            raise _late(deadline, error) from error
        except FOREIGN as error:
            raise translated(error) from error

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _seconds(deadline: float) -> float | None:
    return None if math.isinf(deadline) else max(0.0, deadline)


def _late(deadline: float, error: TimeoutError) -> Exception:
    """A connection that is not made in time is a dead teacher; an answer that is not whole in time is a slow one."""
    if isinstance(error, FOREIGN):
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
