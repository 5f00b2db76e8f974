"""Routes of exports: make them, read them, fetch their files, cancel and delete them."""

import logging
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from app.api.dependencies import Reader, Reading, ResourcesDep, Writer, Writing, after_commit, note
from app.api.once import WriterOnce, json_answer
from app.api.paging import Cursor, Limit, Page, page_of, text_place
from app.api.problems import MEDIA_TYPE
from app.db.audit import Event
from app.errors import PolicyRefusal, StorageError
from app.services import export as exports
from app.services import generations
from app.services.export import ExportForecast, ExportSpec, ExportView, FormatView
from app.services.generations import NewUse, UseView
from app.services.policy import keep_refusal
from app.storage.places import Storage

router = APIRouter(prefix="/v1", tags=["exports"])

ExportId = Annotated[str, Path(max_length=64, description="Id of an export, `exp_…`.")]
_BLOCK = 1 << 20
_RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]*)\s*-\s*([0-9]*)\s*")

log = logging.getLogger(__name__)

_EXAMPLES: Any = {
    "a job as Parquet": {
        "value": {
            "format": "parquet",
            "selection": {"jobs": ["job_01"]},
            "intended_use": {"research": True, "redistribution": True},
        }
    },
    "chat messages as JSONL, traces inside the content": {
        "value": {
            "format": "jsonl",
            "options": {"reasoning": "think", "columns": "messages"},
            "selection": {
                "jobs": ["job_01"],
                "finish_reasons": ["stop"],
                "metadata": [{"path": "difficulty", "min": 3}],
            },
            "split": {"train": 0.9, "validation": 0.1},
        }
    },
}


_STREAM_EXAMPLES: Any = {
    "chat messages": {"value": {"format": "jsonl", "selection": {"jobs": ["job_01"]}}},
    "conversations only": {
        "value": {
            "options": {"columns": "messages", "reasoning": "think"},
            "selection": {"jobs": ["job_01"], "finish_reasons": ["stop"]},
        }
    },
}


@router.get("/export-formats", response_model=Page[FormatView], summary="List formats of exports")
def list_formats(who: Reader) -> Page[FormatView]:
    """Each with the JSON Schema of its options.

    ```sh
    curl -s http://127.0.0.1:8321/v1/export-formats -H "Authorization: Bearer $RETORT_API_KEY"
    ```
    """
    return Page(items=exports.formats(), next_cursor=None)


@router.post(
    "/exports",
    status_code=201,
    response_model=ExportView,
    responses={200: {"model": ExportForecast, "description": "With `dry_run`: what the export would be"}},
    summary="Make an export",
)
def create_export(
    once: WriterOnce,
    given: ResourcesDep,
    body: Annotated[ExportSpec, Body(openapi_examples=_EXAMPLES)],
    dry_run: Annotated[bool, Query(description="Check and judge only; nothing is stored.")] = False,
) -> Response:
    """A worker writes the selected completions to files, whole or not at all. Poll it until it is `completed`.

    An export is a snapshot: the rows that are recorded by now are in it, whatever the job adds meanwhile. The same
    selection gives the same bytes again; what varies is in `manifest.json` alone.

    Its use is judged anew, since terms, overrides or the use may have changed. A refusal (403, `policy-refusal`) quotes
    the clause, names the teachers and rows at fault, and offers the rest: with `on_refusal: "drop"` those rows are left
    out, and `left_out` and the manifest name and count them. What a student owes is in `STUDENT_NOTICE.md` and
    `student_notice.json` beside the data.

    ```sh
    curl -s http://127.0.0.1:8321/v1/exports -H "Authorization: Bearer $RETORT_API_KEY" \\
      -H 'Content-Type: application/json' -d '{"format": "parquet", "selection": {"jobs": ["'$JOB'"]}}'
    ```
    """
    who = once.caller
    if dry_run:
        found = exports.forecast(once.session, who.project_id, who.key_id, body, given.policy_rules)
        return json_answer(200, found.model_dump_json().encode())
    after_commit(once.session, partial(given.wake, None))
    return once.answer(
        201,
        lambda: exports.create(once.session, who.project_id, who.key_id, body, given.policy_rules),
        audit=lambda made: Event(
            "export.create",
            made.id,
            {
                "jobs": list(body.selection.jobs),
                "format": made.format,
                "intended_use": made.intended_use.model_dump(),
                "on_refusal": made.on_refusal,
                "decision": None if made.policy is None else made.policy.decision,
            },
        ),
    )


