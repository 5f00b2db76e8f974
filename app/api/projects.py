"""Routes of projects and keys."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.dependencies import Admin, Reader, Reading, Writing, note, note_of
from app.api.once import AdminOnce, Once
from app.api.paging import Cursor, Limit, Page, page_of, text_place
from app.db.audit import Event
from app.services import projects
from app.services.projects import KeyView, NewKeyView, NewProjectView, ProjectView, Role, StorageProfile

router = APIRouter(prefix="/v1")

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")]


class ProjectRequest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    default_license: str | None = Field(
        None, max_length=512, description="SPDX expression that prompts without a licence take."
    )


class ProjectChanges(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    default_license: str | None = Field(
        None, max_length=512, description="Null: prompts without one become NOASSERTION."
    )
    storage_profile: StorageProfile | None = Field(
        None,
        description="`fp16`, or `compact`: about a third smaller, every logprob within 1/128 nat (or what the settings "
        "say). Null: as the settings say.",
    )


class KeyRequest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    role: Role = Field(description="Each role may do what the ones before it may: reader, writer, admin.")
    loopback_only: bool = Field(False, description="Works on the service's own machine only.")


@router.post(
    "/projects",
    status_code=201,
    response_model=NewProjectView,
    tags=["projects"],
    summary="Create a project",
)
def create_project(
    once: AdminOnce,
    body: Annotated[
        ProjectRequest,
        Body(
            openapi_examples={"a project": {"value": {"name": "maths-tutor", "default_license": "CC-BY-4.0"}}}
        ),
    ],
) -> Response:
    """A project owns prompt sets, teachers, jobs and exports; its keys see nothing else.

    The answer carries the project's first admin key. **Its secret is shown this once.**

    ```sh
    curl -s http://127.0.0.1:8321/v1/projects -H "Authorization: Bearer $RETORT_API_KEY" \\
      -H 'Content-Type: application/json' -d '{"name": "maths-tutor", "default_license": "CC-BY-4.0"}'
    ```
    """
    return once.answer(
        201,
        lambda: projects.create_project(once.session, body.name, body.default_license),
        memory=lambda made: made.model_copy(
            update={"admin_key": made.admin_key.model_copy(update={"secret": None})}
        ),
        audit=lambda made: _created(once, made),
    )


def _created(once: Once, made: NewProjectView) -> Event:
    """In the chains of both projects: the one that asked, and the new one."""
    event = Event("project.create", made.id, {"name": made.name, "default_license": made.default_license})
    note_of(once.session, made.id, once.caller.key_id, event, _key_made(made.admin_key))
    return event


def _key_made(key: NewKeyView) -> Event:
    return Event(
        "key.create", key.id, {"name": key.name, "role": key.role, "loopback_only": key.loopback_only}
    )


@router.get("/project", response_model=ProjectView, tags=["projects"], summary="Read your project")
def read_project(session: Reading, who: Reader) -> ProjectView:
    """The project that your key opens."""
    return projects.project(session, who.project_id)


@router.patch("/project", response_model=ProjectView, tags=["projects"], summary="Change your project")
def change_project(
    session: Writing,
    who: Admin,
    body: Annotated[
        ProjectChanges,
        Body(
            openapi_examples={
                "a default licence": {"value": {"default_license": "CC0-1.0"}},
                "smaller segments": {"value": {"storage_profile": "compact"}},
            }
        ),
    ],
) -> ProjectView:
    """What is given is changed, from now on: for prompts that are appended, for segments that are written."""
    changes = body.model_dump(mode="json", exclude_unset=True)
    note(session, who, Event("project.change", who.project_id, changes))
    return projects.change(session, who.project_id, changes)


@router.post("/keys", status_code=201, response_model=NewKeyView, tags=["keys"], summary="Create a key")
def create_key(
    once: AdminOnce,
    body: Annotated[
        KeyRequest,
        Body(openapi_examples={"for a notebook": {"value": {"name": "notebook", "role": "writer"}}}),
    ],
) -> Response:
    """**The secret is shown this once**; only its SHA-256 is stored. A replay of this request shows null.

    ```sh
    curl -s http://127.0.0.1:8321/v1/keys -H "Authorization: Bearer $RETORT_API_KEY" \\
      -H 'Content-Type: application/json' -d '{"name": "notebook", "role": "writer"}'
    ```
    """
    who = once.caller
    return once.answer(
        201,
        lambda: projects.create_key(once.session, who.project_id, body.name, body.role, body.loopback_only),
        memory=lambda made: made.model_copy(update={"secret": None}),
        audit=_key_made,
    )


@router.get("/keys", response_model=Page[KeyView], tags=["keys"], summary="List keys")
def list_keys(session: Reading, who: Admin, limit: Limit = 50, cursor: Cursor = None) -> Page[KeyView]:
    """Newest first, revoked ones too; never a secret."""
    found = projects.keys(session, who.project_id, text_place("keys", cursor), limit + 1)
    return page_of("keys", found, limit, lambda key: [key.id])


@router.delete("/keys/{key_id}", response_model=KeyView, tags=["keys"], summary="Revoke a key")
def revoke_key(
    session: Writing,
    who: Admin,
    key_id: Annotated[str, Path(max_length=64, description="Id of a key, `key_…`.")],
) -> KeyView:
    """From the next request on it opens nothing. The last admin key of a project cannot be revoked."""
    note(session, who, Event("key.revoke", key_id))
    return projects.revoke_key(session, who.project_id, key_id)
