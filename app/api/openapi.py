"""The OpenAPI document: tags, the key's scheme, problems for every operation, neat operation ids."""

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from app.api.problems import MEDIA_TYPE, Problem
from app.domain.prompts import Prompt

DESCRIPTION = """
Prompts in → a durable job → a teacher kept busy → rows that know their origin → exported as an immutable dataset.

**Begin** with *Authorize* and a key (the first one is in the data folder, in `admin.key`). Then: create a prompt set,
append prompts, seal it; register a teacher; submit a job; watch it; read its completions or export them.

- **Errors** are problem details (RFC 9457): `type` for programs, `detail` for people, `errors` says where.
- **`Idempotency-Key`** on every creating POST: sent again, the request is answered from memory and makes nothing twice.
- **Lists** come in pages: hand `next_cursor` back as `cursor`. Page 1000 costs what page 1 costs.
- **Roles**: `reader` reads, `writer` makes prompt sets, jobs and exports, `admin` registers teachers and makes keys.
- Times are UTC by the database's clock, RFC 3339.
""".strip()

TAGS = [
    {"name": "projects", "description": "Owners of everything below."},
    {"name": "keys", "description": "A key opens one project. Its secret is shown once."},
    {"name": "prompt sets", "description": "Content-addressed lists of prompts, immutable once sealed."},
    {"name": "teachers", "description": "Models behind a driver."},
    {"name": "jobs", "description": "Prompt set × teachers × sampling parameters × n × top_logprobs."},
    {"name": "completions", "description": "What teachers answered, one row per sample."},
    {"name": "exports", "description": "Immutable datasets with a manifest."},
    {
        "name": "lineage",
        "description": "From a row back to its origin; from an origin to the exports that hold it.",
    },
    {"name": "takedowns", "description": "What was made is removed, on disk too; hashes and lineage stay."},
    {
        "name": "policy",
        "description": "What terms and licences permit, decisions with their reasons, and overrides.",
    },
    {"name": "audit", "description": "Who did what: append-only, hash-chained."},
    {"name": "operation", "description": "For whoever runs the service."},
]

_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_SECURED = {"401": "No valid key", "403": "The key may not do this"}
_JUDGED = ("submit_job", "create_export")
_REFUSAL = {
    "type": "urn:retort:problem:policy-refusal",
    "title": "Terms or licences forbid the intended use",
    "status": 403,
    "detail": "Training a competing model on the outputs of gpt (gpt-4o-mini by openai-api) is forbidden: OpenAI "
    "Services Agreement, 3.3(e) (effective 2026-01-01): “Customer will not, and will not permit End Users to: […]” "
    "Declare a use that does not compete …, use another teacher, or record a private agreement with OpenAI as an "
    "override.",
    "decision_id": "dec_01",
    "policy_version": "2026-11-25.1",
    "findings": [
        {
            "severity": "block",
            "code": "competing-forbidden",
            "axis": "host",
            "subject": "compete",
            "source": "openai-services",
            "message": "Training a competing model on the outputs of gpt (gpt-4o-mini by openai-api) is forbidden: …",
            "proceed": "Declare a use that does not compete …",
            "clause": "Customer will not, and will not permit End Users to: […]",
            "document": "OpenAI Services Agreement",
            "section": "3.3(e)",
            "effective": "2026-01-01",
            "teachers": ["gpt"],
            "parts": ["gpt | CC-BY-4.0"],
            "rows": 12,
            "example_rows": ["prompt 0"],
        }
    ],
    "offer": {
        "keep": ["small | CC-BY-4.0"],
        "leave_out": ["gpt | CC-BY-4.0"],
        "rows_kept": 12,
        "rows_left_out": 12,
    },
}
# What stands for a part of a path in a shell; a part that is not here fails a test.
_SHELL = {
    "prompt_set_id": "$SET",
    "job_id": "$JOB",
    "export_id": "$EXPORT",
    "key_id": "$KEY",
    "takedown_id": "$TAKEDOWN",
    "decision_id": "$DECISION",
    "override_id": "$OVERRIDE",
    "terms_id": "apache-2.0-weights",
    "teacher": "$TEACHER",
    "name": "train-00000.parquet",
}
_ALWAYS = {"422": "The request is not valid", "default": "Any other problem"}


def operation_id(route: APIRoute) -> str:
    """The endpoint's own name: they are verbs with a noun, and unique (a test says so)."""
    return route.name


def install(app: FastAPI) -> None:
    """Replace the app's `openapi` with one that says all of this."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(
        title=app.title,
        version=app.version,
        description=DESCRIPTION,
        summary="Distillation data from teachers, with every logprob.",
        routes=app.routes,
        tags=TAGS,
    )
    schemas = made["components"]["schemas"]
    _, ours = models_json_schema(
        [(Problem, "serialization"), (Prompt, "validation")], ref_template="#/components/schemas/{model}"
    )
    for name, schema in ours["$defs"].items():
        schemas.setdefault(name, schema)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, method, operation in _operations(made):
        if "```sh" not in operation["description"]:
            operation["description"] += f"\n\n```sh\n{_curl(path, method, operation)}\n```"
        answers = operation["responses"]
        problems = {**(_SECURED if operation.get("security") else {}), **_ALWAYS}
        for status, text in problems.items():
            answers[status] = {"description": text, "content": _PROBLEM}
        if operation["operationId"] in _JUDGED:
            answers["403"] = {
                "description": "Terms or licences forbid the use (`policy-refusal`), or the key may not do this",
                "content": {
                    MEDIA_TYPE: {**_PROBLEM[MEDIA_TYPE], "examples": {"a refusal": {"value": _REFUSAL}}}
                },
            }
    return made


def _curl(path: str, method: str, operation: dict[str, Any]) -> str:
    """A call that can be pasted into a shell, by the example of the body; ids are variables there."""
    address = re.sub(r"\{(\w+)\}", lambda found: _SHELL[found[1]], f"http://127.0.0.1:8321{path}")
    examples = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("examples")
    verb = "" if method == ("get" if examples is None else "post") else f" -X {method.upper()}"
    call = f'curl -s{verb} "{address}"'
    if operation.get("security"):
        call += ' -H "Authorization: Bearer $RETORT_API_KEY"'
    if examples is not None:
        body = json.dumps(next(iter(examples.values()))["value"], ensure_ascii=False)
        call += f" \\\n  -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    return call


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation
