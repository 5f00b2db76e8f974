"""One part of a dataset against a use: its place on the lattice, its licence, and every finding about it."""

from dataclasses import dataclass, field

from app.domain.licences import NOASSERTION, all_licenses, normalise_license
from app.errors import InvalidLicense
from app.policy.case import Case
from app.policy.findings import Finding, Severity
from app.policy.inheritance import handed_down, inherited, not_known
from app.policy.lattice import UNKNOWN, Permissions, join_all
from app.policy.parts import Part, TeacherRef
from app.policy.prompt_findings import about_prompts, assumed, invalid
from app.policy.prompt_licences import read_licence
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


@dataclass(slots=True)
class _Found:
    """What is gathered of a part. `licences`: SPDX expressions of prompts that bind it."""

    permissions: list[Permissions] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    terms: dict[str, Terms] = field(default_factory=dict)
    licences: set[str] = field(default_factory=set)

    def of_teacher(self, case: Case, part: Part, teacher: TeacherRef) -> list[Finding]:
        resolution = resolve(teacher, case.overrides, case.today)
        self.permissions += [UNKNOWN for _ in resolution.missing]
        self.permissions += [bound.terms.permissions for bound in resolution.bound]
        self.terms |= {bound.terms.id: bound.terms for bound in resolution.bound}
        return list(about_teacher(case, part, teacher, resolution))

    def of_prompts(self, case: Case, part: Part) -> list[Finding]:
        try:
            licence = normalise_license(part.prompt_license)
            readings = read_licence(licence, case.licence_overrides)
        except InvalidLicense:
            self.permissions.append(UNKNOWN)
            self.licences.add(NOASSERTION)
            return [invalid(part)]
        self.licences.add(licence)
        self.permissions += [reading.permissions for reading in readings]
        self.terms |= {reading.terms.id: reading.terms for reading in readings if reading.terms is not None}
        return [one for reading in readings for one in about_prompts(case, part, reading)]

    def inherit(self, case: Case, part: Part, teacher: TeacherRef) -> None:
        """What binds the rows that the teacher was trained on binds its own: their teachers, hosts and prompts."""
        lines = inherited(teacher, case.training_data)
        for export, ancestor in lines.teachers:
            self.findings += handed_down(teacher, export, self.of_teacher(case, part, ancestor))
        for export, licence in lines.prompt_licenses:
            prompts = part.model_copy(update={"prompt_license": licence})
            self.findings += handed_down(teacher, export, self.of_prompts(case, prompts))
        for export in lines.unknown:
            self.permissions.append(UNKNOWN)
            self.findings.append(not_known(case, part, teacher, export))


def judge(case: Case, part: Part) -> Judged:
    """The three axes (prompt licence, teacher terms, host terms) are judged apart and joined."""
    found = _Found()
    for teacher in part.teachers:
        found.findings += found.of_teacher(case, part, teacher)
        found.inherit(case, part, teacher)
    found.findings += found.of_prompts(case, part)
    if part.prompt_license_assumed and part.prompt_license != NOASSERTION:
        found.findings.append(assumed(part))
    return Judged(
        part, join_all(found.permissions), _license(found), tuple(sorted(found.terms)), tuple(found.findings)
    )


def _license(found: _Found) -> str:
    """The part's licence: that of its prompts, and the ids of all terms that reach whoever holds the outputs."""
    reaching = {t.spdx for t in found.terms.values() if t.spdx is not None and t.reaches_outputs}
    return all_licenses(frozenset({*found.licences, *reaching}))
