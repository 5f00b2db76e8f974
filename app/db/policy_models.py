"""The tables of the policy and of the audit log; same schema, same conventions as `app.db.models`."""

from typing import Any

from sqlalchemy import ForeignKey, Index, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db.models import Base


class PromptPart(Base):
    """The prompts of a set that share licence and teacher: what a job is judged by, at any size of the set."""

    __tablename__ = "prompt_part"

    prompt_set_id: Mapped[str] = mapped_column(ForeignKey("prompt_set.id"), primary_key=True)
    license: Mapped[str] = mapped_column(primary_key=True)
    license_assumed: Mapped[bool] = mapped_column(primary_key=True)
    teacher: Mapped[str] = mapped_column(primary_key=True)  # that the prompts ask for; empty: none
    n_prompts: Mapped[int]
    first_prompt: Mapped[int]  # the lowest number, for messages


class PolicyDecision(Base):
    """A decision as it was made, refusals too: with its inputs, so that it can be replayed. Never changed."""

    __tablename__ = "policy_decision"
    __table_args__ = (Index("ix_policy_decision_project_id_id", "project_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"))
    moment: Mapped[str]  # creation | export
    subject: Mapped[str | None] = mapped_column(index=True)  # the job or export; None: it was refused
    outcome: Mapped[str]
    policy_version: Mapped[str]
    policy_digest: Mapped[str]
    inputs_hash: Mapped[str]
    warnings: Mapped[list[str]]
    body: Mapped[str] = mapped_column(Text)  # the whole decision, JSON
    created_by: Mapped[str]
    created_at: Mapped[float]


class PolicyOverride(Base):
    """Terms or a licence's meaning in the words of a user, with who and why. It can be revoked, never changed."""

    __tablename__ = "policy_override"
    __table_args__ = (Index("ix_policy_override_project_id_id", "project_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"))
    kind: Mapped[str]  # terms | license
    body: Mapped[dict[str, Any]]
    created_by: Mapped[str]
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]
    revoked_by: Mapped[str | None]
    revoked_why: Mapped[str | None] = mapped_column(Text)


class AuditHead(Base):
    """The end of a project's audit chain. Its row lock lets one event be appended at a time."""

    __tablename__ = "audit_head"

    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"), primary_key=True)
    sequence: Mapped[int]
    hash: Mapped[bytes]


class AuditEvent(Base):
    """Who did what. Each event's hash covers the one before it: `app.domain.audit`."""

    __tablename__ = "audit_event"
    __table_args__ = (
        UniqueConstraint("hash"),
        Index("ix_audit_event_project_id_subject_sequence", "project_id", "subject", "sequence"),
    )

    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # from 1, without a gap
    at: Mapped[float]
    actor: Mapped[str]  # a key's id, worker:…, or system
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[str] = mapped_column(Text)  # canonical JSON, as it was hashed
    hash: Mapped[bytes]
