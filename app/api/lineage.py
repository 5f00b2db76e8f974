"""Routes of lineage: from a row back to its origin, from origins forward to exports."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.dependencies import Reader, Reading
from app.errors import InvalidInput
from app.services import lineage
from app.services.lineage import ForwardLineage, RowLineage

router = APIRouter(prefix="/v1/lineage", tags=["lineage"])


@router.get("/row", response_model=RowLineage, summary="Trace a row back")
def read_row_lineage(
    session: Reading,
    who: Reader,
    row_id: Annotated[
        str,
        Query(
            max_length=120,
            description="As in an export's column `row_id`: job/stage/prompt number/teacher's position/sample index.",
        ),
    ],
) -> RowLineage:
    """Prompt, source, licence, teacher, revision, terms, parameters, attempt, job, the key that asked, the version of
    the code, and every export that holds the row.

    ```sh
    curl -sG http://127.0.0.1:8321/v1/lineage/row --data-urlencode "row_id=$JOB/0/17/0/0" \\
      -H "Authorization: Bearer $RETORT_API_KEY"
    ```
    """
    return lineage.of_row(session, who.project_id, row_id)


@router.get("/exports", response_model=ForwardLineage, summary="Find the exports of an origin")
def read_exports_of(
    session: Reading,
    who: Reader,
    source: Annotated[
        str | None, Query(max_length=1024, description="Every prompt with this very source, in all sets.")
    ] = None,
    prompt_set: Annotated[
        str | None, Query(max_length=64, description="With `prompt_number`: one prompt.")
    ] = None,
    prompt_number: Annotated[
        int | None, Query(ge=0, lt=2**62, description="Number of a prompt, from 0.")
    ] = None,
    teacher: Annotated[str | None, Query(max_length=128, description="Name or id of a teacher.")] = None,
) -> ForwardLineage:
    """Give a `source`, a `teacher`, or a prompt by `prompt_set` and `prompt_number`.

    Told are exports that were whole once, deleted ones too, since a student may have been trained on them. What a
    format itself left out (such as rows without token ids) counts as in.

    ```sh
    curl -sG http://127.0.0.1:8321/v1/lineage/exports --data-urlencode "source=https://example.org/book" \\
      -H "Authorization: Bearer $RETORT_API_KEY"
    ```
    """
    asked = [source is not None, teacher is not None, prompt_set is not None or prompt_number is not None]
    if sum(asked) != 1 or (prompt_set is None) != (prompt_number is None):
        raise InvalidInput(
            "give one of these: `source`; `teacher`; `prompt_set` together with `prompt_number`"
        )
    if source is not None:
        return lineage.of_source(session, who.project_id, source)
    if teacher is not None:
        return lineage.of_teacher(session, who.project_id, teacher)
    assert prompt_set is not None
    assert prompt_number is not None
    return lineage.of_prompt(session, who.project_id, prompt_set, prompt_number)
