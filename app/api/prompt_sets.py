"""Routes of prompt sets, except the one that appends to them."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.dependencies import Reader, Reading, ResourcesDep, Writer, Writing, after_commit, note
from app.api.once import WriterOnce
from app.api.paging import Cursor, Limit, Page, int_places, page_of, text_place
from app.db.audit import Event
from app.services import appends, prompt_sets
from app.services.prompt_sets import PromptErrorView, PromptSetView, PromptView

router = APIRouter(prefix="/v1/prompt-sets", tags=["prompt sets"])

SetId = Annotated[str, Path(max_length=64, description="Id of a prompt set, `ps_…`.")]


class PromptSetRequest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$", description="Need not be unique."
    )


@router.post("", status_code=201, response_model=PromptSetView, summary="Create a prompt set")
def create_prompt_set(
    once: WriterOnce,
    body: Annotated[PromptSetRequest, Body(openapi_examples={"a set": {"value": {"name": "arithmetic"}}})],
) -> Response:
    """An empty set, open for prompts until it is sealed.

    ```sh
    curl -s http://127.0.0.1:8321/v1/prompt-sets -H "Authorization: Bearer $RETORT_API_KEY" \\
      -H 'Content-Type: application/json' -d '{"name": "arithmetic"}'
    ```
    """
    who = once.caller
    return once.answer(
        201,
        lambda: prompt_sets.create(once.session, who.project_id, who.key_id, body.name),
        audit=lambda made: Event("prompt_set.create", made.id, {"name": made.name}),
    )


@router.get("", response_model=Page[PromptSetView], summary="List prompt sets")
def list_prompt_sets(
    session: Reading,
    who: Reader,
    name: Annotated[str | None, Query(max_length=200, description="Only sets of this name.")] = None,
    content_hash: Annotated[
        str | None,
        Query(
            pattern=r"^[0-9a-f]{64}$",
            description="Only sets with exactly these prompts: finds an earlier upload.",
        ),
    ] = None,
    sealed: Annotated[bool | None, Query(description="Only sealed sets, or only open ones.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[PromptSetView]:
    """Newest first."""
    wanted = None if content_hash is None else bytes.fromhex(content_hash)
    before = text_place("prompt-sets", cursor)
    found = prompt_sets.page(session, who.project_id, name, wanted, sealed, before, limit + 1)
    return page_of("prompt-sets", found, limit, lambda one: [one.id])


@router.get("/{prompt_set_id}", response_model=PromptSetView, summary="Read a prompt set")
def read_prompt_set(session: Reading, who: Reader, prompt_set_id: SetId) -> PromptSetView:
    """Its counts, its hash, and whether it is sealed. During an append `n_prompts` tells what is committed."""
    return prompt_sets.get(session, who.project_id, prompt_set_id)


@router.post("/{prompt_set_id}/seal", response_model=PromptSetView, summary="Seal a prompt set")
def seal_prompt_set(
    session: Writing, who: Writer, given: ResourcesDep, prompt_set_id: SetId
) -> PromptSetView:
    """From now on it is immutable, and its `content_hash` names exactly these prompts. Sealing twice is no error."""
    sealed = prompt_sets.seal(session, who.project_id, prompt_set_id)
    note(session, who, Event("prompt_set.seal", prompt_set_id, {"content_hash": sealed.content_hash}))
    after_commit(session, lambda: appends.hand_to_followers(given.engine, prompt_set_id))
    return sealed


@router.get("/{prompt_set_id}/prompts", response_model=Page[PromptView], summary="Read the prompts")
def read_prompts(
    session: Reading, who: Reader, prompt_set_id: SetId, limit: Limit = 50, cursor: Cursor = None
) -> Page[PromptView]:
    """In order, as they are stored: licence normalised, a bare string as one user message."""
    place = int_places("prompts", cursor, 1)
    found = prompt_sets.prompts(session, who.project_id, prompt_set_id, place[0] if place else -1, limit + 1)
    return page_of("prompts", found, limit, lambda prompt: [prompt.number])


@router.get(
    "/{prompt_set_id}/errors",
    response_model=Page[PromptErrorView],
    summary="Read the rows that did not parse",
)
def read_prompt_errors(
    session: Reading, who: Reader, prompt_set_id: SetId, limit: Limit = 50, cursor: Cursor = None
) -> Page[PromptErrorView]:
    """Each with its line, the reason, and its beginning. Nothing of such a row is in the set."""
    place = int_places("prompt-errors", cursor, 1)
    found = prompt_sets.errors(session, who.project_id, prompt_set_id, place[0] if place else -1, limit + 1)
    return page_of("prompt-errors", found, limit, lambda error: [error.number])
