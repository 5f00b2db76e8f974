"""Routes of teachers."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Response
from pydantic import JsonValue

from app.api.dependencies import Admin, Reader, Reading, ResourcesDep, Writer, Writing, note
from app.api.once import AdminOnce
from app.api.paging import Cursor, Limit, Page, page_of, text_place
from app.db.audit import Event
from app.services import teachers
from app.services.teachers import NewTeacher, TeacherChanges, TeacherLoad, TeacherView

router = APIRouter(prefix="/v1/teachers", tags=["teachers"])

Named = Annotated[str, Path(max_length=128, description="Name or id of a teacher.")]

_EXAMPLES: Any = {
    "the embedded small model": {
        "value": {
            "name": "small",
            "driver": "embedded",
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "license": "Apache-2.0",
            "access_route": "weights",
        }
    },
    "a vLLM server": {
        "value": {
            "name": "qwen",
            "driver": "vllm",
            "model": "Qwen/Qwen3-32B",
            "base_url": "http://127.0.0.1:8000/v1",
            "secret_ref": "env:TEACHER_KEY",
            "license": "Apache-2.0",
            "max_in_flight": 256,
            "price": [{"input": 0.1, "output": 0.4}],
        }
    },
    "several servers of one model": {
        "value": {
            "name": "qwen-farm",
            "driver": "vllm",
            "model": "Qwen/Qwen3-32B",
            "base_url": "http://127.0.0.1:8000/v1",
            "replicas": ["http://127.0.0.1:8001/v1", "http://127.0.0.1:8002/v1"],
            "license": "Apache-2.0",
        }
    },
    "vLLM in the worker": {
        "value": {
            "name": "qwen-here",
            "driver": "vllm-engine",
            "model": "Qwen/Qwen3-8B",
            "options": {"engine": {"max_model_len": 16384, "max_logprobs": 128}},
            "license": "Apache-2.0",
        }
    },
    "an API": {
        "value": {
            "name": "deepseek",
            "driver": "openai",
            "model": "deepseek-chat",
            "access_route": "deepseek-api",
            "base_url": "https://api.deepseek.com/v1",
            "secret_ref": "env:DEEPSEEK_API_KEY",
            "options": {"provider": "deepseek"},
            "max_requests_per_minute": 500,
            "max_output_tokens_per_minute": 200_000,
        }
    },
}


@router.post("", status_code=201, response_model=TeacherView, summary="Register a teacher")
def register_teacher(
    once: AdminOnce, given: ResourcesDep, body: Annotated[NewTeacher, Body(openapi_examples=_EXAMPLES)]
) -> Response:
    """Nothing is called yet: probe it to learn what it can do. The secret is a reference that the worker reads.

    ```sh
    curl -s http://127.0.0.1:8321/v1/teachers -H "Authorization: Bearer $RETORT_API_KEY" \\
      -H 'Content-Type: application/json' \\
      -d '{"name": "small", "driver": "embedded", "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
           "license": "Apache-2.0"}'
    ```
    """
    who = once.caller
    return once.answer(
        201,
        lambda: teachers.register(once.session, who.project_id, body),
        check=lambda: teachers.check(teachers.new_specs(body), given.open_teacher),
        audit=_registered,
    )


def _registered(made: TeacherView) -> Event:
    told = made.model_dump(
        include={"name", "driver", "model", "revision", "access_route", "license", "terms_id", "trained_on"}
    )
    return Event("teacher.register", made.id, told)


@router.get("", response_model=Page[TeacherView], summary="List teachers")
def list_teachers(
    session: Reading, who: Reader, limit: Limit = 50, cursor: Cursor = None
) -> Page[TeacherView]:
    """By name."""
    found = teachers.page(session, who.project_id, text_place("teachers", cursor), limit + 1)
    return page_of("teachers", found, limit, lambda teacher: [teacher.name])


@router.get("/{teacher}", response_model=TeacherView, summary="Read a teacher")
def read_teacher(session: Reading, who: Reader, teacher: Named) -> TeacherView:
    """With what its last probe found."""
    return teachers.get(session, who.project_id, teacher)


@router.get("/{teacher}/load", response_model=TeacherLoad, summary="Read a teacher's load")
def read_teacher_load(session: Reading, who: Reader, teacher: Named) -> TeacherLoad:
    """How each of its servers is (up, failing, taken out and why), how much is in flight there and how much may be, and
    what its limits per minute come to now, as the workers that call it told a few seconds ago.

    ```sh
    curl -s http://127.0.0.1:8321/v1/teachers/small/load -H "Authorization: Bearer $RETORT_API_KEY"
    ```
    """
    return teachers.load(session, who.project_id, teacher)


@router.patch("/{teacher}", response_model=TeacherView, summary="Change a teacher")
def change_teacher(
    session: Writing,
    reading: Reading,
    who: Admin,
    given: ResourcesDep,
    teacher: Named,
    body: Annotated[
        TeacherChanges,
        Body(
            openapi_examples={
                "a moved server": {"value": {"base_url": "http://127.0.0.1:8001/v1"}},
                "another limit": {"value": {"max_requests_per_minute": 1000}},
            }
        ),
    ],
) -> TeacherView:
    """Where it is reached and how hard it may be driven. Model and revision never change: register another teacher."""
    teachers.check(teachers.changed_specs(reading, who.project_id, teacher, body), given.open_teacher)
    changed = teachers.change(session, who.project_id, teacher, body)
    # Names of fields only: an address may hold a password.
    told: dict[str, JsonValue] = {"fields": list[JsonValue](sorted(body.model_fields_set))}
    if "trained_on" in body.model_fields_set:
        told["trained_on"] = list[JsonValue](changed.trained_on)
    note(session, who, Event("teacher.change", changed.id, told))
    return changed


@router.delete("/{teacher}", status_code=204, summary="Delete a teacher")
def delete_teacher(session: Writing, who: Admin, teacher: Named) -> None:
    """Only one that is part of no job: rows must be able to name their teacher."""
    gone = teachers.remove(session, who.project_id, teacher)
    note(session, who, Event("teacher.delete", gone, {"name": teacher}))


@router.post("/{teacher}/probe", response_model=TeacherView, summary="Probe a teacher")
def probe_teacher(given: ResourcesDep, who: Writer, teacher: Named) -> TeacherView:
    """Ask it now what it can do: logprobs and how many, token ids, reasoning, context length, identity.

    A teacher that does not answer is an answer: `capabilities.reachable` is false and `problems` says why.

    ```sh
    curl -s -X POST http://127.0.0.1:8321/v1/teachers/small/probe -H "Authorization: Bearer $RETORT_API_KEY"
    ```
    """
    return teachers.probe(given.engine, who.project_id, who.key_id, teacher, given.open_teacher)
