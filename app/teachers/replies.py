"""What a reply's status means, and its JSON. No word of a message decides anything: statuses and codes do."""

import email.utils
import time
from collections.abc import Mapping
from typing import Any

import orjson

from app.errors import (
    MalformedAnswer,
    Overloaded,
    PermanentTeacherError,
    RateLimited,
    TeacherError,
    TeacherRefusedKey,
    TeacherUnavailable,
    TransientTeacherError,
)
from app.teachers.transport import Reply

_OVERLOADED = frozenset({503, 529})  # 529: Anthropic's
_AGAIN = frozenset({408, 409, 421, 425})
# Codes that providers document; whatever the status, no further call will do.
_NO_CREDIT = frozenset(
    {
        "insufficient_quota",
        "billing_error",
        "contract_spend_limit_reached",
        "enforced_spend_limit_reached",
        "linked_organization_billing_unavailable",
        "linked_organization_spend_limit_reached",
        "organization_on_hold",
    }
)
_BAD_KEY = frozenset({"API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED", "invalid_api_key"})


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


def answer_of(reply: Reply) -> Any:
    """`json_of` of a reply to a prompt. Raises `TeacherUnavailable` where path or model are gone: no prompt's fault."""
    if reply.status == 404 and type(error := refusal(reply)) is PermanentTeacherError:
        raise TeacherUnavailable(f"there is no such model or path: {error.detail}")
    return json_of(reply)


def refusal(reply: Reply) -> TeacherError:
    """The error that a reply other than 200 stands for."""
    codes, message, wait = _said(reply)
    return error_of(reply.status, codes, message, retry_after(reply.headers) if wait is None else wait)


def error_told(body: Any) -> TeacherError | None:
    """What an `error` object inside an answer of status 200 stands for; None where there is none.

    Its `code` is read as a status where it is one; else it is taken for a fault of whoever was called last.
    """
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return None
    code = error.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 502
    codes, message, wait = _parts_of(error)
    return error_of(status, codes, message, wait)


def error_of(status: int, codes: frozenset[str], message: str, wait: float | None = None) -> TeacherError:
    """The error for a status, the codes that came with it, and a message that decides nothing."""
    told = f"the teacher answered {status}" + (f": {message}" if message else "")
    if codes & _NO_CREDIT or status == 402:
        return TeacherRefusedKey(f"{told} (no credit left)")
    if status in (401, 403) or codes & _BAD_KEY:  # without its words: some servers repeat the key
        return TeacherRefusedKey(f"the teacher answered {status}: it does not take the key, or not for this")
    if status == 429:
        return RateLimited(told, retry_after=wait)
    if status in _OVERLOADED:
        return Overloaded(told, retry_after=wait)
    if status in _AGAIN or status >= 500:
        return TransientTeacherError(told, retry_after=wait)
    if 300 <= status < 400:
        return PermanentTeacherError(
            f"the teacher answered {status}: redirects are not followed, mend its base_url"
        )
    if 200 <= status < 300:
        return MalformedAnswer(f"the teacher answered {status} where 200 was expected")
    return PermanentTeacherError(told)


def refused_parameter(reply: Reply) -> str | None:
    """Name of the parameter that a 400 or 422 is about, where the body names one (OpenAI's `param`)."""
    if reply.status not in (400, 422):
        return None
    try:
        body = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        return None
    error = body.get("error") if isinstance(body, dict) else None
    param = error.get("param") if isinstance(error, dict) else None
    return param if isinstance(param, str) else None


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


def _said(reply: Reply) -> tuple[frozenset[str], str, float | None]:
    """(codes, message, seconds to wait) of an error body, in any of the usual shapes."""
    try:
        body = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        return frozenset(), reply.body[:200].decode("utf-8", "replace").strip(), None
    if isinstance(body, list) and body:  # Google wraps errors into a list where it streams
        body = body[0]
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, list):
        error = error[0] if error else None
    return _parts_of(error) if isinstance(error, dict) else (frozenset(), str(error)[:500], None)


def _parts_of(error: dict[str, Any]) -> tuple[frozenset[str], str, float | None]:
    """The message is cut at 500 characters."""
    details = error.get("details")
    nested = [one for one in details if isinstance(one, dict)] if isinstance(details, list) else []
    if isinstance(details, dict):
        nested = [details]
    told = [error.get("code"), error.get("type"), error.get("status")]
    told += [one.get(name) for one in nested for name in ("error_code", "reason")]
    waits = [wait for one in nested if (wait := _seconds(one.get("retryDelay"))) is not None]
    message = error.get("message") or error.get("detail") or ""
    codes = frozenset(code for code in told if isinstance(code, str))
    return codes, str(message)[:500], max(waits, default=None)


def _seconds(told: object) -> float | None:
    """Google's `"34.5s"`."""
    try:
        return max(0.0, float(told.removesuffix("s"))) if isinstance(told, str) else None
    except ValueError:
        return None
