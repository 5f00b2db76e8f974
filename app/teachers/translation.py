"""Foreign exceptions to ours, in one place. `tests/contract/test_openai.py` proves that none is forgotten."""

import ssl

import httpx

from app.errors import (
    MalformedAnswer,
    PermanentTeacherError,
    TeacherError,
    TeacherUnavailable,
    TransientTeacherError,
)

# The first row that fits decides, so subclasses stand before their bases.
TABLE: tuple[tuple[type[Exception], type[TeacherError], str], ...] = (
    # Nobody is there, or nobody that we may trust.
    (httpx.ConnectError, TeacherUnavailable, "the teacher cannot be reached"),
    (httpx.ConnectTimeout, TeacherUnavailable, "the teacher does not accept a connection"),
    (httpx.ProxyError, TeacherUnavailable, "the proxy does not work"),
    (ssl.SSLError, TeacherUnavailable, "no secure connection to the teacher"),
    (ConnectionRefusedError, TeacherUnavailable, "the teacher cannot be reached"),
    # We asked for something that is no request.
    (httpx.InvalidURL, PermanentTeacherError, "the teacher's address is not a URL"),
    (httpx.UnsupportedProtocol, PermanentTeacherError, "the teacher's address is not http or https"),
    (
        UnicodeError,
        PermanentTeacherError,
        "the teacher's address is not a URL",
    ),  # a label of its name is too long
    (httpx.LocalProtocolError, PermanentTeacherError, "the request cannot be sent"),
    (httpx.CookieConflict, PermanentTeacherError, "the request cannot be sent"),
    (httpx.TooManyRedirects, PermanentTeacherError, "the teacher redirects, which is not followed"),
    # What came was no HTTP, or could not be unpacked.
    (httpx.DecodingError, MalformedAnswer, "the teacher's answer cannot be unpacked"),
    (httpx.HTTPStatusError, MalformedAnswer, "the teacher's answer is not what was asked for"),
    # The connection went away while we talked.
    (httpx.StreamError, TransientTeacherError, "the answer was cut off"),
    (httpx.RemoteProtocolError, TransientTeacherError, "the answer was cut off"),
    (httpx.TransportError, TransientTeacherError, "the connection was cut"),
    # Whatever else httpx may throw.
    (httpx.HTTPError, TransientTeacherError, "the call failed"),
    (OSError, TransientTeacherError, "the connection was cut"),
)
FOREIGN: tuple[type[Exception], ...] = tuple(row[0] for row in TABLE)


def translated(error: Exception) -> TeacherError:
    """Our error for a foreign one; raises `error` itself if it is none of theirs."""
    for theirs, ours, sentence in TABLE:
        if isinstance(error, theirs):
            detail = str(error)
            return ours(f"{sentence} ({type(error).__name__}{': ' + detail[:300] if detail else ''})")
    raise error
