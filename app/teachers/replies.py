"""What a reply's status means, and its JSON. No word of a message decides anything: statuses and codes do."""

import email.utils
import time
from collections.abc import Mapping
from typing import Any

import orjson

from app.errors import (
    MalformedAnswer,
    PermanentTeacherError,
    RateLimited,
    TeacherError,
    TeacherRefusedKey,
    TransientTeacherError,
)
from app.teachers.transport import Reply

_AGAIN = frozenset({408, 409, 421, 425})


def json_of(reply: Reply) -> Any:
    """The JSON of a reply with status 200. Raises what `refusal` returns, and `MalformedAnswer`."""
    if reply.status != 200:
        raise refusal(reply)
    kind = reply.headers.get("content-type", "")
    if "json" not in kind:
        raise MalformedAnswer(
            f"the teacher answered with {kind or 'no content type'} where JSON was asked for"
        )
    try:
        return orjson.loads(reply.body)
    except orjson.JSONDecodeError as error:
        raise MalformedAnswer(f"the teacher's answer is not whole JSON: {error}") from error


def refusal(reply: Reply) -> TeacherError:
    """The error that a reply other than 200 stands for."""
    status = reply.status
    code, message = _said(reply)
    told = f"the teacher answered {status}" + (f": {message}" if message else "")
    if status in (401, 403):  # without its words: some servers repeat the key
        return TeacherRefusedKey(f"the teacher answered {status}: it does not take the key, or not for this")
    if status == 402 or code == "insufficient_quota":
        return TeacherRefusedKey(f"{told} (no credit left)")
    if status == 429:
        return RateLimited(told, retry_after=retry_after(reply.headers))
    if status in _AGAIN or status >= 500:
        return TransientTeacherError(told, retry_after=retry_after(reply.headers))
    if 300 <= status < 400:
        return PermanentTeacherError(
            f"the teacher answered {status}: redirects are not followed, mend its base_url"
        )
    if 200 <= status < 300:
        return MalformedAnswer(f"the teacher answered {status} where 200 was expected")
    return PermanentTeacherError(told)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `Retry-After` (seconds or a date) or `retry-after-ms`; None where it is not said."""
    milliseconds, given = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds is not None:
            return max(0.0, float(milliseconds) / 1000)
        if given is None:
            return None
        return max(0.0, float(given))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(given or "").timestamp() - time.time())
    except ValueError:
        return None


def _said(reply: Reply) -> tuple[str | None, str]:
    """(code, message) of an error body, in any of the usual shapes; the message is cut at 500 characters."""
    try:
        body = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        return None, reply.body[:200].decode("utf-8", "replace").strip()
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, list):
        error = error[0] if error else None
    if not isinstance(error, dict):
        return None, str(error)[:500]
    code = error.get("code") or error.get("type")
    message = error.get("message") or error.get("detail") or ""
    return (code if isinstance(code, str) else None), str(message)[:500]
