"""What speaks against a use, or asks for attention: each finding says why, by whose words, where, and how to go on."""

from collections.abc import Iterable
from datetime import date
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from app.policy.parts import Part
from app.policy.terms import Provision


class Severity(StrEnum):
    BLOCK = "block"
    WARN = "warn"
    NOTE = "note"


class Code(StrEnum):
    """Stable slugs for programs."""

    TRAINING_FORBIDDEN = "training-forbidden"
    COMPETING_FORBIDDEN = "competing-forbidden"
    COMMERCE_FORBIDDEN = "commerce-forbidden"
    REDISTRIBUTION_FORBIDDEN = "redistribution-forbidden"
    RESEARCH_ONLY = "research-only"
    CONDITION = "condition"
    TERMS_UNKNOWN = "terms-unknown"
    TERMS_NOT_READ = "terms-not-read"
    TERMS_SECOND_HAND = "terms-second-hand"
    TERMS_DECLARED = "terms-declared"
    TERMS_STALE = "terms-stale"
    TRAINING_DATA_UNKNOWN = "training-data-unknown"
    NO_TERMS_FOR_MODEL = "no-terms-for-model"
    NO_TERMS_FOR_ROUTE = "no-terms-for-route"
    ROUTE_MISMATCH = "route-mismatch"
    LICENCE_UNKNOWN = "licence-unknown"
    LICENCE_MISSING = "licence-missing"
    LICENCE_INVALID = "licence-invalid"
    LICENCE_ASSUMED = "licence-assumed"
    SHARE_ALIKE_CONFLICT = "share-alike-conflict"
    NAME_CONFLICT = "name-conflict"
    OVERRIDE_APPLIED = "override-applied"
    OVERRIDE_LAPSED = "override-lapsed"


FORBIDDEN = {
    "train": Code.TRAINING_FORBIDDEN,
    "compete": Code.COMPETING_FORBIDDEN,
    "commercial": Code.COMMERCE_FORBIDDEN,
    "redistribute": Code.REDISTRIBUTION_FORBIDDEN,
}


class Finding(BaseModel):
    """One reason. `clause` is a quotation from `document`; where it is None, `paraphrase` is this project's wording.

    `parts`, `rows` and `example_rows` say which rows are at fault; before generation, `rows` counts prompts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    severity: Severity
    code: Code
    axis: str  # teacher | host | prompt | dataset
    subject: str  # the flag or duty that it is about, or ""
    source: str  # terms id, override, or licence id
    message: str
    proceed: str
    clause: str | None = None
    paraphrase: str | None = None
    document: str | None = None
    section: str | None = None
    effective: date | None = None
    read: date | None = None
    url: str | None = None
    document_sha256: str | None = None
    teachers: tuple[str, ...] = ()
    prompt_licenses: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    rows: int = 0
    example_rows: tuple[str, ...] = ()

    @property
    def quoted(self) -> bool:
        return self.clause is not None


def finding(
    severity: Severity,
    code: Code,
    *,
    axis: str,
    source: str,
    message: str,
    proceed: str,
    part: Part | None = None,
    subject: str = "",
    provision: Provision | None = None,
    paraphrase: str | None = None,
    teacher: str | None = None,
    prompt_license: str | None = None,
) -> Finding:
    """A finding about one part; `merged` brings those of the same reason together."""
    if provision is not None:
        message = f"{message} {cited(provision)}"
    elif paraphrase is not None:
        message = f"{message} {paraphrase}"
    document = None if provision is None else provision.document
    return Finding(
        severity=severity,
        code=code,
        axis=axis,
        subject=subject,
        source=source,
        message=message,
        proceed=proceed,
        clause=None if provision is None else provision.clause,
        paraphrase=paraphrase if provision is None else provision.paraphrase,
        document=None if document is None else document.title,
        section=None if provision is None else provision.section,
        effective=None if document is None else document.effective,
        read=None if document is None else document.read,
        url=None if document is None else document.url,
        document_sha256=None if document is None else document.sha256,
        teachers=() if teacher is None else (teacher,),
        prompt_licenses=() if prompt_license is None else (prompt_license,),
        parts=() if part is None else (part.key,),
        rows=0 if part is None else part.rows,
        example_rows=() if part is None else part.examples,
    )


def cited(provision: Provision) -> str:
    """Document, section and the clause in quotation marks; a paraphrase says that it is one."""
    document = provision.document
    where = f"{document.title}, {provision.section}" if provision.section else document.title
    dated = "" if document.effective is None else f" (effective {document.effective.isoformat()})"
    if provision.clause is not None:
        return f"{where}{dated}: “{provision.clause}”"
    return f"{where}{dated}, in our words and not quoted: {provision.paraphrase}"


_ORDER = {Severity.BLOCK: 0, Severity.WARN: 1, Severity.NOTE: 2}


def merged(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """One finding per reason, over all the parts that it concerns; blocks first, in an order that does not depend on
    the order of the parts.
    """
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for item in findings:
        key = (item.severity, item.code, item.axis, item.subject, item.source, item.message)
        groups.setdefault(key, []).append(item)
    result = [_together(group) for group in groups.values()]
    return tuple(
        sorted(result, key=lambda f: (_ORDER[f.severity], f.code, f.axis, f.source, f.subject, f.message))
    )


def _together(group: list[Finding]) -> Finding:
    by_part = {item.parts: item for item in group}  # one part may give the same reason by two of its teachers
    examples = sorted(
        {row for item in by_part.values() for row in item.example_rows}, key=lambda r: (len(r), r)
    )
    return group[0].model_copy(
        update={
            "teachers": tuple(sorted({name for item in group for name in item.teachers})),
            "prompt_licenses": tuple(sorted({name for item in group for name in item.prompt_licenses})),
            "parts": tuple(sorted({key for item in group for key in item.parts})),
            "rows": sum(item.rows for item in by_part.values()),
            "example_rows": tuple(examples[:10]),
        }
    )
