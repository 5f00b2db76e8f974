"""What is said of a JSON body before it is taken for what it means."""

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from app.domain.json_text import check_nothing_lost
from app.errors import InvalidInput, InvalidRow


async def sound_body(request: Request) -> None:
    """Raises where an operation's JSON body is sent as another type, or says more than its parser kept.

    For operations that FastAPI parses the body of: when this is called, it has.
    """
    if getattr(request.scope.get("route"), "body_field", None) is None:
        return
    raw = await request.body()
    if not raw:
        return
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not _is_json(media_type):
        raise HTTPException(
            415, f"send the body as JSON, with `Content-Type: application/json`, not {media_type or 'none'}"
        )
    value = await request.json()  # kept since it was parsed
    await run_in_threadpool(_check, raw, value)


def _is_json(media_type: str) -> bool:
    kind, _, subtype = media_type.partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


def _check(raw: bytes, value: object) -> None:
    try:
        check_nothing_lost(raw, value)
    except InvalidRow as error:
        raise InvalidInput(error.detail, errors=[{"detail": error.detail, "pointer": "#"}]) from error
    except RecursionError as error:
        raise HTTPException(400, "the body is nested too deeply") from error
