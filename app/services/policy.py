"""The policy at work: what a job or an export is judged by, the decision, and its keeping."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter
from sqlalchemy import Connection, Engine

from app.db import audit
from app.db import policy as rows
from app.db.session import transaction
from app.domain.fingerprints import new_id
from app.domain.licences import NOASSERTION
from app.domain.sampling import IntendedUse
from app.errors import InvalidInput, PolicyRefusal
from app.policy.decisions import Decision, Outcome, PartialOffer, decide, require_allowed
from app.policy.findings import Finding
from app.policy.overrides import LicenceOverride, TermsOverride
from app.policy.parts import Part, TeacherRef, TrainingData
from app.policy.rules import Moment, PolicyRules

MAX_PARTS = 2000
"""Teachers × licences that one decision may be about."""


class PolicySummary(BaseModel):
    """What the policy said of a job or an export. The decision has the whole of it."""

    model_config = ConfigDict(frozen=True)

    decision: str = Field(description="Id of the decision, see `/v1/policy/decisions`.")
    outcome: Outcome
    policy_version: str
    warnings: list[str] = Field(description="Each with the clause or a paraphrase, and what to do.")


class PolicyForecast(BaseModel):
    """What the policy would say. Nothing was stored."""

    model_config = ConfigDict(frozen=True)

    outcome: Outcome
    policy_version: str
    findings: list[Finding] = Field(description="Blocks first, then warnings, then notes.")
    offer: PartialOffer | None = Field(
        description="With a block: what could be done without the rows at fault."
    )


class TeacherLike(Protocol):
    """A registered teacher, or one as a job keeps it."""

    @property
    def model(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def access_route(self) -> str: ...
    @property
    def license(self) -> str | None: ...
    @property
    def terms_id(self) -> str | None: ...
    @property
    def trained_on(self) -> Sequence[str] | None: ...


@dataclass(frozen=True, slots=True)
class Judge:
    """What every decision of one project needs: how strict the policy is, and the overrides that hold."""

    project_id: str
    rules: PolicyRules
    overrides: tuple[TermsOverride, ...]
    licence_overrides: tuple[LicenceOverride, ...]

    @classmethod
    def of(cls, connection: Connection, project_id: str, rules: PolicyRules) -> "Judge":
        live = [read_override(row.id, row.body) for row in rows.live_overrides(connection, project_id)]
        return cls(
            project_id,
            rules,
            tuple(one for one in live if isinstance(one, TermsOverride)),
            tuple(one for one in live if isinstance(one, LicenceOverride)),
        )

    def decide(
        self, connection: Connection, use: IntendedUse, parts: Sequence[Part], moment: Moment
    ) -> Decision:
        return decide(
            use,
            parts,
            rows.today(connection),
            moment=moment,
            overrides=self.overrides,
            licence_overrides=self.licence_overrides,
            rules=self.rules,
            training_data=training_data(connection, self.project_id, parts),
        )


_OVERRIDE: TypeAdapter[TermsOverride | LicenceOverride] = TypeAdapter(
    Annotated[TermsOverride | LicenceOverride, Field(discriminator="kind")]
)


def read_override(override_id: str, body: dict[str, object]) -> TermsOverride | LicenceOverride:
    return _OVERRIDE.validate_python({**body, "id": override_id})


def teacher_ref(
    name: str, teacher: TeacherLike, base_url: str | None, past_hosts: Sequence[str] | None
) -> TeacherRef:
    """A teacher as the terms see it."""
    return TeacherRef(
        name=name,
        model=teacher.model,
        revision=teacher.revision,
        access_route=teacher.access_route,
        address=None if base_url is None else urlsplit(base_url).hostname,
        past_addresses=tuple(past_hosts or ()),
        license=teacher.license,
        terms_id=teacher.terms_id,
        trained_on=tuple(sorted(set(teacher.trained_on or ()))),
    )


def training_data(connection: Connection, project_id: str, parts: Iterable[Part]) -> tuple[TrainingData, ...]:
    """What the exports held that the teachers were trained on, and their teachers, and so on.

    By the last decision about each: of what was written, once it is completed. One without a decision is absent.
    """
    found: dict[str, TrainingData] = {}
    asked: set[str] = set()
    wanted = _trained_on(teacher for part in parts for teacher in part.teachers)
    while wanted:
        asked |= wanted
        made = {
            export_id: TrainingData.of(export_id, Decision.model_validate_json(body).inputs.parts)
            for export_id, body in rows.decisions_of_exports(connection, project_id, sorted(wanted))
        }
        found |= made
        wanted = _trained_on(teacher for data in made.values() for teacher in data.teachers) - asked
    return tuple(found.values())


def _trained_on(teachers: Iterable[TeacherRef]) -> set[str]:
    return {export_id for teacher in teachers for export_id in teacher.trained_on}


def part_key(teacher: str, licence: str, assumed: bool) -> str:
    """How a part is named in decisions, offers and manifests."""
    return f"{teacher} | {licence}{' (assumed)' if assumed else ''}"


def parts_of_job(
    connection: Connection, prompt_set_id: str, teachers: Sequence[TeacherRef], *, sealed: bool
) -> list[Part]:
    """Prompts by licence × teachers. Raises `InvalidInput` where there are too many kinds of both.

    An open set may still get prompts for each teacher: one that has none yet is judged by a part without rows.
    """
    counted = rows.parts(connection, prompt_set_id, MAX_PARTS + 1)
    made = [
        Part(
            key=part_key(teacher.name, part.license, part.license_assumed),
            teachers=(teacher,),
            prompt_license=part.license,
            prompt_license_assumed=part.license_assumed,
            rows=part.n_prompts,
            examples=(f"prompt {part.first_prompt}",),
        )
        for teacher in teachers
        for part in counted
        if part.teacher in ("", teacher.name)
    ]
    if not sealed:
        asked = {teacher for part in made for teacher in part.teachers}
        made += [_to_come(teacher) for teacher in teachers if teacher not in asked]
    return together(made)


def _to_come(teacher: TeacherRef) -> Part:
    """Prompts of which nothing is known yet, not even whether they come."""
    return Part(
        key=part_key(teacher.name, NOASSERTION, assumed=True),
        teachers=(teacher,),
        prompt_license=NOASSERTION,
        prompt_license_assumed=True,
    )


def together(parts: Iterable[Part]) -> list[Part]:
    """Parts of one key become one. Raises `InvalidInput` where there are too many."""
    found: dict[str, Part] = {}
    for part in parts:
        other = found.get(part.key)
        if other is not None:
            examples = tuple(sorted({*other.examples, *part.examples}, key=lambda e: (len(e), e)))[:10]
            part = part.model_copy(update={"rows": other.rows + part.rows, "examples": examples})
        found[part.key] = part
    if len(found) > MAX_PARTS:
        raise InvalidInput(
            f"more than {MAX_PARTS:,} combinations of teacher and prompt licence: the policy cannot show its reasons "
            "for so many; use fewer teachers at once, or split the prompts by licence"
        )
    return list(found.values())


def forecast(decision: Decision) -> PolicyForecast:
    return PolicyForecast(
        outcome=decision.outcome,
        policy_version=decision.policy_version,
        findings=list(decision.findings),
        offer=decision.offer,
    )


def admit(connection: Connection, project_id: str, key_id: str, decision: Decision, subject: str) -> str:
    """Keep the decision of something that is about to be stored; returns the decision's id.

    Raises `PolicyRefusal` where it is a block: whoever catches it keeps the refusal with `keep_refusal`.
    """
    decision_id = new_id("dec")
    require_allowed(decision, decision_id)
    keep(connection, project_id, key_id, decision_id, decision, subject)
    return decision_id


def keep(
    connection: Connection,
    project_id: str,
    key_id: str,
    decision_id: str,
    decision: Decision,
    subject: str | None,
) -> None:
    rows.keep_decision(
        connection,
        rows.NewDecision(
            id=decision_id,
            project_id=project_id,
            moment=decision.inputs.moment,
            subject=subject,
            outcome=decision.outcome,
            policy_version=decision.policy_version,
            policy_digest=decision.policy_digest,
            inputs_hash=decision.inputs_hash,
            warnings=[f"{one.message} {one.proceed}" for one in decision.warnings],
            body=decision.model_dump_json(),
            created_by=key_id,
        ),
    )


def keep_refusal(
    engine: Engine, project_id: str, key_id: str, refused: PolicyRefusal, subject: str | None = None
) -> None:
    """A refusal rolls back what was asked for; the decision and its audit event are kept all the same."""
    decision = Decision.model_validate_json(refused.decision)
    decision_id = str(refused.extra["decision_id"])
    with transaction(engine) as connection:
        keep(connection, project_id, key_id, decision_id, decision, subject)
        codes: list[str] = sorted({str(one.code) for one in decision.blocks})
        told: dict[str, JsonValue] = {
            "moment": decision.inputs.moment,
            "codes": list(codes),
            "policy": decision.policy_version,
        }
        event = audit.Event("policy.refuse", decision_id, told)
        audit.append(connection, project_id, key_id, [event])


def summaries(connection: Connection, decision_ids: Iterable[str | None]) -> dict[str, PolicySummary]:
    """By decision id."""
    wanted = sorted({one for one in decision_ids if one is not None})
    if not wanted:
        return {}
    return {
        row.id: PolicySummary(
            decision=row.id,
            outcome=Outcome(row.outcome),
            policy_version=row.policy_version,
            warnings=row.warnings,
        )
        for row in rows.summaries(connection, wanted)
    }
