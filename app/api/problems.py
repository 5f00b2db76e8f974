"""Problem details (RFC 9457) for every error, and the one table from error class to HTTP status."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from app import errors

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

# Every class of the tree stands here by itself; a test walks the tree.
STATUS: Mapping[type[errors.RetortError], int] = {
    errors.RetortError: 500,
    errors.InvalidInput: 422,
    errors.InvalidLicense: 422,
    errors.InvalidSignature: 422,
    errors.InvalidRow: 422,
    errors.InvalidCursor: 400,
    errors.Unfit: 422,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Sealed: 409,
    errors.IllegalTransition: 409,
    errors.IdempotencyConflict: 409,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.PolicyRefusal: 403,
    errors.LeaseLost: 409,
    errors.StorageError: 500,
    errors.TeacherError: 502,
    errors.TransientTeacherError: 502,
    errors.RateLimited: 503,
    errors.Overloaded: 503,
    errors.MalformedAnswer: 502,
    errors.TeacherUnavailable: 503,
    errors.PermanentTeacherError: 502,
    errors.Unsupported: 422,
    errors.TeacherRefusedKey: 502,
    errors.IdentityChanged: 409,
}

_TITLES = {
    "invalid-input": "The request is not valid",
    "invalid-license": "Not an SPDX licence expression",
    "invalid-signature": "Not what was signed",
    "invalid-row": "A row does not parse",
    "invalid-cursor": "Not a page cursor of this list",
    "export-unfit": "These rows cannot be exported in this format",
    "not-found": "Not found",
    "conflict": "The state of the thing forbids this",
    "prompt-set-sealed": "The prompt set is sealed",
    "illegal-transition": "A job cannot do this now",
    "idempotency-conflict": "The Idempotency-Key is taken",
    "unauthenticated": "No valid key",
    "forbidden": "The key may not do this",
    "policy-refusal": "Terms or licences forbid the intended use",
    "lease-lost": "Another worker owns this now",
    "storage": "A stored file is missing or damaged",
    "teacher-unsupported": "The teacher cannot do this",
    "internal": "Something broke on our side",
    "database-unavailable": "The database does not answer",
}

# Kinds of what no error class stands for. Phrases of HTTP are no kinds: they differ between versions of Python.
_HTTP_KINDS: Mapping[int, str] = {
    400: "bad-request",
    404: "not-found",
    405: "method-not-allowed",
    413: "content-too-large",
    415: "unsupported-media-type",
    416: "range-not-satisfiable",
}

# Detail of our own faults stays in the log.
_OUR_FAULT = "the service failed; its log tells more under this request id"


class Fault(BaseModel):
    """One thing that is wrong."""

    model_config = ConfigDict(extra="allow")

    detail: str
    pointer: str | None = Field(None, description="JSON pointer into the body, or the parameter's name.")


class Problem(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="Stable, for programs: `urn:retort:problem:<kind>`.")
    title: str
    status: int
    detail: str = Field(description="For a person: what is wrong and how to mend it.")
    request_id: str | None = Field(None, description="Names the request in the service's log.")
    errors: list[Fault] | None = None


def problem_body(
    kind: str, status: int, detail: str, request_id: str | None, extra: Mapping[str, object]
) -> bytes:
    title = _TITLES.get(kind) or HTTPStatus(status).phrase
    body: dict[str, object] = {
        **extra,
        "type": f"urn:retort:problem:{kind}",
        "title": title,
        "status": status,
        "detail": detail,
    }
    if request_id is not None:
        body["request_id"] = request_id
    return orjson.dumps(body, default=str)


def problem(
    request: Request,
    kind: str,
    status: int,
    detail: str,
    extra: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = problem_body(kind, status, detail, request.scope.get("request_id"), extra or {})
    return Response(body, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def install(app: FastAPI, routes: Sequence[APIRoute]) -> None:
    """Make every error of this app a problem. (What no handler knows, the edge turns into one: `app.api.edge`.)

    `routes`: all of them, so that a 405 can name every method that a path takes (RFC 9110, 15.5.6).
    """
    app.state.methods_by_path = [(route.path_regex, route.methods) for route in routes]
    app.add_exception_handler(errors.RetortError, _domain_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    for unavailable in (OperationalError, InterfaceError, PoolTimeout):
        app.add_exception_handler(unavailable, _database_error)
    app.add_exception_handler(DataError, _data_error)
    app.add_exception_handler(IntegrityError, _integrity_error)


def _domain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.RetortError)
    status = STATUS[type(error)]
    headers: dict[str, str] = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.TransientTeacherError) and error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if isinstance(error, errors.IdempotencyConflict):
        headers["Retry-After"] = "2"
    detail = error.detail
    if status == 500:
        log.error("request %s failed", request.scope.get("request_id"), exc_info=error)
        detail = error.detail if isinstance(error, errors.StorageError) else _OUR_FAULT
    return problem(request, error.kind, status, detail, error.extra, headers)


def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [_fault(one) for one in error.errors()]
    where = faults[0].get("pointer")
    detail = f"{where}: {faults[0]['detail']}" if where else str(faults[0]["detail"])
    if len(faults) > 1:
        detail += f" (and {len(faults) - 1} more, see `errors`)"
    return problem(request, "invalid-input", 422, detail, {"errors": faults})


def _fault(error: Mapping[str, Any]) -> dict[str, object]:
    place, *path = error["loc"]
    message = str(error["msg"]).removeprefix("Value error, ").replace("Tuple should have", "List should have")
    if error["type"] == "extra_forbidden":
        message = "there is no such field"
    if error["type"] == "json_invalid":
        return {"detail": f"not JSON: {error['ctx']['error']} (at character {path[0]})", "pointer": "#"}
    if place == "body":
        return {"detail": message, "pointer": "#" + "".join(f"/{_escaped(step)}" for step in path)}
    return {"detail": message, "pointer": ".".join(str(step) for step in path), "in": str(place)}


def _escaped(step: object) -> str:
    return str(step).replace("~", "~0").replace("/", "~1")


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _HTTP_KINDS.get(error.status_code, f"http-{error.status_code}")
    detail = error.detail
    headers = dict(error.headers or {})
    if error.status_code == 404 and detail == "Not Found":
        detail = f"there is nothing at {request.url.path}; /docs lists what there is"
    elif error.status_code == 400 and isinstance(error.__cause__, UnicodeDecodeError):
        detail = f"the body is not JSON in UTF-8: {error.__cause__}"
    elif error.status_code == 400 and isinstance(error.__cause__, RecursionError):
        detail = "the body is nested too deeply"
    elif error.status_code == 405 and detail == "Method Not Allowed":
        known = request.app.state.methods_by_path
        allowed = {method for path, methods in known if path.match(request.url.path) for method in methods}
        headers = {"Allow": ", ".join(sorted(allowed))}
        detail = f"{request.method} is not possible here; possible: {headers['Allow']}"
    return problem(request, kind, error.status_code, detail, None, headers)


def _database_error(request: Request, error: Exception) -> Response:
    log.error("request %s: the database does not answer", request.scope.get("request_id"), exc_info=error)
    detail = "the database does not answer or is busy; nothing was changed, ask again"
    return problem(request, "database-unavailable", 503, detail, None, {"Retry-After": "2"})


def _data_error(request: Request, error: Exception) -> Response:
    log.warning(
        "request %s holds a value that the database cannot store: %s", request.scope.get("request_id"), error
    )
    detail = "a value cannot be stored: text may not contain the character U+0000"
    return problem(request, "invalid-input", 422, detail)


def _integrity_error(request: Request, error: Exception) -> Response:
    """What a service checked was changed by someone else before the write."""
    log.warning("request %s met another one: %s", request.scope.get("request_id"), error)
    detail = (
        "another request changed something that this one needs at the same moment: read again, and ask again"
    )
    return problem(request, "conflict", 409, detail)
