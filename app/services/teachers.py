"""Teachers: registered, changed, probed. A secret is a reference (`env:NAME`, `file:/path`) and never stored."""

import asyncio
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, field_validator
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.db import audit, rates
from app.db import servers as server_rows
from app.db import teachers as rows
from app.db.models import Teacher
from app.db.session import db_now, session
from app.domain.fingerprints import fingerprint, new_id
from app.domain.licences import normalise_license
from app.domain.prices import Price, Rate
from app.errors import Conflict, InvalidInput, InvalidLicense, NotFound, TeacherRefusedKey, TeacherUnavailable
from app.policy.terms import TERMS
from app.services import generations
from app.services.ports import OpenTeacher
from app.teachers.base import Capabilities, TeacherSpec
from app.teachers.prices import price_of_teacher

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
SECRET_REF = r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/[^\x00]+)$"


def _reference(text: str) -> str:
    if not re.fullmatch(SECRET_REF, text):
        raise ValueError(
            "this is a reference to the secret, `env:NAME` or `file:/path`, never the secret itself"
        )
    return text


ServerUrl = Annotated[str, Field(max_length=2000, pattern=r"^https?://[^\s]+$")]


class TeacherChanges(BaseModel):
    """What can change while jobs run: where it is reached and how hard it may be driven. Absent: as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str | None = Field(
        None, max_length=2000, pattern=r"^https?://[^\s]+$", description="Where its API is."
    )
    secret_ref: Annotated[str, AfterValidator(_reference)] | None = Field(
        None,
        max_length=1000,
        json_schema_extra={"pattern": SECRET_REF},
        description="`env:NAME` or `file:/path`, read by the worker.",
    )
    license: str | None = Field(None, max_length=512, description="SPDX expression of the model's licence.")
    terms_id: str | None = Field(
        None, max_length=100, description="Shipped terms that hold where the policy does not know the model."
    )
    options: dict[str, JsonValue] | None = Field(None, description="The driver's own options.")
    max_in_flight: int | None = Field(
        None, ge=1, le=100_000, description="Cap of calls in flight, over all workers."
    )
    replicas: tuple[ServerUrl, ...] | None = Field(
        None,
        max_length=64,
        description="Further addresses of the same model, with the same key: calls are balanced over all of them.",
    )
    max_requests_per_minute: int | None = Field(
        None, ge=1, le=10**9, description="The provider's limit, kept over all workers."
    )
    max_input_tokens_per_minute: int | None = Field(
        None, ge=1, le=10**12, description="The provider's limit of prompt tokens."
    )
    max_output_tokens_per_minute: int | None = Field(
        None, ge=1, le=10**12, description="The provider's limit of generated tokens."
    )
    price: tuple[Rate, ...] | None = Field(
        None,
        max_length=20,
        description="What it costs; of several rates the last one that fits counts. Null: as published, if it is.",
    )

    trained_on: tuple[str, ...] | None = Field(
        None,
        max_length=100,
        description="Ids of exports that it was trained on: the generation depth of its rows follows, and the terms of "
        "theirs bind its own.",
    )

    @field_validator("terms_id")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in TERMS:
            raise ValueError(
                f"no such terms: {value!r}; known are {', '.join(sorted(TERMS))}. Terms of your own are an override: "
                "POST /v1/policy/overrides"
            )
        return value

    @field_validator("license")
    @classmethod
    def _normal(cls, value: str | None) -> str | None:
        try:
            return None if value is None else normalise_license(value)
        except InvalidLicense as error:
            raise ValueError(error.detail) from error


class NewTeacher(TeacherChanges):
    """A model behind a driver."""

    name: str = Field(pattern=NAME, description="How jobs and prompts name it; unique in the project.")
    driver: str = Field(min_length=1, max_length=50, description="How it is spoken to, for example `openai`.")
    model: str = Field(min_length=1, max_length=300, description="As the teacher's API names it.")
    revision: str | None = Field(None, max_length=200, description="Of the weights, where it is known.")
    access_route: str = Field(
        "weights",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
        description="`weights` (run by yourself), or whose API: with the model it selects the terms.",
    )
    options: dict[str, JsonValue] = Field(default_factory=dict, description="The driver's own options.")


class ServerView(BaseModel):
    """A server of a teacher, as the workers that call it see it."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    url: str = Field(description="Empty: the driver's own.")
    state: Literal["up", "failing", "down"] = Field(
        description="`down`: taken out, and probed until it is back."
    )
    reason: str | None
    room: float = Field(description="Samples that its controllers let be in flight, over all workers.")
    in_flight: int = Field(description="Samples of all workers there.")
    running: int | None = Field(description="In the server, of all its clients; null: it does not tell.")
    waiting: int | None
    workers: int


