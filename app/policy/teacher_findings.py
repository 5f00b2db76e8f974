"""What the terms of a teacher, and of its host, say to a use."""

from collections.abc import Iterator

from app.policy.case import DOING, Case, Flag, answer
from app.policy.findings import FORBIDDEN, Code, Finding, Severity, finding
from app.policy.lattice import Answer
from app.policy.parts import Part, TeacherRef
from app.policy.routes import HOSTS, Axis, Bound, Evidence, Resolution, known_routes, route_of
from app.policy.terms import Terms


def about_teacher(case: Case, part: Part, teacher: TeacherRef, resolution: Resolution) -> Iterator[Finding]:
    """Every finding about one teacher of a part."""
    for axis in resolution.missing:
        yield _missing(case, part, teacher, axis)
    for route in resolution.address_routes:
        yield _mismatch(part, teacher, route)
    for override in resolution.lapsed:
        yield finding(
            Severity.WARN,
            Code.OVERRIDE_LAPSED,
            axis="teacher",
            source=f"override:{override.id}",
            message=f"Override {override.id} of {override.who} is not in force on this day and was not used.",
            proceed="Renew it, if the contract holds on.",
            part=part,
            teacher=teacher.name,
        )
    for bound in resolution.bound:
        yield from _flags(case, part, teacher, bound)
        yield from _standing(case, part, teacher, bound)


def _flags(case: Case, part: Part, teacher: TeacherRef, bound: Bound) -> Iterator[Finding]:
    terms, outputs = bound.terms, _outputs(teacher)
    unknown: list[Flag] = []
    for flag in case.asked():
        reply = answer(terms.permissions, flag)
        if reply is Answer.UNKNOWN:
            unknown.append(flag)
        elif reply is not Answer.YES:
            no = reply is Answer.NO
            yield finding(
                Severity.BLOCK if no else Severity.WARN,
                FORBIDDEN[flag] if no else Code.CONDITION,
                axis=bound.axis,
                subject=flag,
                source=terms.id,
                message=f"{DOING[flag]} {outputs} is {'forbidden' if no else 'permitted on a condition'}:",
                proceed=terms.proceed,
                provision=terms.provision_about(flag),
                part=part,
                teacher=teacher.name,
            )
    if unknown:
        yield finding(
            Severity.WARN if case.rules.permit_unknown else Severity.BLOCK,
            Code.TERMS_UNKNOWN,
            axis=bound.axis,
            subject=unknown[0],
            source=terms.id,
            message=f"Whether {outputs} may be used so ({', '.join(unknown)}) is not known:",
            proceed=terms.proceed,
            provision=terms.provision_about(unknown[0]),
            part=part,
            teacher=teacher.name,
        )
    if terms.permissions.research_only and not case.is_research:
        yield finding(
            Severity.BLOCK,
            Code.RESEARCH_ONLY,
            axis=bound.axis,
            subject="research",
            source=terms.id,
            message=f"Research is all that is permitted with {outputs}:",
            proceed=terms.proceed,
            provision=terms.provision_about("research"),
            part=part,
            teacher=teacher.name,
        )


def _standing(case: Case, part: Part, teacher: TeacherRef, bound: Bound) -> Iterator[Finding]:
    """How well the terms are known, by whose word, and since when."""
    terms = bound.terms
    if bound.override is not None:
        override = bound.override
        yield finding(
            Severity.NOTE,
            Code.OVERRIDE_APPLIED,
            axis=bound.axis,
            source=terms.id,
            message=f"{terms.title} binds by override {override.id} of {override.who}: {override.why}",
            proceed="Nothing to do while the override holds.",
            part=part,
            teacher=teacher.name,
        )
    elif bound.evidence is Evidence.DECLARED:
        yield finding(
            Severity.WARN,
            Code.TERMS_DECLARED,
            axis=bound.axis,
            source=terms.id,
            message=f"Teacher {teacher.name}: {terms.title} holds because it was named at registration; "
            f"this service does not know {teacher.model}.",
            proceed=f'Record it as an override of the model\'s terms (`terms: ["{terms.id}"]`), with who and why.',
            part=part,
            teacher=teacher.name,
        )
    elif bound.evidence is not Evidence.H:
        low = bound.evidence is Evidence.L
        permitted = case.rules.permit_not_read if low else case.rules.permit_second_hand
        how = "was not read" if low else "is known from an excerpt or a secondary source only"
        yield finding(
            Severity.WARN if permitted else Severity.BLOCK,
            Code.TERMS_NOT_READ if low else Code.TERMS_SECOND_HAND,
            axis=bound.axis,
            source=terms.id,
            message=f"{terms.title} {how}.",
            proceed=f"Read it{_at(terms)} and record your reading as an override, with who and why.",
            part=part,
            teacher=teacher.name,
        )
    read, limit = terms.read, case.rules.stale_after_days
    contract = bound.override is not None and bound.override.contract is not None  # holds until its `until`
    if read is not None and not contract and (case.today - read).days > limit:
        yield finding(
            Severity.WARN,
            Code.TERMS_STALE,
            axis=bound.axis,
            source=terms.id,
            message=f"{terms.title} was last read on {read.isoformat()}, more than {limit} days ago.",
            proceed=f"Read it again{_at(terms)}: it may have changed.",
            part=part,
            teacher=teacher.name,
        )


def _missing(case: Case, part: Part, teacher: TeacherRef, axis: Axis) -> Finding:
    of_model = axis == "teacher"
    if of_model:
        subject = teacher.model
        hint = "" if teacher.license is None else f" (its declared licence is {teacher.license})"
    else:
        subject = f"access route {teacher.access_route}"
        hint = f" (known are {', '.join(known_routes())})"
    return finding(
        Severity.WARN if case.rules.permit_unknown else Severity.BLOCK,
        Code.NO_TERMS_FOR_MODEL if of_model else Code.NO_TERMS_FOR_ROUTE,
        axis=axis,
        source=subject,
        message=f"Teacher {teacher.name}: no terms are known for {subject}{hint}, and unknown is not permitted.",
        proceed="Record the terms as an override for this model and route, with who and why (it may name known terms, "
        "such as apache-2.0-weights, or state a contract), or use a teacher whose terms are known.",
        part=part,
        teacher=teacher.name,
    )


def _mismatch(part: Part, teacher: TeacherRef, route: str) -> Finding:
    present = route_of(teacher.address) == route
    belongs = "belongs" if present else "once belonged"
    return finding(
        Severity.WARN,
        Code.ROUTE_MISMATCH,
        axis="host",
        source=route,
        message=f"Teacher {teacher.name} names access route {teacher.access_route}, but its address {belongs} to "
        f"{HOSTS[route].title}, whose terms are applied as well.",
        proceed=f"Register the teacher with access route {route}."
        if present
        else "Register another teacher for the address that it has now.",
        part=part,
        teacher=teacher.name,
    )


def _outputs(teacher: TeacherRef) -> str:
    revision = "" if teacher.revision is None else f"@{teacher.revision}"
    return f"the outputs of {teacher.name} ({teacher.model}{revision} by {teacher.access_route})"


def _at(terms: Terms) -> str:
    url = next((provision.document.url for provision in terms.provisions if provision.document.url), "")
    return f" at {url}" if url else ""
