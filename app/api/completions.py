"""Routes of a job's completions."""

from typing import Annotated, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Query, Response
from numpy.typing import NDArray

from app.api.dependencies import Reader, Reading, ResourcesDep
from app.api.jobs import JobId
from app.api.paging import Cursor, Page, int_places, next_cursor
from app.db.completions import Place
from app.domain.columns import TokenColumns
from app.errors import InvalidInput
from app.services import completions
from app.services.completions import CompletionOut, Found, Include

router = APIRouter(prefix="/v1/jobs", tags=["completions"])

MAX_WITH_TOKENS = 100

Included = Annotated[
    list[Literal["prompt", "tokens"]],
    Query(description="`prompt`: the messages. `tokens`: ids and logprobs (at most 100 rows a page)."),
]
PageSize = Annotated[int, Query(ge=1, le=1000, description="Rows per page.")]
PromptNumber = Annotated[int | None, Query(ge=0, lt=2**63, description="Only this prompt's.")]


@router.get("/{job_id}/completions", response_model=Page[CompletionOut], summary="Read a job's completions")
def read_completions(
    session: Reading,
    who: Reader,
    given: ResourcesDep,
    job_id: JobId,
    status: Annotated[Literal["completed", "failed"] | None, Query(description="Only these.")] = None,
    prompt_number: PromptNumber = None,
    include: Included = [],  # noqa: B006 - FastAPI's way to say: none
    limit: PageSize = 50,
    cursor: Cursor = None,
) -> Response:
    """In a stable order, while the job runs too: by stage, prompt, teacher and sample (failed ones: by prompt first).

    ```sh
    curl -s "http://127.0.0.1:8321/v1/jobs/$JOB/completions?include=tokens&include=prompt&limit=1" \\
      -H "Authorization: Bearer $RETORT_API_KEY"
    ```
    """
    with_ = _include(include, limit)
    if status == "failed":
        return _failures(session, who, given, job_id, [], prompt_number, with_, limit, cursor)
    after = _place("completions", cursor)
    found = completions.page(
        session,
        given.storage,
        who.project_id,
        job_id,
        prompt_number,
        status == "completed",
        after,
        limit + 1,
        with_,
    )
    return _answer("completions", found, limit)


@router.get("/{job_id}/failures", response_model=Page[CompletionOut], summary="Read what failed")
def read_failures(
    session: Reading,
    who: Reader,
    given: ResourcesDep,
    job_id: JobId,
    kind: Annotated[list[str], Query(description="Only these kinds of error.")] = [],  # noqa: B006
    prompt_number: PromptNumber = None,
    include: Included = [],  # noqa: B006
    limit: PageSize = 50,
    cursor: Cursor = None,
) -> Response:
    """Failed completions with kind and reason, by prompt. `POST …/retry` asks for them again."""
    return _failures(
        session, who, given, job_id, kind, prompt_number, _include(include, limit), limit, cursor
    )


def _failures(
    session: Reading,
    who: Reader,
    given: ResourcesDep,
    job_id: str,
    kinds: list[str],
    prompt: int | None,
    include: Include,
    limit: int,
    cursor: str | None,
) -> Response:
    after = _place("failures", cursor)
    found = completions.failures(
        session, given.storage, who.project_id, job_id, kinds, prompt, after, limit + 1, include
    )
    return _answer("failures", found, limit)


def _include(wanted: list[Literal["prompt", "tokens"]], limit: int) -> Include:
    if "tokens" in wanted and limit > MAX_WITH_TOKENS:
        raise InvalidInput(
            f"with `include=tokens` a page has at most {MAX_WITH_TOKENS} rows; {limit} were asked for"
        )
    return Include(prompt="prompt" in wanted, tokens="tokens" in wanted)


def _place(name: str, cursor: str | None) -> Place | None:
    place = int_places(name, cursor, 4)
    return None if place is None else (place[0], place[1], place[2], place[3])


def _key(name: str, found: Found) -> list[str | int]:
    view = found.view
    first = [view.prompt_number, view.stage] if name == "failures" else [view.stage, view.prompt_number]
    return [*first, view.teacher, view.sample_index]


def _answer(name: str, found: list[Found], limit: int) -> Response:
    """The page as JSON, its arrays written as they are: building lists of numbers first costs ten times as much."""
    following = next_cursor(name, _key(name, found[limit - 1])) if len(found) > limit else None
    items = []
    for one in found[:limit]:
        row = one.view.model_dump(mode="json")
        row["messages"] = one.messages
        row["tokens"] = None if one.tokens is None else _tokens(one.tokens)
        items.append(row)
    body = orjson.dumps({"items": items, "next_cursor": following}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")


def _tokens(columns: TokenColumns) -> dict[str, object]:
    arrays: dict[str, NDArray[np.generic]] = {
        "token_ids": columns.token_ids,
        "sampled_logprob": columns.sampled_logprob,
        "sampled_rank": columns.sampled_rank,
        "tail_logmass": columns.tail_logmass,
        "sampled": columns.sampled,
        "topk_ids": columns.topk_ids,
        "topk_logprobs": columns.topk_logprobs,
        "prompt_ids": columns.prompt_ids,
    }
    return {"k": columns.k, **{name: np.ascontiguousarray(values) for name, values in arrays.items()}}
