"""Decisions as they were made, and what today's policy would say of the same inputs."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from app.db import policy as rows
from app.errors import NotFound
from app.policy.decisions import Decision, Outcome, replay, reproduces
from app.policy.findings import Finding
from app.policy.terms import POLICY_VERSION, policy_digest


class DecisionSummary(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    moment: str = Field(description="`creation` or `export`.")
    subject: str | None = Field(
        description="The job or the export; null: it was refused before it was stored."
    )
    outcome: Outcome
    policy_version: str
    policy_digest: str
    inputs_hash: str
    warnings: list[str]
    created_by: str = Field(description="Id of the key that asked.")
    created_at: datetime


class DecisionView(DecisionSummary):
    decision: Decision = Field(description="The whole of it, with its inputs.")


class ReplayView(BaseModel):
    """A stored decision against the policy that this service has now."""

    model_config = ConfigDict(frozen=True)

    id: str
    same_policy: bool = Field(description="Was it made by the very data that this service has?")
    reproduced: bool | None = Field(
        description="Do its inputs give the same decision, byte for byte? Null under another policy: then compare."
    )
    policy_version: str = Field(description="Of this service.")
    policy_digest: str
    outcome_then: Outcome
    outcome_now: Outcome
    gone: list[Finding] = Field(description="Findings of then that are none now.")
    new: list[Finding] = Field(description="Findings of now that were none then.")


def page(
    session: Session, project_id: str, subject: str | None, before: str | None, limit: int
) -> list[DecisionSummary]:
    """Newest first."""
    found = rows.decisions(session.connection(), project_id, subject, before, limit)
    return [DecisionSummary.model_validate(dict(row._mapping)) for row in found]


def get(session: Session, project_id: str, decision_id: str) -> DecisionView:
    row = rows.decision(session.connection(), project_id, decision_id)
    if row is None:
        raise NotFound(f"there is no decision {decision_id!r} in this project")
    summary = {name: getattr(row, name) for name in DecisionSummary.model_fields}
    return DecisionView(**summary, decision=Decision.model_validate_json(row.body))


def replayed(session: Session, project_id: str, decision_id: str) -> ReplayView:
    """Nothing is stored and nothing is changed: a replay only tells."""
    then = get(session, project_id, decision_id).decision
    now = replay(then)
    same = then.policy_digest == policy_digest()
    return ReplayView(
        id=decision_id,
        same_policy=same,
        reproduced=reproduces(then) if same else None,
        policy_version=POLICY_VERSION,
        policy_digest=policy_digest(),
        outcome_then=then.outcome,
        outcome_now=now.outcome,
        gone=[one for one in then.findings if one not in now.findings],
        new=[one for one in now.findings if one not in then.findings],
    )
