"""May this data be made, or given out, for this use? A decision carries all that it was made from, so that it can be
stored, audited and replayed: the same inputs and the same policy data give the same decision, to the byte.
"""

from collections.abc import Iterator, Sequence
from datetime import date
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from app.domain.fingerprints import fingerprint
from app.domain.licences import NOASSERTION, NONE
from app.domain.sampling import IntendedUse
from app.errors import PolicyRefusal
from app.policy.case import Case
from app.policy.findings import Code, Finding, Severity, merged
from app.policy.judgement import Judged, judge
from app.policy.lattice import FREE, Permissions, join_all, name_prefix, share_alike_targets
from app.policy.overrides import LicenceOverride, TermsOverride
from app.policy.parts import Part, TrainingData
from app.policy.record import PermissionsRecord
from app.policy.rules import Moment, PolicyRules
from app.policy.terms import POLICY_VERSION, policy_digest


class Outcome(StrEnum):
    ALLOW = "allow"
    ALLOW_WITH_WARNINGS = "allow-with-warnings"
    BLOCK = "block"


class DecisionInputs(BaseModel):
    """All that a decision depends on, beside the policy's data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    use: IntendedUse
    parts: tuple[Part, ...]
    today: date
    moment: Moment
    overrides: tuple[TermsOverride, ...] = ()
    licence_overrides: tuple[LicenceOverride, ...] = ()
    rules: PolicyRules = PolicyRules()
    training_data: tuple[TrainingData, ...] = Field(
        (), description="The exports that teachers were trained on, and those that their teachers were."
    )


class PartVerdict(BaseModel):
    """One part: its own outcome, licence, the ids of the terms that bind it, and its place on the lattice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    rows: int
    outcome: Outcome
    license: str
    terms: tuple[str, ...]
    teachers: tuple[str, ...]
    prompt_license: str
    permissions: PermissionsRecord


class PartialOffer(BaseModel):
    """What is left when the offending rows are left out, and is permitted. It is offered; nobody takes it unasked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: tuple[str, ...]
    leave_out: tuple[str, ...]
    rows_kept: int
    rows_left_out: int


class DatasetLicence(BaseModel):
    """`license`: the one SPDX expression of every row, or `other` where parts differ or one is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    license: str
    by_part: dict[str, str] = Field(description="Part key → SPDX expression.")


