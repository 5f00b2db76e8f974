"""What the policy would say of teachers and licences, without a job."""

from pydantic import BaseModel, ConfigDict, Field, field_validator
from sqlalchemy.orm import Session

from app.db import teachers as teacher_rows
from app.domain.licences import NOASSERTION, normalise_license
from app.domain.sampling import IntendedUse
from app.errors import InvalidInput, InvalidLicense
from app.policy.parts import Part
from app.policy.rules import Moment, PolicyRules
from app.services import policy
from app.services.policy import PolicyForecast


class EvaluationRequest(BaseModel):
    """Registered teachers × licences of prompts, and a use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teachers: tuple[str, ...] = Field(
        min_length=1, max_length=32, description="Names of registered teachers."
    )
    licenses: tuple[str, ...] = Field(
        (NOASSERTION,), min_length=1, max_length=50, description="SPDX expressions of prompts."
    )
    intended_use: IntendedUse = IntendedUse()
    moment: Moment = Field(Moment.EXPORT, description="`creation` of a job, or `export`, which is stricter.")

    @field_validator("licenses")
    @classmethod
    def _normal(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(sorted({normalise_license(one) for one in value}))
        except InvalidLicense as error:
            raise ValueError(error.detail) from error


def evaluate(
    session: Session, project_id: str, asked: EvaluationRequest, rules: PolicyRules
) -> PolicyForecast:
    """Raises `InvalidInput` for a teacher that is not registered."""
    known = teacher_rows.named(session, project_id, asked.teachers)
    missing = [name for name in asked.teachers if name not in known]
    if missing:
        raise InvalidInput(
            f"no such teacher in this project: {', '.join(missing)}; register it first",
            errors=[{"detail": f"no teacher is named {name!r}", "pointer": "#/teachers"} for name in missing],
        )
    parts = [
        Part(
            key=policy.part_key(name, licence, assumed=False),
            teachers=(policy.teacher_ref(name, known[name], known[name].base_url, known[name].past_hosts),),
            prompt_license=licence,
        )
        for name in sorted(set(asked.teachers))
        for licence in asked.licenses
    ]
    connection = session.connection()
    judge = policy.Judge.of(connection, project_id, rules)
    return policy.forecast(judge.decide(connection, asked.intended_use, parts, asked.moment))