class RatesView(BaseModel):
    """Null: not limited."""

    model_config = ConfigDict(frozen=True)

    requests_per_minute: int | None = Field(
        description="In effect now: as registered or announced, cut by 429s."
    )
    input_tokens_per_minute: int | None
    output_tokens_per_minute: int | None
    tokens_per_minute: int | None = Field(description="Of prompts and answers together, as announced.")
    requests_used: int = Field(description="Granted in the last minute.")
    input_tokens_used: int
    output_tokens_used: int
    throttled: int = Field(description="Refusals as too much (429), in all.")
    held_seconds: float = Field(description="Nothing is asked for so long.")


class TeacherView(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: str
    name: str
    driver: str
    model: str
    revision: str | None
    access_route: str
    base_url: str | None
    secret_ref: str | None = Field(description="The reference; the secret itself is never told.")
    license: str | None
    terms_id: str | None
    options: dict[str, JsonValue]
    max_in_flight: int | None
    replicas: list[str] = Field([], description="Further addresses beside `base_url`.")
    max_requests_per_minute: int | None
    max_input_tokens_per_minute: int | None
    max_output_tokens_per_minute: int | None
    price: Price | None = Field(description="What a job that is submitted now is charged; null: not known.")
    trained_on: list[str] = Field(description="Exports that it was trained on.")
    capabilities: dict[str, JsonValue] | None = Field(
        description="What the last probe found; null: never probed."
    )
    identity: str | None = Field(description="SHA-256 of engine, model, tokenizer and template, hexadecimal.")
    probed_at: datetime | None
    created_at: datetime


class TeacherLoad(BaseModel):
    """How a teacher is driven just now."""

    model_config = ConfigDict(frozen=True)

    servers: list[ServerView] = Field(description="Empty while no worker calls it.")
    rates: RatesView = Field(description="What limits per minute come to now.")


def check(specs: Iterable[TeacherSpec], open_teacher: OpenTeacher) -> None:
    """Whether there can be such a teacher, at each of its addresses.

    Nobody is called; a secret that only workers can read is no fault.

    Raises `InvalidInput` for an unknown driver, an option that it does not take, or an address that may not be called.
    """

    async def opened(spec: TeacherSpec) -> None:
        await open_teacher(spec).aclose()

    for spec in specs:
        with suppress(TeacherRefusedKey, TeacherUnavailable):
            asyncio.run(opened(spec))


def register(session: Session, project_id: str, new: NewTeacher) -> TeacherView:
    """Raises `Conflict` for a name that is taken, `InvalidInput` for exports in `trained_on` that there are not."""
    generations.check_trained_on(session.connection(), project_id, new.trained_on or ())
    values = {**new.model_dump(mode="json"), "past_hosts": _hosts(new.replicas) or None}
    row = rows.add(session, new_id("tch"), project_id, values)
    if row is None:
        raise Conflict(
            f"there is a teacher named {new.name!r} already: choose another name, or change that one"
        )
    return view(row)


def get(session: Session, project_id: str, name_or_id: str) -> TeacherView:
    return view(_found(session, project_id, name_or_id))


def load(session: Session, project_id: str, name_or_id: str) -> TeacherLoad:
    row = _found(session, project_id, name_or_id)
    servers = [ServerView.model_validate(one) for one in server_rows.of(session, row.id)]
    return TeacherLoad(servers=servers, rates=_rates(session, row))


def _rates(session: Session, row: Teacher) -> RatesView:
    pace = rates.paces(session, [row])[row.id]
    return RatesView(
        requests_per_minute=pace.limits.requests,
        input_tokens_per_minute=pace.limits.input_tokens,
        output_tokens_per_minute=pace.limits.output_tokens,
        tokens_per_minute=pace.limits.tokens,
        requests_used=pace.used.requests,
        input_tokens_used=pace.used.input_tokens,
        output_tokens_used=pace.used.output_tokens,
        throttled=pace.throttled,
        held_seconds=pace.held_seconds,
    )


def page(session: Session, project_id: str, after: str | None, limit: int) -> list[TeacherView]:
    return [view(row) for row in rows.page(session, project_id, after, limit)]


def change(session: Session, project_id: str, name_or_id: str, changes: TeacherChanges) -> TeacherView:
    """Running jobs take the new address and secret with their next shard; model and revision never change."""
    row = _found(session, project_id, name_or_id)
    generations.check_trained_on(session.connection(), project_id, changes.trained_on or ())
    if changes.model_fields_set:
        session.refresh(row, with_for_update=True)
        rows.change(session, row.id, {**_values(changes), "past_hosts": _past_hosts(row, changes)})
        session.refresh(row)
    return view(row)


def _past_hosts(row: Teacher, changes: TeacherChanges) -> list[str] | None:
    """Rows may have been made at an address: whoever moves on does not leave its terms behind."""
    moved = "base_url" in changes.model_fields_set and changes.base_url != row.base_url
    left = [row.base_url] if moved and row.base_url is not None else []
    hosts = _hosts([*left, *(changes.replicas or ())])
    return sorted({*(row.past_hosts or ()), *hosts}) or None


def _hosts(urls: Iterable[str] | None) -> list[str]:
    """Whose terms bind beside those of the host of `base_url`."""
    return sorted({host for url in urls or () if (host := urlsplit(url).hostname) is not None})


def changed_specs(
    session: Session, project_id: str, name_or_id: str, changes: TeacherChanges
) -> list[TeacherSpec]:
    """What the driver would be given after the change, for each address."""
    row, values = _found(session, project_id, name_or_id), _values(changes)
    spec = _spec_of({name: values.get(name, getattr(row, name)) for name in _SPEC_FIELDS})
    return _at_each(spec, values.get("replicas", row.replicas))


def new_specs(new: NewTeacher) -> list[TeacherSpec]:
    """What the driver of a teacher to be would be given, for each address."""
    return _at_each(_spec_of(new.model_dump()), new.replicas)


def _at_each(spec: TeacherSpec, replicas: Iterable[str] | None) -> list[TeacherSpec]:
    urls = [spec.base_url, *(replicas or ())]
    if len(urls) > 1 and (urls[0] is None or len(set(urls)) < len(urls)):
        raise InvalidInput(
            "`replicas` are further addresses beside `base_url`: give that too, and each address once",
            errors=[{"detail": "an address is missing or named twice", "pointer": "#/replicas"}],
        )
    return [replace(spec, base_url=url) for url in urls]


def _values(changes: TeacherChanges) -> dict[str, Any]:
    values = changes.model_dump(mode="json", exclude_unset=True)
    if "options" in values and values["options"] is None:
        values["options"] = {}
    return values


def remove(session: Session, project_id: str, name_or_id: str) -> str:
    """The id of what is gone. Raises `Conflict` for a teacher that made rows: their origin would be lost."""
    row = _found(session, project_id, name_or_id)
    job = rows.used(session, row.id)
    if job is not None:
        raise Conflict(f"teacher {row.name!r} is part of job {job}: rows must be able to name their teacher")
    rows.remove(session, row.id)
    return row.id


def probe(
    engine: Engine, project_id: str, key_id: str, name_or_id: str, open_teacher: OpenTeacher
) -> TeacherView:
    """Ask the teacher what it can do and keep the answer. No transaction is open while it is asked.

    Raises what the driver raises where it cannot even be asked; a teacher that does not answer is an answer.
    """
    with session(engine, writes=False) as work:
        row = _found(work, project_id, name_or_id)
        teacher_id, spec = row.id, spec_of(row)
    found = asyncio.run(_ask(open_teacher, spec))
    values: dict[str, object] = {"capabilities": asdict(found), "probed_at": db_now()}
    if found.reachable:
        values["identity_sha256"] = fingerprint(found.identity())
    with session(engine, writes=True) as work:
        rows.change(work, teacher_id, values)
        made = view(_found(work, project_id, teacher_id))
        event = audit.Event("teacher.probe", teacher_id, {"reachable": found.reachable})
        audit.append(work.connection(), project_id, key_id, [event])
    return made


async def _ask(open_teacher: OpenTeacher, spec: TeacherSpec) -> Capabilities:
    teacher = open_teacher(spec)
    try:
        return await teacher.capabilities()
    finally:
        await teacher.aclose()


_SPEC_FIELDS = ("name", "driver", "model", "revision", "base_url", "secret_ref", "options")


def spec_of(row: Teacher) -> TeacherSpec:
    return _spec_of({name: getattr(row, name) for name in _SPEC_FIELDS})


def rates_of(row: Teacher) -> tuple[Rate, ...] | None:
    """The rates that its owner told; None: none."""
    return None if row.price is None else tuple(Rate.model_validate(rate) for rate in row.price)


def _spec_of(values: dict[str, object]) -> TeacherSpec:
    return TeacherSpec(**{name: values[name] for name in _SPEC_FIELDS})  # type: ignore[arg-type]


def view(row: Teacher) -> TeacherView:
    return TeacherView(
        id=row.id,
        name=row.name,
        driver=row.driver,
        model=row.model,
        revision=row.revision,
        access_route=row.access_route,
        base_url=row.base_url,
        secret_ref=row.secret_ref,
        license=row.license,
        terms_id=row.terms_id,
        options=row.options,
        max_in_flight=row.max_in_flight,
        replicas=row.replicas or [],
        max_requests_per_minute=row.max_requests_per_minute,
        max_input_tokens_per_minute=row.max_input_tokens_per_minute,
        max_output_tokens_per_minute=row.max_output_tokens_per_minute,
        price=price_of_teacher(spec_of(row), rates_of(row)),
        trained_on=row.trained_on or [],
        capabilities=row.capabilities,
        identity=None if row.identity_sha256 is None else row.identity_sha256.hex(),
        probed_at=row.probed_at,
        created_at=row.created_at,
    )


def _found(session: Session, project_id: str, name_or_id: str) -> Teacher:
    row = rows.get(session, project_id, name_or_id)
    if row is None:
        raise NotFound(f"there is no teacher {name_or_id!r} in this project")
    return row
