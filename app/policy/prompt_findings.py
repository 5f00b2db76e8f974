"""What the licence of prompts says to a use."""

from collections.abc import Iterator

from app.domain.licences import NOASSERTION
from app.policy.case import DOING, Case, answer
from app.policy.findings import FORBIDDEN, Code, Finding, Severity, finding
from app.policy.lattice import Answer
from app.policy.parts import Part
from app.policy.prompt_licences import LicenceReading, in_words
from app.policy.rules import Moment


def about_prompts(case: Case, part: Part, reading: LicenceReading) -> Iterator[Finding]:
    """Every finding about one licence id of a part's prompts."""
    if reading.override is not None:
        override = reading.override
        yield finding(
            Severity.NOTE,
            Code.OVERRIDE_APPLIED,
            axis="prompt",
            source=reading.id,
            message=f"{reading.id} is read by override {override.id} of {override.who}: {override.why}",
            proceed="Nothing to do while the override holds.",
            part=part,
            prompt_license=part.prompt_license,
        )
    if reading.permissions.train is Answer.UNKNOWN:
        yield _missing(case, part) if reading.id == NOASSERTION else _unknown(case, part, reading)
        return
    yield from _flags(case, part, reading)


def _flags(case: Case, part: Part, reading: LicenceReading) -> Iterator[Finding]:
    terms = reading.terms
    for flag in case.asked():
        reply = answer(reading.permissions, flag)
        if reply is Answer.YES:
            continue
        no = reply is not Answer.CONDITIONAL
        yield finding(
            Severity.BLOCK if no else Severity.WARN,
            FORBIDDEN[flag] if no else Code.CONDITION,
            axis="prompt",
            subject=flag,
            source=reading.id,
            message=f"{DOING[flag]} prompts under {reading.id} is "
            f"{'not permitted' if no else 'permitted on a condition'}:",
            proceed="Leave these rows out, declare another use, or get their authors' permission and send the prompts "
            "again under a LicenseRef-… of your own, with a licence override that says so.",
            provision=None if terms is None else terms.provision_about(flag),
            paraphrase=in_words(reading.id, flag) if terms is None else None,
            part=part,
            prompt_license=part.prompt_license,
        )
    if reading.permissions.research_only and not case.is_research:
        yield finding(
            Severity.BLOCK,
            Code.RESEARCH_ONLY,
            axis="prompt",
            subject="research",
            source=reading.id,
            message=f"Research is all that is permitted with prompts under {reading.id}:",
            proceed="Leave these rows out, or declare a research use that earns no money.",
            provision=None if terms is None else terms.provision_about("research"),
            paraphrase=in_words(reading.id, "research") if terms is None else None,
            part=part,
            prompt_license=part.prompt_license,
        )


def _missing(case: Case, part: Part) -> Finding:
    return finding(
        _of_unknown(case),
        Code.LICENCE_MISSING,
        axis="prompt",
        subject="train",
        source=NOASSERTION,
        message=f"The licence of these prompts is not known (NOASSERTION).{_later(case)}",
        proceed="Send the prompts with their `license` (for your own, the one that you give them), set the project's "
        "default licence before you send them, or leave these rows out.",
        part=part,
        prompt_license=part.prompt_license,
    )


def _unknown(case: Case, part: Part, reading: LicenceReading) -> Finding:
    terms = reading.terms
    return finding(
        _of_unknown(case),
        Code.LICENCE_UNKNOWN,
        axis="prompt",
        subject="train",
        source=reading.id,
        message=f"What {reading.id} permits is not known.{_later(case)}",
        proceed=f"Record what {reading.id} permits as a licence override, with who and why, or leave these rows out.",
        provision=None if terms is None else terms.provision_about("train"),
        part=part,
        prompt_license=part.prompt_license,
    )


def _of_unknown(case: Case) -> Severity:
    """Prompts of unknown licence may be answered, but do not leave the service."""
    tolerated = case.moment is Moment.CREATION or case.rules.permit_unknown
    return Severity.WARN if tolerated else Severity.BLOCK


def _later(case: Case) -> str:
    later = case.moment is Moment.CREATION and not case.rules.permit_unknown
    return " An export of these rows will be refused." if later else ""


def invalid(part: Part) -> Finding:
    return finding(
        Severity.BLOCK,
        Code.LICENCE_INVALID,
        axis="prompt",
        source=part.prompt_license,
        message=f"{part.prompt_license!r} is not an SPDX licence expression.",
        proceed="Leave these rows out, or send the prompts again with a valid licence.",
        part=part,
        prompt_license=part.prompt_license,
    )


def assumed(part: Part) -> Finding:
    return finding(
        Severity.NOTE,
        Code.LICENCE_ASSUMED,
        axis="prompt",
        source=part.prompt_license,
        message=f"Prompts that came without a licence took the project's default, {part.prompt_license}.",
        proceed="Nothing to do where that is right.",
        part=part,
        prompt_license=part.prompt_license,
    )
