"""HTTP/1.1 to an engine near by: connections that are kept, one request at a time on each.

The parser is httptools (Node's llhttp, as in uvicorn). The rest is here, since a general client spends most of a call's
CPU on what no engine needs: cookies, redirects, proxies, streams (docs/decisions/041).
"""

import asyncio
import ipaddress
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, cast
from urllib.parse import quote, urlsplit

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from app.errors import InvalidInput, MalformedAnswer, TeacherError, TeacherUnavailable, TransientTeacherError
from app.teachers.addresses import TeacherAccess, judge

_CONNECT_SECONDS: Final = 10.0
# Servers close idle connections after 5 s (uvicorn); one that is used again at that moment is cut.
_IDLE_SECONDS: Final = 3.0
_MOST_HEADERS: Final = 64 * 1024
_BUFFER: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of any status. Header names are in lower case; of a header that comes twice, the last."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connections:
    """To one server; belongs to one event loop. `base_url` was checked, `most` bounds an answer with its headers."""

    def __init__(
        self,
        base_url: str,
        access: TeacherAccess,
        headers: Mapping[str, str],
        most: int,
        idle_seconds: float = _IDLE_SECONDS,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """`trust`: whose certificates are believed; None: the system's authorities.

        Raises `InvalidInput` for what cannot stand in a request.
        """
        url = urlsplit(base_url)
        self._access = access
        self._most = most
        self._idle_seconds = idle_seconds
        self._name = url.hostname or ""
        self._tls = (trust or ssl.create_default_context()) if url.scheme == "https" else None
        self._port = url.port or (443 if self._tls else 80)
        self._path = quote(url.path, safe="/%:@!$&'()*+,;=~")
        fields = {"Host": url.netloc, **headers}
        if any(character in "\r\n\0" for value in fields.values() for character in value):
            raise InvalidInput("a header of the request would hold a line break: is it in the key?")
        try:
            host = url.netloc if url.netloc.isascii() else url.netloc.encode("idna").decode()
            fields["Host"] = host
            self._fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode("latin-1")
        except UnicodeError as error:
            raise InvalidInput(f"a header of the request cannot be written: {error}") from error
        self._buffer = memoryview(bytearray(_BUFFER))  # what is read lies in it until the parser has seen it
        self._idle: deque[_Connection] = deque()  # the longest idle first
        self._open: set[_Connection] = set()

    async def send(self, method: str, path: str, body: bytes | None, seconds: float | None = None) -> Answer:
        """`seconds`: within which the whole answer must have come. Whoever cancels hangs up, so that the engine stops
        working for nobody.

        Raises `TeacherUnavailable` where nobody takes the connection, `MalformedAnswer` for what is no HTTP or too
        long, `TransientTeacherError` where the connection ends before the answer, `TimeoutError`, `Unsupported` for a
        forbidden address.
        """
        until = None if seconds is None else asyncio.get_running_loop().time() + seconds
        length = b"" if body is None else b"Content-Length: %d\r\n" % len(body)
        head = f"{method} {self._path}{path} HTTP/1.1\r\n".encode() + self._fields + length + b"\r\n"
        connection = self._take()
        if connection is None:
            async with asyncio.timeout_at(until):
                connection = await self._connect()
        try:
            answer = await connection.exchange(head if body is None else head + body, until)
        except BaseException:
            connection.abort()
            raise
        if connection.reusable:
            self._keep(connection)
        else:
            connection.abort()
        return answer

    def close(self) -> None:
        for connection in list(self._open):
            connection.abort()

    def _take(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.usable(self._idle_seconds):
                return connection
            connection.abort()
        return None

    def _keep(self, connection: "_Connection") -> None:
        self._idle.append(connection)
        while self._idle and not self._idle[0].usable(self._idle_seconds):
            self._idle.popleft().abort()

    async def _connect(self) -> "_Connection":
        """Raises `TeacherUnavailable`, and `Unsupported` before a byte goes to an address that may not be called."""
        loop = asyncio.get_running_loop()
        failure: Exception | None = None
        for address in await self._addresses():
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    _, made = await loop.create_connection(
                        lambda: _Connection(self._most, self._open.discard, self._buffer),
                        address,
                        self._port,
                        ssl=self._tls,
                        server_hostname=self._name if self._tls else None,
                    )
            except OSError as error:  # TimeoutError and ssl.SSLError are such
                failure = error
                continue
            self._open.add(made)
            return made
        if isinstance(failure, ssl.SSLError):
            raise TeacherUnavailable(f"no secure connection to the teacher ({failure})") from failure
        if isinstance(failure, TimeoutError):
            raise TeacherUnavailable("the teacher does not accept a connection") from failure
        raise TeacherUnavailable(f"the teacher cannot be reached ({failure})") from failure

    async def _addresses(self) -> list[str]:
        """Where the name leads now, each judged."""
        try:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(self._name, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise TeacherUnavailable(f"the name {self._name} cannot be looked up ({error})") from error
        addresses = list(dict.fromkeys(str(place[0]) for *_, place in found))
        for address in addresses:
            judge(ipaddress.ip_address(address.partition("%")[0]), self._access)
        return addresses


class _Connection(asyncio.BufferedProtocol):
    """One request and its answer at a time. The methods `on_…` are the parser's.

    All connections of a loop read into one buffer: asyncio says in the same breath that there is something in it. A
    buffer for each read, as `asyncio.Protocol` gets one, costs five times the read itself.
    """

    def __init__(self, most: int, gone: Callable[["_Connection"], None], buffer: memoryview) -> None:
        self._most = most
        self._gone = gone
        self._buffer = buffer
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._answered_at = 0.0
        self._late: asyncio.TimerHandle | None = None
        self.reusable = False

    def exchange(self, request: bytes, until: float | None) -> "asyncio.Future[Answer]":
        """`until`: when, by the loop's clock, `TimeoutError` is the answer. A timer of its own: `asyncio.timeout`,
        which can interrupt anything, costs four times that."""
        assert self._transport is not None
        self._loop = asyncio.get_running_loop()
        self._waiting = self._loop.create_future()
        self._late = None if until is None else self._loop.call_at(until, self._fail, TimeoutError())
        self._parser = HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._size = self._header_bytes = 0
        self._complete = False
        self._until_closed = False
        self.reusable = False
        self._transport.write(request)
        if self._transport.is_closing():  # the server left while nobody looked
            self._fail(TransientTeacherError("the connection was cut"))
        return self._waiting

    def usable(self, idle_seconds: float) -> bool:
        """Whether another request may be sent on it: it is open, and its last answer is not so long ago."""
        assert self._transport is not None
        return not self._transport.is_closing() and self._loop.time() - self._answered_at < idle_seconds

    def abort(self) -> None:
        self._in_time()
        if self._transport is not None:
            self._transport.abort()

    # -- the event loop's calls --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._waiting is None or self._waiting.done():  # nobody asked
            self.abort()
            return
        self._size += nbytes
        if self._size > self._most:
            self._fail(_too_long(self._most))
            return
        try:
            self._parser.feed_data(self._buffer[:nbytes])
        except (HttpParserError, HttpParserUpgrade) as error:
            self._fail(MalformedAnswer(f"the teacher's answer is not HTTP ({error})"))

    def connection_lost(self, error: Exception | None) -> None:
        self._gone(self)
        if self._waiting is None or self._waiting.done():
            return
        if self._until_closed and error is None:
            self._answer()
        else:
            what = "the answer was cut off" if self._size else "the connection was cut"
            self._fail(TransientTeacherError(what + (f" ({error})" if error else "")))

    # -- the parser's calls ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:  # an answer to a question that was not asked: who knows what else would come
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > _MOST_HEADERS:
            self._fail(MalformedAnswer(f"the answer's headers are longer than {_MOST_HEADERS >> 10} KiB"))
        else:
            self._headers[_lower(name)] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        length = self._headers.get("content-length")
        if length is not None and length.isdigit() and int(length) > self._most:
            self._fail(_too_long(self._most))
        elif self._headers.get("content-encoding", "identity") != "identity":
            self._fail(MalformedAnswer("the teacher's answer is packed, which was not asked for"))
        # 204 and 304 have no body and are complete at once.
        self._until_closed = length is None and "transfer-encoding" not in self._headers

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._complete:
            return
        if self._parser.get_status_code() < 200:  # 100 Continue and its like: the answer is still to come
            self._headers = {}
            return
        self.reusable = self._parser.should_keep_alive()
        self._answer()

    def _answer(self) -> None:
        self._in_time()
        self._complete, self._answered_at = True, self._loop.time()
        if self._waiting is not None and not self._waiting.done():
            body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._waiting.set_result(Answer(self._parser.get_status_code(), self._headers, body))
        self._headers, self._parts = {}, []

    def _fail(self, error: TeacherError | TimeoutError) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)
        self.abort()

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


@lru_cache(256)
def _lower(name: bytes) -> str:
    """A header's name. Servers repeat the same few."""
    return name.decode("latin-1").lower()


def _too_long(most: int) -> MalformedAnswer:
    return MalformedAnswer(f"the answer is longer than {most >> 20} MiB")