class Decision(BaseModel):
    """`permissions` is the join over all parts: what the student inherits. `offer` is there only with a block."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Outcome
    policy_version: str
    policy_digest: str
    inputs_hash: str
    findings: tuple[Finding, ...]
    permissions: PermissionsRecord
    license: DatasetLicence
    parts: tuple[PartVerdict, ...]
    offer: PartialOffer | None
    inputs: DecisionInputs

    @property
    def allowed(self) -> bool:
        return self.outcome is not Outcome.BLOCK

    @property
    def blocks(self) -> tuple[Finding, ...]:
        return tuple(item for item in self.findings if item.severity is Severity.BLOCK)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(item for item in self.findings if item.severity is Severity.WARN)

    def explanation(self) -> str:
        """Why it is refused, one reason and its way out a line; empty where it is not."""
        return "\n".join(f"{item.message} {item.proceed}" for item in self.blocks)


def decide(
    use: IntendedUse,
    parts: Sequence[Part],
    today: date,
    *,
    moment: Moment = Moment.EXPORT,
    overrides: Sequence[TermsOverride] = (),
    licence_overrides: Sequence[LicenceOverride] = (),
    rules: PolicyRules | None = None,
    training_data: Sequence[TrainingData] = (),
) -> Decision:
    """Judge every part, then what holds of them together. Pure: no clock, no storage.

    The order of parts and overrides does not matter. Raises `ValueError` for two parts of one key.
    """
    inputs = DecisionInputs(
        use=use,
        parts=tuple(sorted(parts, key=lambda part: part.key)),
        today=today,
        moment=moment,
        overrides=tuple(sorted(overrides, key=lambda override: override.id)),
        licence_overrides=tuple(sorted(licence_overrides, key=lambda override: override.id)),
        rules=rules or PolicyRules(),
        training_data=tuple(sorted(training_data, key=lambda data: data.export)),
    )
    return _decided(inputs)


def replay(decision: Decision) -> Decision:
    """The decision that the policy of today makes of the same inputs."""
    return _decided(decision.inputs)


def reproduces(decision: Decision) -> bool:
    """Is a stored decision what its inputs give under the policy data that made it?

    Raises `ValueError` where that data is not the data of this service: then only `replay` can be compared.
    """
    if decision.policy_digest != policy_digest():
        raise ValueError(
            f"the decision was made by policy {decision.policy_version} ({decision.policy_digest[:12]}…), "
            f"this service has {POLICY_VERSION} ({policy_digest()[:12]}…)"
        )
    return replay(decision) == decision


def require_allowed(decision: Decision, decision_id: str) -> None:
    """Raises `PolicyRefusal` where it is a block: with every reason, its clause, and what could be done without it."""
    if decision.allowed:
        return
    raise PolicyRefusal(
        decision.explanation(),
        decision=decision.model_dump_json(),
        decision_id=decision_id,
        policy_version=decision.policy_version,
        findings=[item.model_dump(mode="json", exclude_defaults=True) for item in decision.findings],
        offer=None if decision.offer is None else decision.offer.model_dump(mode="json"),
    )


def _decided(inputs: DecisionInputs) -> Decision:
    keys = [part.key for part in inputs.parts]
    if len(set(keys)) != len(keys):
        raise ValueError("every part needs a key of its own")
    case = Case(
        use=inputs.use,
        today=inputs.today,
        moment=inputs.moment,
        rules=inputs.rules,
        overrides=inputs.overrides,
        licence_overrides={o.license_id: o for o in inputs.licence_overrides if o.in_force(inputs.today)},
        training_data={data.export: data for data in inputs.training_data},
    )
    judged = [judge(case, part) for part in inputs.parts]
    joined = join_all(item.permissions for item in judged)
    together = tuple(_together(joined, inputs.use, judged))
    findings = merged([*(f for item in judged for f in item.findings), *together])
    blocked = any(f.severity is Severity.BLOCK for f in findings)
    return Decision(
        outcome=_outcome(findings),
        policy_version=POLICY_VERSION,
        policy_digest=policy_digest(),
        inputs_hash=_hash(inputs),
        findings=findings,
        permissions=PermissionsRecord.of(joined),
        license=dataset_licence({item.part.key: item.license for item in judged}),
        parts=tuple(_verdict(item) for item in judged),
        offer=_offer(judged, inputs.use) if blocked else None,
        inputs=inputs,
    )


def _hash(inputs: DecisionInputs) -> str:
    """Inputs that came later than the first decisions count only where they say something."""
    told = inputs.model_dump(mode="json")
    if not inputs.training_data:
        del told["training_data"]
    for teacher in (teacher for part in told["parts"] for teacher in part["teachers"]):
        for name in ("trained_on", "past_addresses"):
            if not teacher[name]:
                del teacher[name]
    return fingerprint(told).hex()


def dataset_licence(by_part: dict[str, str]) -> DatasetLicence:
    """One expression where all parts agree; parts that differ are not squeezed into one id."""
    expressions = set(by_part.values())
    single = next(iter(expressions)) if len(expressions) == 1 else None
    known = single is not None and single not in (NOASSERTION, NONE)
    return DatasetLicence(
        license=single if single is not None and known else "other", by_part=dict(sorted(by_part.items()))
    )


def _outcome(findings: Sequence[Finding]) -> Outcome:
    severities = {item.severity for item in findings}
    if Severity.BLOCK in severities:
        return Outcome.BLOCK
    return Outcome.ALLOW_WITH_WARNINGS if Severity.WARN in severities else Outcome.ALLOW


def _verdict(item: Judged) -> PartVerdict:
    return PartVerdict(
        key=item.part.key,
        rows=item.part.rows,
        outcome=_outcome(item.findings),
        license=item.license,
        terms=item.terms,
        teachers=tuple(teacher.name for teacher in item.part.teachers),
        prompt_license=item.part.prompt_license,
        permissions=PermissionsRecord.of(item.permissions),
    )


def _together(joined: Permissions, use: IntendedUse, judged: Sequence[Judged]) -> Iterator[Finding]:
    """What no part does alone: share-alike licences, or names, that cannot be satisfied at once."""
    severity = Severity.BLOCK if use.redistribution else Severity.WARN
    if joined.share_alike and not share_alike_targets(joined.share_alike):
        involved = [item for item in judged if item.permissions.share_alike]
        names = ", ".join(sorted(joined.share_alike))
        yield Finding(
            severity=severity,
            code=Code.SHARE_ALIKE_CONFLICT,
            axis="dataset",
            subject="share_alike",
            source=names,
            message=f"Each of {names} asks that what is derived carry its own licence, and no licence satisfies all.",
            proceed="Make an export for each of these licences.",
            **_involved(involved),
        )
    _, conflicting = name_prefix(joined.obligations)
    if conflicting:
        involved = [
            item for item in judged if name_prefix(item.permissions.obligations) != (None, frozenset())
        ]
        names = ", ".join(f'"{name}"' for name in sorted(conflicting))
        yield Finding(
            severity=severity,
            code=Code.NAME_CONFLICT,
            axis="dataset",
            subject="naming",
            source=names,
            message=f"The student's name would have to begin with each of {names}.",
            proceed="Make an export for each of the teachers that ask for a name.",
            **_involved(involved),
        )


def _involved(judged: Sequence[Judged]) -> dict[str, tuple[str, ...] | int]:
    return {
        "parts": tuple(sorted(item.part.key for item in judged)),
        "teachers": tuple(sorted({t.name for item in judged for t in item.part.teachers})),
        "prompt_licenses": tuple(sorted({item.part.prompt_license for item in judged})),
        "rows": sum(item.part.rows for item in judged),
        "example_rows": tuple(row for item in judged for row in item.part.examples)[:10],
    }


def _offer(judged: Sequence[Judged], use: IntendedUse) -> PartialOffer | None:
    """The parts that pass by themselves, taken from the largest as long as they pass together. None: nothing passes."""
    kept: list[Judged] = []
    held = FREE
    for item in sorted(judged, key=lambda item: (-item.part.rows, item.part.key)):
        joined = held.join(item.permissions)
        if not item.blocked and all(f.severity is not Severity.BLOCK for f in _together(joined, use, ())):
            kept.append(item)
            held = joined
    if not kept:
        return None
    keep = {item.part.key for item in kept}
    left = [item for item in judged if item.part.key not in keep]
    return PartialOffer(
        keep=tuple(sorted(keep)),
        leave_out=tuple(item.part.key for item in left),
        rows_kept=sum(item.part.rows for item in kept),
        rows_left_out=sum(item.part.rows for item in left),
    )
