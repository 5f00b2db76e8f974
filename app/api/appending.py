"""The route that appends prompts: JSON, or a stream of lines of any length in bounded memory."""

import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

import anyio
import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import JsonValue
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from app.api.dependencies import ResourcesDep, Writer
from app.api.edge import STREAMED_TYPES
from app.api.once import REPLAYED, IdempotencyKey, json_answer, request_hash
from app.api.prompt_sets import SetId
from app.api.resources import Resources
from app.api.rows import inflated, row_chunks
from app.domain.json_text import check_nothing_lost
from app.errors import InvalidInput
from app.services import appends
from app.services.appends import Append, AppendView, RawRow, Ticket
from app.services.spool import Spool

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/prompt-sets", tags=["prompt sets"])

_HASHED_OF_STREAM = 64 * 1024

_EXAMPLE = {
    "prompts": [
        "What is 17 × 23?",
        {
            "messages": [
                {"role": "system", "content": "You are a patient tutor."},
                {"role": "user", "content": "Why is the sky blue?"},
            ],
            "license": "CC0-1.0",
            "source": "own writing",
            "metadata": {"topic": "physics"},
            "reference": "Rayleigh scattering",
            "parameters": {"max_tokens": 200},
        },
    ]
}
_LINES = '{"prompt": "What is 17 × 23?", "license": "CC0-1.0"}\n"Name three prime numbers."\n'

_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["prompts"],
                "additionalProperties": False,
                "properties": {
                    "prompts": {
                        "type": "array",
                        "items": {"anyOf": [{"type": "string"}, {"$ref": "#/components/schemas/Prompt"}]},
                    }
                },
            },
            "examples": {"two prompts": {"value": _EXAMPLE}},
        },
        **{
            media_type: {
                "schema": {
                    "type": "string",
                    "description": "One prompt a line: an object or a string, as JSON.",
                },
                "examples": {"two lines": {"value": _LINES}},
            }
            for media_type in ("application/x-ndjson", "application/jsonl")
        },
    },
}


@router.post(
    "/{prompt_set_id}/prompts",
    response_model=AppendView,
    summary="Append prompts",
    openapi_extra={"requestBody": _BODY},
)
async def append_prompts(
    request: Request,
    given: ResourcesDep,
    who: Writer,
    prompt_set_id: SetId,
    strict: Annotated[bool, Query(description="Nothing goes in if any row does not parse.")] = False,
    seal: Annotated[bool, Query(description="Seal the set when all rows are in.")] = False,
    from_line: Annotated[
        int, Query(ge=1, description="Skip the lines before this one: to go on with a file that was cut off.")
    ] = 1,
    key: IdempotencyKey = None,
) -> Response:
    """As JSON, or as a stream of lines (`application/x-ndjson`, `application/jsonl`), gzip allowed, of any length.

    Rows go in by short transactions. A row that does not parse is reported with its line and the reason, and the rest
    goes in, unless `strict`. When the connection breaks, what was committed stays; sent again with the same
    `Idempotency-Key`, the append goes on where it stopped, and nothing stands twice. (For a stream, the key stands for
    the address and the first 64 KiB.) Without a key, `from_line` does the same by hand.

    ```sh
    curl -s "http://127.0.0.1:8321/v1/prompt-sets/$SET/prompts?seal=true" -H "Authorization: Bearer $RETORT_API_KEY" \\
      -H 'Content-Type: application/x-ndjson' -H 'Idempotency-Key: upload-1' --data-binary @prompts.jsonl
    ```
    """
    chunks, sha256 = await _received(request, given)
    ticket = None if key is None else Ticket(key, sha256)
    append = await run_in_threadpool(
        appends.begin, given.engine, who.project_id, who.key_id, prompt_set_id, ticket, from_line
    )
    if not isinstance(append, Append):
        return json_answer(append.status, append.body, {REPLAYED: "true"})
    try:
        if strict:
            await _add_all_or_none(append, chunks)
        else:
            async with aclosing(chunks):
                async for rows in chunks:
                    await run_in_threadpool(append.add, rows)
        made = await run_in_threadpool(append.finish, seal)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(_suspend, append)
        raise
    await run_in_threadpool(given.wake, None)
    return json_answer(200, made.model_dump_json().encode())


def _suspend(append: Append) -> None:
    try:
        append.suspend()
    except SQLAlchemyError as error:  # it is taken over later, when it has been silent for a while
        log.warning("append %s could not be put aside: %s", append.progress.append_id, error)


async def _received(request: Request, given: Resources) -> tuple[AsyncGenerator[list[RawRow], None], bytes]:
    """The rows to come, and the hash that tells this request from others."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip"):
        raise HTTPException(415, f"Content-Encoding {encoding!r} is not understood; gzip is")
    if media_type == "application/json":
        return await _json_rows(request, encoding, given.max_body_bytes)
    if media_type not in STREAMED_TYPES:
        raise HTTPException(
            415,
            f"send application/json, application/x-ndjson or application/jsonl, not {media_type or 'nothing'}",
        )
    stream = request.stream()
    head = b""
    async for data in stream:
        head += data
        if len(head) >= _HASHED_OF_STREAM:
            break
    # The client may cut its stream into other pieces the next time: hash a fixed length.
    sha256 = request_hash(request, hashlib.sha256(head[:_HASHED_OF_STREAM]).digest())
    return row_chunks(inflated(_joined(head, stream), encoding)), sha256


async def _joined(head: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    async for data in rest:
        yield data


async def _json_rows(
    request: Request, encoding: str, most: int
) -> tuple[AsyncGenerator[list[RawRow], None], bytes]:
    raw = await request.body()
    body = bytearray()
    async for step in inflated(_joined(raw, _nothing()), encoding):
        body += step
        if len(body) > most:
            raise HTTPException(
                413, f"the body is larger than {most:,} bytes; stream it as application/x-ndjson"
            )
    values = await run_in_threadpool(_prompts_of, bytes(body))

    async def rows() -> AsyncGenerator[list[RawRow], None]:
        for portion in appends.chunks(values):
            yield portion

    return rows(), request_hash(request, raw)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def _prompts_of(body: bytes) -> list[JsonValue]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(
            f"the body is not JSON: {error}", errors=[{"detail": str(error), "pointer": "#"}]
        ) from error
    check_nothing_lost(body, value)
    if not isinstance(value, dict) or not isinstance(value.get("prompts"), list):
        raise InvalidInput(
            'the body must be an object with a list: {"prompts": […]}',
            errors=[{"detail": "a list is needed here", "pointer": "#/prompts"}],
        )
    unknown = sorted(set(value) - {"prompts"})
    if unknown:
        raise InvalidInput(
            f"there is no field {unknown[0]!r} beside `prompts`; `strict` and `seal` are query parameters",
            errors=[{"detail": "there is no such field", "pointer": f"#/{name}"} for name in unknown],
        )
    prompts: list[JsonValue] = value["prompts"]
    return prompts


async def _add_all_or_none(append: Append, chunks: AsyncIterator[list[RawRow]]) -> None:
    spool = Spool(append.default_license)
    try:
        async for rows in chunks:
            await run_in_threadpool(spool.add, rows)
        spool.check()
        waiting = spool.chunks()
        while rows_again := await run_in_threadpool(next, waiting, None):
            await run_in_threadpool(append.add, rows_again)
    finally:
        spool.close()
