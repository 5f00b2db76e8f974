"""One part of a dataset against a use: its place on the lattice, its licence, and every finding about it."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.domain.licences import NOASSERTION, all_licenses, normalise_license
from app.errors import InvalidLicense
from app.policy.case import Case
from app.policy.findings import Finding, Severity
from app.policy.lattice import UNKNOWN, Permissions, join_all
from app.policy.parts import Part
from app.policy.prompt_findings import about_prompts, assumed, invalid
from app.policy.prompt_licences import LicenceReading, read_licence
from app.policy.routes import resolve
from app.policy.teacher_findings import about_teacher
from app.policy.terms import Terms


@dataclass(frozen=True, slots=True)
class Judged:
    """What was found of a part. `terms`: ids of all that bind it; `license`: its SPDX expression, or NOASSERTION."""

    part: Part
    permissions: Permissions
    license: str
    terms: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def blocked(self) -> bool:
        return any(item.severity is Severity.BLOCK for item in self.findings)


def judge(case: Case, part: Part) -> Judged:
    """The three axes (prompt licence, teacher terms, host terms) are judged apart and joined."""
    permissions: list[Permissions] = []
    findings: list[Finding] = []
    terms: dict[str, Terms] = {}
    for teacher in part.teachers:
        resolution = resolve(teacher, case.overrides, case.today)
        permissions += [UNKNOWN for _ in resolution.missing]
        permissions += [bound.terms.permissions for bound in resolution.bound]
        terms |= {bound.terms.id: bound.terms for bound in resolution.bound}
        findings += about_teacher(case, part, teacher, resolution)
    try:
        readings: tuple[LicenceReading, ...] = read_licence(
            normalise_license(part.prompt_license), case.licence_overrides
        )
    except InvalidLicense:
        return Judged(part, UNKNOWN, NOASSERTION, tuple(sorted(terms)), (*findings, invalid(part)))
    for reading in readings:
        permissions.append(reading.permissions)
        if reading.terms is not None:
            terms[reading.terms.id] = reading.terms
        findings += about_prompts(case, part, reading)
    if part.prompt_license_assumed and part.prompt_license != NOASSERTION:
        findings.append(assumed(part))
    return Judged(part, join_all(permissions), _license(part, terms), tuple(sorted(terms)), tuple(findings))


def _license(part: Part, terms: Mapping[str, Terms]) -> str:
    """The part's licence: that of its prompts, and the ids of all terms that reach whoever holds the outputs."""
    reaching = {t.spdx for t in terms.values() if t.spdx is not None and t.reaches_outputs}
    return all_licenses(frozenset({normalise_license(part.prompt_license), *reaching}))
