"""The jobs that an export draws from, as the database knows them: stages, teachers, bindings, totals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import JsonValue
from sqlalchemy import Connection, Row

from app.db import export_rows as rows
from app.errors import InvalidInput
from app.exporters import Binding
from app.services.export.spec import Selection


@dataclass(frozen=True, slots=True)
class StageFacts:
    position: int
    name: str
    top_logprobs: int
    n: int
    sampling_json: str
    elicited: bool


@dataclass(frozen=True, slots=True)
class LaneFacts:
    """A teacher of a job, as it was when the job began."""

    position: int
    teacher: str
    model: str
    revision: str | None
    access_route: str
    license: str | None
    terms_id: str | None
    trained_on: tuple[str, ...]  # also what was told of it since
    generation_depth: int
    base_url: str | None
    past_hosts: tuple[str, ...]
    engine: str | None
    tokenizer_sha256: str | None
    chat_template_sha256: str | None
    vocab_size: int | None
    token_ids: bool


@dataclass(frozen=True, slots=True)
class JobFacts:
    """A job, with the stages and lanes that were selected; `told` is what the manifest says of it."""

    id: str
    name: str
    prompt_set: str
    stages: tuple[StageFacts, ...]
    lanes: tuple[LaneFacts, ...]
    all_lanes: bool
    told: dict[str, JsonValue]

    def bindings(self) -> list[Binding]:
        k = max((stage.top_logprobs for stage in self.stages), default=0)
        return [
            Binding(
                job=self.id,
                teacher=lane.teacher,
                model=lane.model,
                revision=lane.revision,
                engine=lane.engine,
                tokenizer_sha256=lane.tokenizer_sha256,
                chat_template_sha256=lane.chat_template_sha256,
                vocab_size=lane.vocab_size,
                token_ids=lane.token_ids,
                top_logprobs=k,
            )
            for lane in self.lanes
        ]


def facts(connection: Connection, selection: Selection) -> list[JobFacts]:
    """The selected jobs in order of their ids. Raises `InvalidInput` for a teacher or stage that no job has."""
    lanes, stages = _grouped(rows.lanes, connection, selection), _grouped(rows.stages, connection, selection)
    for field, asked, known in (
        ("teachers", selection.teachers, {lane.teacher_name for found in lanes.values() for lane in found}),
        ("stages", selection.stages, {stage.name for found in stages.values() for stage in found}),
    ):
        if unknown := sorted(set(asked) - known):
            raise InvalidInput(
                f"the selected jobs have no {field} {', '.join(unknown)}; they have: {', '.join(sorted(known))}",
                errors=[
                    {"detail": f"not among: {', '.join(sorted(known))}", "pointer": f"#/selection/{field}"}
                ],
            )
    return [
        _job(connection, job, selection, lanes.get(job.id, []), stages.get(job.id, []))
        for job in rows.jobs(connection, selection.jobs)
    ]


def _grouped(read: Any, connection: Connection, selection: Selection) -> dict[str, list[Row[Any]]]:
    found: dict[str, list[Row[Any]]] = {}
    for row in read(connection, selection.jobs):
        found.setdefault(row.job_id, []).append(row)
    return found


def _job(
    connection: Connection, job: Row[Any], selection: Selection, lanes: list[Row[Any]], stages: list[Row[Any]]
) -> JobFacts:
    chosen = [lane for lane in lanes if not selection.teachers or lane.teacher_name in selection.teachers]
    return JobFacts(
        id=job.id,
        name=job.name,
        prompt_set=job.prompt_set_id,
        stages=tuple(
            StageFacts(
                stage.position,
                stage.name,
                stage.top_logprobs,
                stage.n,
                orjson.dumps(stage.sampling).decode(),
                stage.elicit is not None,
            )
            for stage in stages
            if not selection.stages or stage.name in selection.stages
        ),
        lanes=tuple(_lane(lane) for lane in chosen),
        all_lanes=len(chosen) == len(lanes),
        told=_told(connection, job, chosen, stages),
    )


def _lane(lane: Row[Any]) -> LaneFacts:
    found: dict[str, Any] = lane.capabilities or {}
    return LaneFacts(
        position=lane.teacher,
        teacher=lane.teacher_name,
        model=lane.model,
        revision=lane.revision,
        access_route=lane.access_route,
        license=lane.license,
        terms_id=lane.terms_id,
        trained_on=_trained_on(lane),
        generation_depth=lane.generation_depth,
        base_url=lane.base_url,
        past_hosts=tuple(lane.past_hosts or ()),
        engine=found.get("engine"),
        tokenizer_sha256=found.get("tokenizer_sha256"),
        chat_template_sha256=found.get("chat_template_sha256"),
        vocab_size=found.get("vocab_size"),
        token_ids=bool(found.get("token_ids")),
    )


def _trained_on(lane: Row[Any]) -> tuple[str, ...]:
    return tuple(sorted({*(lane.trained_on or ()), *(lane.trained_on_by_now or ())}))


def _told(
    connection: Connection, job: Row[Any], lanes: Sequence[Row[Any]], stages: Sequence[Row[Any]]
) -> dict[str, JsonValue]:
    prompts = rows.prompt_set(connection, job.prompt_set_id)
    return {
        "id": job.id,
        "name": job.name,
        "code_version": job.code_version,
        "intended_use": job.intended_use,
        "prompt_set": {
            "id": prompts.id,
            "content_hash": prompts.content_hash.hex(),
            "n_prompts": prompts.n_prompts,
        },
        "stages": [
            {
                "name": stage.name,
                "sampling": stage.sampling,
                "n": stage.n,
                "top_logprobs": stage.top_logprobs,
                "elicit": stage.elicit,
            }
            for stage in stages
        ],
        "teachers": [
            {
                "name": lane.teacher_name,
                "model": lane.model,
                "revision": lane.revision,
                "access_route": lane.access_route,
                "license": lane.license,
                "terms": lane.terms_id,
                "trained_on": list(_trained_on(lane)),
                "generation_depth": lane.generation_depth,
                "identity_sha256": None if lane.identity_sha256 is None else lane.identity_sha256.hex(),
            }
            for lane in lanes
        ],
        "totals": rows.totals(connection, job.id),
    }
