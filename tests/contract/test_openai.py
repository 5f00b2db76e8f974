"""The one seam to HTTP: every foreign exception is ours on this side, whatever a server does."""

import asyncio
import inspect
import random
import ssl
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.errors import (
    MalformedAnswer,
    PermanentTeacherError,
    TeacherError,
    TeacherUnavailable,
    TransientTeacherError,
    Unsupported,
)
from app.teachers import TeacherAccess
from app.teachers.replies import json_of
from app.teachers.translation import FOREIGN, TABLE, translated
from app.teachers.transport import ApiTransport, LocalTransport, Reply, Transport
from tests.contract.stages import ACCESS
from tests.fixtures.loopback import raw_server, serving
from tests.fixtures.processes import free_port

KINDS: dict[str, type[LocalTransport] | type[ApiTransport]] = {
    "local": LocalTransport,
    "httpx": ApiTransport,
}
both = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
Kind = type[LocalTransport] | type[ApiTransport]


def theirs(library: object) -> list[type[Exception]]:
    """Every public exception class of a library; a warning is no failure of a call."""
    return sorted(
        {
            found
            for _, found in inspect.getmembers(library, inspect.isclass)
            if issubclass(found, Exception) and not issubclass(found, Warning)
        },
        key=lambda found: found.__name__,
    )


@pytest.mark.parametrize("found", theirs(httpx), ids=lambda found: found.__module__)
def test_every_exception_of_theirs_is_in_the_table(found: type[Exception]) -> None:
    assert issubclass(found, FOREIGN), f"{found.__name__} would reach the engine as it is"
    row = next(row for row in TABLE if issubclass(found, row[0]))
    assert issubclass(row[1], TeacherError)


def test_the_first_row_that_fits_is_reached() -> None:
    """A row behind one of its own bases would never be."""
    for position, (kind, _, _) in enumerate(TABLE):
        earlier = [other.__name__ for other, _, _ in TABLE[:position] if issubclass(kind, other)]
        assert earlier == [], f"{kind.__name__} is never reached"


def test_an_exception_of_nobody_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        translated(ZeroDivisionError("ours"))


# -- real failures -------------------------------------------------------------------------------------------------


def sent(
    kind: Callable[[str, TeacherAccess], Transport],
    url: str,
    seconds: float = 5,
    access: TeacherAccess = ACCESS,
) -> Reply:
    async def run() -> Reply:
        transport = kind(url, access)
        try:
            return await transport.post("/chat/completions", b'{"model": "m"}', seconds)
        finally:
            await transport.aclose()

    return asyncio.run(run())


def failure(kind: Callable[[str, TeacherAccess], Transport], url: str, seconds: float = 5) -> TeacherError:
    with pytest.raises(TeacherError) as raised:
        sent(kind, url, seconds)
    return raised.value


@both
def test_nobody_listens(kind: Kind) -> None:
    assert type(failure(kind, f"http://127.0.0.1:{free_port()}/v1")) is TeacherUnavailable


@both
@pytest.mark.parametrize("name", ["no-such-host.invalid", f"{'a' * 64}.invalid", "a..b.invalid"])
def test_a_name_that_is_none(kind: Kind, name: str) -> None:
    assert type(failure(kind, f"http://{name}/v1")) in (TeacherUnavailable, PermanentTeacherError)


@both
def test_tls_to_one_who_speaks_none(kind: Kind) -> None:
    with raw_server(lambda sent: b"HTTP/1.1 200 OK\r\n\r\n") as url:
        assert type(failure(kind, url.replace("http:", "https:"))) is TeacherUnavailable


@both
@pytest.mark.parametrize(
    ("answer", "ours"),
    [
        (None, TransientTeacherError),
        (b"", TransientTeacherError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", TransientTeacherError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", TransientTeacherError),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/j", TransientTeacherError),
        (b"SSH-2.0-OpenSSH_9.2\r\n", (MalformedAnswer, TransientTeacherError)),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 200_000 + b"\r\n\r\n", (MalformedAnswer, TransientTeacherError)),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", MalformedAnswer),
    ],
    ids=["reset", "closed", "short", "half-chunk", "half-header", "other-protocol", "long-header", "no-gzip"],
)
def test_answers_that_are_none(
    kind: Kind,
    answer: bytes | None,
    ours: type[TeacherError] | tuple[type[TeacherError], ...],
) -> None:
    with raw_server(lambda sent: answer) as url:
        error = failure(kind, url)
    assert type(error) in (ours if isinstance(ours, tuple) else (ours, TransientTeacherError))
    assert error.detail


