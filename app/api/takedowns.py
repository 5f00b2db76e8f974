"""Routes of takedowns."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Response

from app.api.dependencies import Reader, Reading, ResourcesDep, after_commit
from app.api.once import AdminOnce, json_answer
from app.api.paging import Cursor, Limit, Page, page_of, text_place
from app.db.audit import Event
from app.services import takedown
from app.services.takedown import TakedownForecast, TakedownRequest, TakedownView

router = APIRouter(prefix="/v1/takedowns", tags=["takedowns"])

_EXAMPLES: Any = {
    "a source": {
        "value": {
            "source": "https://example.org/book",
            "who": "rights@example.org",
            "why": "Letter of 3 March 2026",
            "withdraw_exports": True,
        }
    },
    "prompts": {
        "value": {"prompt_set": "ps_01", "prompts": [0], "who": "dana@example.org", "why": "Personal data"}
    },
    "what a teacher made": {
        "value": {"teacher": "small", "who": "dana@example.org", "why": "Its licence was withdrawn"}
    },
}


@router.post(
    "",
    status_code=201,
    response_model=TakedownView,
    responses={200: {"model": TakedownForecast, "description": "With `dry_run`: what it would find"}},
    summary="Order a takedown",
)
def order_takedown(
    once: AdminOnce,
    given: ResourcesDep,
    body: Annotated[TakedownRequest, Body(openapi_examples=_EXAMPLES)],
    dry_run: Annotated[bool, Query(description="Tell what it would find; nothing is changed.")] = False,
) -> Response:
    """Remove what was made from a source, of prompts, or by a teacher. **It cannot be undone.**

    A worker removes prompts, answers, traces and token columns from the database and from disk (segments are written
    anew), and makes exports that are under way begin again. Hashes, counts and lineage stay. Exports that were made
    before and hold such rows are listed in `tainted_exports`; with `withdraw_exports` their files are deleted.
    Prompts of that source that are sent later are new ones.

    ```sh
    curl -s http://127.0.0.1:8321/v1/takedowns -H "Authorization: Bearer $RETORT_API_KEY" \\
      -H 'Content-Type: application/json' \\
      -d '{"source": "https://example.org/book", "who": "rights@example.org", "why": "Letter of 3 March 2026"}'
    ```
    """
    who = once.caller
    if dry_run:
        found = takedown.forecast(once.session, who.project_id, body)
        return json_answer(200, found.model_dump_json().encode())
    after_commit(once.session, partial(given.wake, None))
    return once.answer(
        201,
        lambda: takedown.order(once.session, who.project_id, who.key_id, body),
        audit=lambda made: Event(
            "takedown.order",
            made.id,
            {"kind": made.kind, "who": made.who, "why": made.why, "withdraw": made.withdraw_exports},
        ),
    )


@router.get("", response_model=Page[TakedownView], summary="List takedowns")
def list_takedowns(
    session: Reading, who: Reader, limit: Limit = 50, cursor: Cursor = None
) -> Page[TakedownView]:
    """Newest first."""
    found = takedown.page(session, who.project_id, text_place("takedowns", cursor), limit + 1)
    return page_of("takedowns", found, limit, lambda one: [one.id])


@router.get("/{takedown_id}", response_model=TakedownView, summary="Read a takedown")
def read_takedown(
    session: Reading,
    who: Reader,
    takedown_id: Annotated[str, Path(max_length=64, description="Id of a takedown, `tkd_…`.")],
) -> TakedownView:
    """How far it has come, what it removed, and the exports that it taints."""
    return takedown.get(session, who.project_id, takedown_id)
