"""A teacher that was a student: what binds the rows that it was trained on binds the rows that it makes.

Else a model trained on them would launder them: the same capability, and nothing owed for it. The terms of their
teachers and hosts and the licences of their prompts are judged beside its own, generation behind generation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from app.policy.case import Case
from app.policy.findings import Code, Finding, Severity, finding
from app.policy.parts import Part, TeacherRef, TrainingData


@dataclass(slots=True)
class Inherited:
    """What a teacher comes from, each once, with the export that tells of it; `unknown`: exports that tell nothing."""

    teachers: list[tuple[str, TeacherRef]] = field(default_factory=list)
    prompt_licenses: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def inherited(teacher: TeacherRef, data: Mapping[str, TrainingData]) -> Inherited:
    """All that lies behind a teacher, the nearest generation first. Exports that lead back to themselves end."""
    found = Inherited()
    seen_teachers: set[TeacherRef] = set()
    seen_licences: set[str] = set()
    seen_exports: set[str] = set()
    waiting = sorted(teacher.trained_on)
    while waiting:
        export = waiting.pop(0)
        if export in seen_exports:
            continue
        seen_exports.add(export)
        if export not in data:
            found.unknown.append(export)
            continue
        for ancestor in data[export].teachers:
            waiting += sorted(ancestor.trained_on)
            if ancestor not in seen_teachers:
                seen_teachers.add(ancestor)
                found.teachers.append((export, ancestor))
        for licence in data[export].prompt_licenses:
            if licence not in seen_licences:
                seen_licences.add(licence)
                found.prompt_licenses.append((export, licence))
    return found


def handed_down(teacher: TeacherRef, export: str, findings: Sequence[Finding]) -> Iterator[Finding]:
    """Findings about the rows of an export, as findings about the rows of a teacher that was trained on them."""
    for one in findings:
        told = {
            "message": f"Teacher {teacher.name} was trained on rows of export {export}. {one.message}",
            "teachers": (teacher.name,),
            "prompt_licenses": (),
        }
        if one.axis == "prompt":
            told["proceed"] = (
                "Leave these rows out, declare another use, or use a teacher that was trained on other data."
            )
        yield one.model_copy(update=told)


def not_known(case: Case, part: Part, teacher: TeacherRef, export: str) -> Finding:
    return finding(
        Severity.WARN if case.rules.permit_unknown else Severity.BLOCK,
        Code.TRAINING_DATA_UNKNOWN,
        axis="teacher",
        source=export,
        message=f"Teacher {teacher.name} was trained on export {export}, of which no decision is known: nobody can say "
        "by which terms its rows are bound.",
        proceed="Make that export again, and name the new one in the teacher's `trained_on`.",
        part=part,
        teacher=teacher.name,
    )