@both
def test_redirects_are_not_followed(kind: Kind) -> None:
    followed: list[str] = []

    def application() -> web.Application:
        async def away(request: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect("/elsewhere")

        async def elsewhere(request: web.Request) -> web.StreamResponse:
            followed.append(request.path)
            return web.json_response({})

        made = web.Application()
        made.router.add_post("/chat/completions", away)
        made.router.add_route("*", "/elsewhere", elsewhere)
        return made

    with serving(application) as url:
        reply = sent(kind, url)
        assert reply.status == 307
        with pytest.raises(PermanentTeacherError, match="redirects are not followed"):
            json_of(reply)
    assert not followed


@both
def test_whatever_bytes_come_it_is_a_reply_or_one_of_ours(kind: Kind) -> None:
    """Two hundred broken answers: cut, doubled and overwritten at places drawn with a fixed seed."""
    whole = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'1a\r\n{"choices": [{"index": 0}]\r\n1\r\n}\r\n0\r\n\r\n'
    )
    drawn = random.Random(5)

    def broken(sent: bytes) -> bytes | None:
        body = bytearray(whole)
        for _ in range(drawn.randint(1, 6)):
            place = drawn.randrange(len(body))
            match drawn.randrange(4):
                case 0:
                    del body[place : place + drawn.randint(1, 20)]
                case 1:
                    body[place:place] = drawn.randbytes(drawn.randint(1, 20))
                case 2:
                    body[place] = drawn.randrange(256)
                case _:
                    body[place:place] = body[place : place + 30]
            if not body:
                return None
        return bytes(body)

    async def run(url: str) -> tuple[int, int]:
        transport = kind(url, ACCESS)
        replies = errors = 0
        for _ in range(200):
            try:
                await transport.post("/chat/completions", b"{}", 2)
                replies += 1
            except TeacherError:
                errors += 1
        await transport.aclose()
        return replies, errors

    with raw_server(broken) as url:
        replies, errors = asyncio.run(run(url))
    assert replies + errors == 200
    assert errors > 50


@both
def test_a_call_that_is_cancelled_hangs_up(kind: Kind) -> None:
    """So that an engine stops generating for nobody."""
    came: list[str] = []
    left: list[str] = []

    def application() -> web.Application:
        async def slow(request: web.Request) -> web.StreamResponse:
            came.append(request.path)
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                left.append(request.path)
                raise
            return web.json_response({})

        made = web.Application()
        made.router.add_post("/chat/completions", slow)
        return made

    async def run(url: str) -> None:
        transport = kind(url, ACCESS)
        call = asyncio.create_task(transport.post("/chat/completions", b"{}", 30))
        await until(came)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until(left)
        await transport.aclose()

    async def until(seen: list[str]) -> None:
        async with asyncio.timeout(20):
            while not seen:  # noqa: ASYNC110 - it is another thread that fills it
                await asyncio.sleep(0.02)

    with serving(application, handler_cancellation=True) as url:
        asyncio.run(run(url))
    assert left == ["/chat/completions"]


# -- who may be called ---------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("host", ["localhost", "[::ffff:127.0.0.1]", "[::1]"])
def test_a_name_is_judged_where_it_leads_when_it_is_called(kind: Kind, host: str) -> None:
    """As for a name that was harmless when its teacher was registered, and leads elsewhere since (DNS rebinding)."""
    hits: list[str] = []

    def application() -> web.Application:
        async def hit(request: web.Request) -> web.StreamResponse:
            hits.append(request.path)
            return web.json_response({})

        made = web.Application()
        made.router.add_post("/chat/completions", hit)
        return made

    with serving(application) as url:
        address = url.replace("127.0.0.1", host)
        with pytest.raises(Unsupported, match="ALLOW_LOOPBACK"):
            sent(kind, address, access=TeacherAccess())
        if host == "localhost":
            assert sent(kind, address).status == 200
    assert hits == (["/chat/completions"] if host == "localhost" else [])


def test_a_private_address_needs_its_network_allowed() -> None:
    for transport in (LocalTransport, ApiTransport):
        with pytest.raises(Unsupported, match=r"ALLOW_PRIVATE='\[\"10\.1\.2\.0/24\"\]'"):
            transport("http://10.1.2.3/v1", TeacherAccess(allow_loopback=True))
        transport("http://10.1.2.3/v1", TeacherAccess(allow_private=("10.0.0.0/8",)))


@both
@pytest.mark.parametrize(("names", "believed"), [(["localhost"], True), (["api.example.com"], False)])
def test_tls_is_of_the_name_though_an_address_is_called(kind: Kind, names: list[str], believed: bool) -> None:
    trust, server = certified(names)

    def application() -> web.Application:
        async def hit(request: web.Request) -> web.StreamResponse:
            return web.json_response({"host": request.headers["Host"]})

        made = web.Application()
        made.router.add_post("/chat/completions", hit)
        return made

    with serving(application, tls=server) as url:
        address = url.replace("127.0.0.1", "localhost")

        def trusting(url: str, access: TeacherAccess) -> Transport:
            return kind(url, access, trust=trust)

        if believed:
            host = json_of(sent(trusting, address))["host"]
            assert host == address.removeprefix("https://")
        else:
            assert type(failure(trusting, address)) is TeacherUnavailable


def certified(names: list[str]) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(a client's trust in an authority, a server's certificate of that authority for these names)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority of a test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(pem + secret)
        file.flush()
        server.load_cert_chain(file.name)
    return ssl.create_default_context(cadata=pem.decode()), server
