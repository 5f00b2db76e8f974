"""Our own HTTP/1.1: what goes over the wire, which connections are used again, and what is believed of an answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from app.errors import InvalidInput, MalformedAnswer, TeacherUnavailable, TransientTeacherError
from app.teachers.http1 import Answer, Connections
from tests.contract.stages import ACCESS

Reply = Callable[[int], list[bytes] | None]  # number of the request → pieces to send; None: hang up

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """Reads whole requests and answers each in pieces; counts connections. Hangs up after a head that says `close`."""

    def __init__(self, reply: Reply) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self._reply = reply

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    (
                        int(line.split(b":")[1])
                        for line in head.split(b"\r\n")
                        if line.startswith(b"Content-Length")
                    ),
                    0,
                )
                self.requests.append(head + await reader.readexactly(length))
                pieces = self._reply(len(self.requests))
                if pieces is None:
                    return
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if b"close" in pieces[0]:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(reply: Reply) -> AsyncIterator[tuple[Server, str]]:
    made = Server(reply)
    server = await asyncio.start_server(made, "127.0.0.1", 0)
    try:
        yield made, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def on(
    reply: Reply,
    use: Callable[[Connections, Server], Awaitable[None]],
    idle_seconds: float = 3.0,
    most: int = 1 << 20,
) -> None:
    async def run() -> None:
        async with serving(reply) as (server, url):
            connections = Connections(f"{url}/base", ACCESS, {"A": "b"}, most, idle_seconds)
            try:
                await use(connections, server)
            finally:
                connections.close()

    asyncio.run(run())


def test_a_request_is_what_it_should_be() -> None:
    async def use(connections: Connections, server: Server) -> None:
        answer = await connections.send("POST", "/chat", b'{"a": 1}')
        assert answer == Answer(200, {"content-type": "application/json", "content-length": "2"}, b"{}")
        await connections.send("GET", "/models", None)
        first, second = server.requests
        assert first.startswith(b"POST /base/chat HTTP/1.1\r\nHost: 127.0.0.1:")
        assert first.endswith(b'\r\nA: b\r\nContent-Length: 8\r\n\r\n{"a": 1}')
        assert second.startswith(b"GET /base/models HTTP/1.1\r\n")
        assert b"Content-Length" not in second

    on(lambda number: [OK], use)


def test_a_connection_is_used_again_and_many_are_open_at_once() -> None:
    async def use(connections: Connections, server: Server) -> None:
        for _ in range(5):
            await connections.send("POST", "/", b"{}")
        assert server.connections == 1
        await asyncio.gather(*(connections.send("POST", "/", b"{}") for _ in range(20)))
        assert server.connections == 20

    on(lambda number: [OK], use)


def test_one_that_was_idle_too_long_is_not() -> None:
    async def use(connections: Connections, server: Server) -> None:
        for _ in range(3):
            await connections.send("POST", "/", b"{}")
            await asyncio.sleep(0.06)
        assert server.connections == 3

    on(lambda number: [OK], use, idle_seconds=0.05)


def test_one_that_the_server_closed_is_not() -> None:
    async def use(connections: Connections, server: Server) -> None:
        for _ in range(3):
            assert (await connections.send("POST", "/", b"{}")).body == b"{}"
            await asyncio.sleep(0.02)
        assert server.connections == 3

    on(lambda number: [OK.replace(b"200 OK\r\n", b"200 OK\r\nConnection: close\r\n")], use)


def test_a_call_on_a_connection_that_is_cut_meanwhile_is_transient() -> None:
    async def use(connections: Connections, server: Server) -> None:
        await connections.send("POST", "/", b"{}")
        with pytest.raises(TransientTeacherError, match="the connection was cut") as raised:
            await connections.send("POST", "/", b"{}")
        assert type(raised.value) is TransientTeacherError
        assert (await connections.send("POST", "/", b"{}")).status == 200

    on(lambda number: None if number == 2 else [OK], use)


@pytest.mark.parametrize(
    "pieces",
    [
        [bytes([byte]) for byte in OK],
        [b"HTTP/1.1 100 Continue\r\nB: c\r\n\r\n", OK],
        [b"HTTP/1.1 100 Continue\r\nB: c\r\n\r\n" + OK],
        [b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{", b"}"],
        [b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nX: close\r\n\r\n{}"],
        [
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1",
            b"\r\n}\r\n0\r\n\r\n",
        ],
    ],
    ids=["byte by byte", "100 first", "100 with it", "until it is closed", "HTTP/1.0", "chunks"],
)
def test_an_answer_in_any_pieces(pieces: list[bytes]) -> None:
    async def use(connections: Connections, server: Server) -> None:
        answer = await connections.send("POST", "/", b"{}")
        assert (answer.status, answer.body) == (200, b"{}")
        assert answer.headers["content-type"] == "application/json"
        assert "b" not in answer.headers

    on(lambda number: pieces, use)


def test_an_answer_that_nobody_asked_for_taints_its_connection() -> None:
    second = b"HTTP/1.1 200 OK\r\nContent-Type: text/evil\r\nContent-Length: 4\r\n\r\nevil"

    async def use(connections: Connections, server: Server) -> None:
        for _ in range(3):
            answer = await connections.send("POST", "/", b"{}")
            assert (answer.headers["content-type"], answer.body) == ("application/json", b"{}")
        assert server.connections == 3

    on(lambda number: [OK + second], use)


def test_an_answer_that_is_too_long_is_not_read() -> None:
    async def announced(connections: Connections, server: Server) -> None:
        with pytest.raises(MalformedAnswer, match="longer than 1 MiB"):
            await connections.send("POST", "/", b"{}")

    on(lambda number: [b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n"], announced)
    endless = [b"HTTP/1.1 200 OK\r\n\r\n", *([b" " * 100_000] * 40)]
    on(lambda number: endless, announced)


def test_what_is_packed_was_not_asked_for() -> None:
    async def use(connections: Connections, server: Server) -> None:
        with pytest.raises(MalformedAnswer, match="packed"):
            await connections.send("POST", "/", b"{}")

    on(lambda number: [OK.replace(b"Content-Type", b"Content-Encoding: br\r\nContent-Type")], use)


def test_a_key_that_would_break_the_request_is_refused_and_not_told() -> None:
    for key in ("secret\r\nX-Admin: yes", "sécrét…", "se\0cret"):
        with pytest.raises(InvalidInput) as raised:
            Connections("http://127.0.0.1:1", ACCESS, {"Authorization": f"Bearer {key}"}, 1)
        assert "secret" not in raised.value.detail
        assert "crét" not in raised.value.detail


def test_a_path_is_quoted_and_a_name_written_in_ascii() -> None:
    async def use(connections: Connections, server: Server) -> None:
        port = connections._port
        odd = Connections(f"http://127.0.0.1:{port}/ä b", ACCESS, {}, 1 << 20)
        await odd.send("GET", "/models", None)
        odd.close()
        assert server.requests[0].startswith(b"GET /%C3%A4%20b/models HTTP/1.1\r\n")

    on(lambda number: [OK], use)

    async def unknown() -> None:
        await Connections("http://bücher.invalid/v1", ACCESS, {}, 1 << 20).send("GET", "/", None)

    with pytest.raises(TeacherUnavailable, match="cannot be looked up"):
        asyncio.run(unknown())