@router.post(
    "/exports/stream",
    summary="Stream rows",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {}}, "description": "A row a line."}},
)
def stream_rows(
    session: Writing,
    who: Writer,
    given: ResourcesDep,
    body: Annotated[ExportSpec, Body(openapi_examples=_STREAM_EXAMPLES)],
) -> StreamingResponse:
    """The selected rows as lines of JSON, as fast as you read them, from the database: nothing is stored.

    It takes what an export takes, is judged as one, and holds the rows that are recorded when it begins. Formats of
    lines only. It ends when you leave. An answer that breaks off is not whole: its last chunk is missing. It cannot go
    on where it broke; make an export for that.

    ```sh
    curl -sN http://127.0.0.1:8321/v1/exports/stream -H "Authorization: Bearer $RETORT_API_KEY" \\
      -H 'Content-Type: application/json' -d '{"selection": {"jobs": ["'$JOB'"]}}' | head -n 3
    ```
    """
    try:
        found = exports.stream(
            session, given.engine, given.storage, who.project_id, who.key_id, body, given.policy_rules
        )
    except PolicyRefusal as refused:
        session.rollback()
        keep_refusal(given.engine, who.project_id, who.key_id, refused)
        raise
    event = Event(
        "export.stream", body.selection.jobs[0], {"jobs": list(body.selection.jobs), "format": body.format}
    )
    note(session, who, event)
    return StreamingResponse(found.lines(given.stopping), media_type="application/x-ndjson")


@router.get("/exports", response_model=Page[ExportView], summary="List exports")
def list_exports(session: Reading, who: Reader, limit: Limit = 50, cursor: Cursor = None) -> Page[ExportView]:
    """Newest first."""
    found = exports.page(session, who.project_id, text_place("exports", cursor), limit + 1)
    return page_of("exports", found, limit, lambda one: [one.id])


@router.get("/exports/{export_id}", response_model=ExportView, summary="Read an export")
def read_export(session: Reading, who: Reader, export_id: ExportId) -> ExportView:
    """Its progress, and its files with their checksums."""
    return exports.get(session, who.project_id, export_id)


@router.post("/exports/{export_id}/cancel", response_model=ExportView, summary="Cancel an export")
def cancel_export(session: Writing, who: Writer, given: ResourcesDep, export_id: ExportId) -> ExportView:
    """It is made no further, and what was written goes. 409 for one that has ended."""
    after_commit(session, partial(_clear, given.storage, export_id))
    note(session, who, Event("export.cancel", export_id))
    return exports.cancel(session, who.project_id, export_id)


@router.delete("/exports/{export_id}", response_model=ExportView, summary="Delete an export's files")
def delete_export(session: Writing, who: Writer, given: ResourcesDep, export_id: ExportId) -> ExportView:
    """Whatever its status is. The record stays as `deleted`, since students may have been trained on the data."""
    after_commit(session, partial(_clear, given.storage, export_id))
    note(session, who, Event("export.delete", export_id))
    return exports.delete(session, who.project_id, export_id)


@router.post(
    "/exports/{export_id}/uses",
    status_code=201,
    response_model=UseView,
    summary="Record what was trained on it",
)
def record_use(
    once: WriterOnce,
    export_id: ExportId,
    body: Annotated[
        NewUse,
        Body(
            openapi_examples={
                "a student": {"value": {"student": "me/small-student", "revision": "main", "run": "run 7"}}
            }
        ),
    ],
) -> Response:
    """A student, the revision of its weights, the run. A takedown then tells whom it concerns, and a student that
    becomes a teacher (`trained_on`) says how deep its rows are.

    ```sh
    curl -s http://127.0.0.1:8321/v1/exports/$EXPORT/uses -H "Authorization: Bearer $RETORT_API_KEY" \\
      -H 'Content-Type: application/json' -d '{"student": "me/small-student", "revision": "main"}'
    ```
    """
    who = once.caller
    return once.answer(
        201,
        lambda: generations.record_use(once.session, who.project_id, who.key_id, export_id, body),
        audit=lambda made: Event("export.use", export_id, {"use": made.id, "student": made.student}),
    )


