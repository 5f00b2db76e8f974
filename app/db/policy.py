"""What the policy judges by (parts of prompt sets, overrides), and the decisions that it made."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.db.export_models import Export
from app.db.models import PromptRow, PromptSet
from app.db.policy_models import PolicyDecision, PolicyOverride, PromptPart
from app.db.session import db_now
from app.domain.prompts import StoredPrompt


@dataclass(frozen=True, slots=True)
class NewDecision:
    """A decision to keep. `body`: the whole of it, JSON; `warnings`: sentences for a person."""

    id: str
    project_id: str
    moment: str
    subject: str | None
    outcome: str
    policy_version: str
    policy_digest: str
    inputs_hash: str
    warnings: list[str]
    body: str
    created_by: str


@dataclass(frozen=True, slots=True)
class CountedPart:
    """Prompts of a set that share licence and teacher. `teacher`: the one that they ask for; empty: none."""

    license: str
    license_assumed: bool
    teacher: str
    n_prompts: int
    first_prompt: int


def today(connection: Connection) -> date:
    """The day in UTC, by the database's clock."""
    now: float = connection.execute(select(db_now())).scalar_one()
    return datetime.fromtimestamp(now, UTC).date()


def count_parts(connection: Connection, set_id: str, first: int, prompts: Sequence[StoredPrompt]) -> None:
    """Add prompts, numbered from `first`, to the parts of their set. The caller holds the set's lock."""
    counts: dict[tuple[str, bool, str], list[int]] = {}
    for number, prompt in enumerate(prompts, first):
        found = counts.setdefault((prompt.license, prompt.license_assumed, prompt.teacher or ""), [0, number])
        found[0] += 1
    upsert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    for (licence, assumed, teacher), (n_prompts, first_prompt) in sorted(counts.items()):
        added = upsert(PromptPart).values(
            prompt_set_id=set_id,
            license=licence,
            license_assumed=assumed,
            teacher=teacher,
            n_prompts=n_prompts,
            first_prompt=first_prompt,
        )
        connection.execute(
            added.on_conflict_do_update(
                index_elements=["prompt_set_id", "license", "license_assumed", "teacher"],
                set_={"n_prompts": PromptPart.n_prompts + added.excluded.n_prompts},
            )
        )


def parts(connection: Connection, set_id: str, limit: int) -> list[CountedPart]:
    """The parts of a set, `limit` at most. Counted anew where an older version of this service added prompts."""
    expected = connection.execute(
        select(PromptSet.n_prompts - PromptSet.n_removed).where(PromptSet.id == set_id)
    ).scalar_one()
    counted = connection.execute(
        select(func.coalesce(func.sum(PromptPart.n_prompts), 0)).where(PromptPart.prompt_set_id == set_id)
    ).scalar_one()
    if int(counted) == expected:
        query: Any = select(*(getattr(PromptPart, name) for name in CountedPart.__dataclass_fields__)).where(
            PromptPart.prompt_set_id == set_id, PromptPart.n_prompts > 0
        )
    else:
        query = _recount(set_id)
    ordered = query.order_by("license", "license_assumed", "teacher").limit(limit)
    return [CountedPart(*row) for row in connection.execute(ordered)]


def _recount(set_id: str) -> Any:
    teacher = func.coalesce(PromptRow.teacher, "")
    return (
        select(
            PromptRow.license,
            PromptRow.license_assumed,
            teacher.label("teacher"),
            func.count().label("n_prompts"),
            func.min(PromptRow.number).label("first_prompt"),
        )
        .where(PromptRow.prompt_set_id == set_id, PromptRow.removed_by.is_(None))
        .group_by(PromptRow.license, PromptRow.license_assumed, teacher)
    )


def keep_decision(connection: Connection, new: NewDecision) -> None:
    values = {name: getattr(new, name) for name in NewDecision.__dataclass_fields__}
    connection.execute(insert(PolicyDecision).values(created_at=db_now(), **values))


def decision(connection: Connection, project_id: str, decision_id: str) -> Row[Any] | None:
    return connection.execute(
        select(PolicyDecision.__table__).where(
            PolicyDecision.id == decision_id, PolicyDecision.project_id == project_id
        )
    ).one_or_none()


def decisions_of_exports(
    connection: Connection, project_id: str, export_ids: Sequence[str]
) -> list[tuple[str, str]]:
    """Export, and the body of the last decision about it; an export without one is absent."""
    query = (
        select(Export.id, PolicyDecision.body)
        .join(PolicyDecision, PolicyDecision.id == Export.policy_decision_id)
        .where(Export.project_id == project_id, Export.id.in_(export_ids))
    )
    return [(row.id, row.body) for row in connection.execute(query)]


def decisions(
    connection: Connection, project_id: str, subject: str | None, before: str | None, limit: int
) -> list[Row[Any]]:
    """Newest first, without their bodies."""
    columns = [column for column in PolicyDecision.__table__.c if column.name != "body"]
    query = (
        select(*columns)
        .where(PolicyDecision.project_id == project_id)
        .order_by(PolicyDecision.id.desc())
        .limit(limit)
    )
    if subject is not None:
        query = query.where(PolicyDecision.subject == subject)
    if before is not None:
        query = query.where(PolicyDecision.id < before)
    return list(connection.execute(query))


def summaries(connection: Connection, decision_ids: Sequence[str]) -> list[Row[str, str, str, list[str]]]:
    """Id, outcome, version and warnings."""
    rows = connection.execute(
        select(
            PolicyDecision.id,
            PolicyDecision.outcome,
            PolicyDecision.policy_version,
            PolicyDecision.warnings,
        ).where(PolicyDecision.id.in_(decision_ids))
    )
    return list(rows)


def add_override(
    connection: Connection, override_id: str, project_id: str, kind: str, body: dict[str, Any], key_id: str
) -> None:
    connection.execute(
        insert(PolicyOverride).values(
            id=override_id,
            project_id=project_id,
            kind=kind,
            body=body,
            created_by=key_id,
            created_at=db_now(),
        )
    )


def override(connection: Connection, project_id: str, override_id: str) -> Row[Any] | None:
    return connection.execute(
        select(PolicyOverride.__table__).where(
            PolicyOverride.id == override_id, PolicyOverride.project_id == project_id
        )
    ).one_or_none()


def overrides(connection: Connection, project_id: str, before: str | None, limit: int) -> list[Row[Any]]:
    """Newest first, revoked ones too."""
    query = (
        select(PolicyOverride.__table__)
        .where(PolicyOverride.project_id == project_id)
        .order_by(PolicyOverride.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(PolicyOverride.id < before)
    return list(connection.execute(query))


def live_overrides(connection: Connection, project_id: str) -> list[Row[Any]]:
    return list(
        connection.execute(
            select(PolicyOverride.__table__).where(
                PolicyOverride.project_id == project_id, PolicyOverride.revoked_at.is_(None)
            )
        )
    )


def revoke_override(connection: Connection, override_id: str, key_id: str, why: str) -> bool:
    """False: it was revoked before, and nothing is changed."""
    return bool(
        connection.execute(
            update(PolicyOverride)
            .where(PolicyOverride.id == override_id, PolicyOverride.revoked_at.is_(None))
            .values(revoked_at=db_now(), revoked_by=key_id, revoked_why=why)
        ).rowcount
    )