@router.get("/exports/{export_id}/uses", response_model=Page[UseView], summary="List what was trained on it")
def list_uses(
    session: Reading, who: Reader, export_id: ExportId, limit: Limit = 50, cursor: Cursor = None
) -> Page[UseView]:
    """Newest first."""
    found = generations.uses(session, who.project_id, export_id, text_place("uses", cursor), limit + 1)
    return page_of("uses", found, limit, lambda one: [one.id])


def _clear(storage: Storage, export_id: str) -> None:
    try:
        storage.delete_folder(exports.folder_of(export_id))
    except StorageError as error:
        log.warning("files of export %s are left to the next tidying: %s", export_id, error.detail)


@router.head("/exports/{export_id}/files/{name}", include_in_schema=False)
@router.get(
    "/exports/{export_id}/files/{name}",
    summary="Fetch a file of an export",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The file."},
        206: {"content": {"application/octet-stream": {}}, "description": "The part that `Range` asked for."},
        304: {"description": "You have it: `If-None-Match` names its ETag."},
        416: {
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            "description": "The file ends before that range.",
        },
    },
)
def download_file(
    request: Request,
    session: Reading,
    who: Reader,
    given: ResourcesDep,
    export_id: ExportId,
    name: Annotated[
        str, Path(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of a file.")
    ],
    range_: Annotated[
        str | None,
        Header(alias="Range", max_length=100, description="One range of bytes: a fetch that goes on."),
    ] = None,
    if_none_match: Annotated[
        str | None, Header(max_length=1000, description="ETag of a file that you have.")
    ] = None,
    if_range: Annotated[
        str | None,
        Header(
            max_length=1000, description="ETag of the file that you have a part of: another one comes whole."
        ),
    ] = None,
) -> Response:
    """The ETag is the file's SHA-256. One `Range` is honoured, so that a broken fetch can go on; with `If-Range`, in
    the file of that ETag only: another one comes whole. `HEAD` tells its size and its ETag.

    ```sh
    curl -sOC - http://127.0.0.1:8321/v1/exports/$EXPORT/files/train-00000.parquet \\
      -H "Authorization: Bearer $RETORT_API_KEY"
    ```
    """
    path, file = exports.file_of(session, who.project_id, export_id, name)
    headers = {
        "ETag": f'"{file.sha256}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{name}"',
    }
    if if_none_match is not None and (headers["ETag"] in if_none_match or if_none_match.strip() == "*"):
        return Response(status_code=304, headers=headers)
    start, end = 0, file.n_bytes
    status = 200
    head = request.method == "HEAD"  # to which Range means nothing (RFC 9110 §14.2)
    if range_ is not None and not head and if_range in (None, headers["ETag"]):
        asked = _range(range_, file.n_bytes)
        if asked == "unsatisfiable":
            raise HTTPException(
                416,
                f"{name} has {file.n_bytes:,} bytes and ends before that range",
                {"Content-Range": f"bytes */{file.n_bytes}"},
            )
        if not isinstance(asked, str):
            start, end = asked
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.n_bytes}"
    headers["Content-Length"] = str(end - start)
    blocks = _blocks(given.storage, path, start, start if head else end)
    first = next(blocks, b"")  # a file that is gone is told as that, before the answer has begun
    return StreamingResponse(chain((first,), blocks), status, headers, media_type="application/octet-stream")


def _range(header: str, size: int) -> tuple[int, int] | str:
    """(start, end) of one byte range, `ignored` for what is none, `unsatisfiable` (RFC 9110 §14)."""
    asked = _RANGE.fullmatch(header)
    first, last = ("", "") if asked is None else asked.groups()
    if not (first or last) or (first and last and int(last) < int(first)):
        return "ignored"
    if first:
        start, end = int(first), min(size, int(last) + 1) if last else size
    else:
        start, end = max(0, size - int(last)), size
    return (start, end) if start < end else "unsatisfiable"


def _blocks(storage: Storage, path: str, start: int, end: int) -> Iterator[bytes]:
    with storage.open(path) as file:
        file.seek(start)
        left = end - start
        while left > 0 and (block := file.read(min(_BLOCK, left))):
            left -= len(block)
            yield block
