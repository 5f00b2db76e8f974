"""`retort policy …`."""

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.intended_use import Commercial, Competing, Redistribution, intended_use
from app.cli.outcome import AsJson, CommandFailed, Exit, client, out, show, table

if TYPE_CHECKING:
    from app.policy.findings import Finding
    from app.services.overrides import NewLicenceOverride, NewTermsOverride, OverrideView
    from app.services.policy import PolicyForecast
    from app.services.terms_views import PolicyView, TermsView

app = typer.Typer(no_args_is_help=True)

Most = Annotated[int, typer.Option(min=1, help="At most so many.")]


@app.command("show")
def show_policy(
    terms: Annotated[str | None, typer.Argument(help="Id of terms, for their clauses.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which models and routes are known, and by which terms; or one set of terms with its clauses."""
    with client() as api:
        if terms is None:
            policy = api.policy()
            show(policy, as_json, lambda: _policy(policy))
        else:
            found = api.terms(terms)
            show(found, as_json, lambda: _terms(found))


def _policy(policy: "PolicyView") -> None:
    out.print(f"Policy {policy.version} ({policy.digest[:12]}…)")
    for row in policy.models:
        out.print(f"  {row.evidence}  {', '.join(row.terms):32} {', '.join(row.models)}", markup=False)
    for route in policy.routes:
        out.print(f"  {route.evidence}  {', '.join(route.terms) or '–':32} route {route.route}", markup=False)


def _terms(terms: "TermsView") -> None:
    p = terms.permissions
    out.print(f"{terms.title} ({terms.id})", markup=False)
    out.print(
        f"  train {p.train}, compete {p.compete}, commercial {p.commercial}, redistribute {p.redistribute}"
    )
    for one in terms.provisions:
        words = f"“{one.clause}”" if one.clause else f"in our words: {one.paraphrase}"
        out.print(f"  {one.document}, {one.section}: {words}", markup=False)
    for owed in p.obligations:
        out.print(f"  owed ({owed.kind}): {owed.text}", markup=False)


@app.command()
def check(
    teacher: Annotated[list[str], typer.Argument(help="Names of registered teachers.")],
    licence: Annotated[
        list[str] | None,
        typer.Option("--license", help="SPDX expression of prompts; may be given several times."),
    ] = None,
    commercial: Commercial = False,
    competing: Competing = False,
    redistribution: Redistribution = False,
    as_json: AsJson = False,
) -> None:
    """Tell what the policy would say to an export of such rows. Exit code 4 where it would be refused."""
    from pydantic import ValidationError

    from app.services.evaluations import EvaluationRequest

    try:
        asked = EvaluationRequest.model_validate(
            {
                "teachers": teacher,
                "licenses": licence or ["NOASSERTION"],
                "intended_use": intended_use(commercial, competing, redistribution),
            }
        )
    except ValidationError as error:
        raise CommandFailed(error.errors(include_url=False)[0]["msg"], Exit.USAGE, "usage") from None
    with client() as api:
        found = api.evaluate(asked)
    show(found, as_json, lambda: told(found))
    if found.outcome == "block":
        raise typer.Exit(Exit.REFUSED)


def told(forecast: "PolicyForecast") -> None:
    """Outcome and reasons, for a person."""
    out.print(f"Policy {forecast.policy_version}: [bold]{forecast.outcome}[/]")
    for finding in forecast.findings:
        out.print(f"  {finding.severity}: {_said(finding)}", markup=False)
    if forecast.offer is not None:
        left = ", ".join(forecast.offer.leave_out)
        out.print(f"  It would pass without {left} ({forecast.offer.rows_left_out:,} rows).", markup=False)


def _said(finding: "Finding") -> str:
    return f"{finding.message} {finding.proceed}"


@app.command()
def decisions(
    about: Annotated[str | None, typer.Option(help="Only those about this job or export.")] = None,
    most: Most = 50,
    as_json: AsJson = False,
) -> None:
    """List decisions, newest first, refusals too."""
    with client() as api:
        found = list(islice(api.decisions(**({} if about is None else {"subject": about})), most))
    columns = {
        "id": lambda one: one.id,
        "at": lambda one: one.moment,
        "about": lambda one: one.subject,
        "outcome": lambda one: one.outcome,
        "policy": lambda one: one.policy_version,
        "made": lambda one: f"{one.created_at:%Y-%m-%d %H:%M:%S}",
    }
    show(found, as_json, lambda: table(found, columns, "No decisions."))


@app.command()
def decision(
    decision: Annotated[str, typer.Argument(help="Id of a decision.")], as_json: AsJson = False
) -> None:
    """Show a decision with its reasons."""
    with client() as api:
        found = api.decision(decision)

    def told_in_full() -> None:
        out.print(f"{found.id}: {found.outcome} by policy {found.policy_version}", markup=False)
        for one in found.decision.findings:
            out.print(f"  {one.severity}: {_said(one)}", markup=False)
        for part in found.decision.parts:
            out.print(f"  {part.key}: {part.rows:,} rows, {part.license}", markup=False)

    show(found, as_json, told_in_full)


@app.command()
def replay(
    decision: Annotated[str, typer.Argument(help="Id of a decision.")], as_json: AsJson = False
) -> None:
    """Make a decision again from its inputs. Exit code 1 where the same policy gives another one."""
    with client() as api:
        found = api.replay_decision(decision)

    def told_of_it() -> None:
        if found.reproduced is None:
            out.print(f"Made by another policy. Then {found.outcome_then}, now {found.outcome_now}.")
        else:
            out.print(
                "Reproduced, byte for byte." if found.reproduced else "[red]Not what its inputs give.[/]"
            )
        for sign, changed in (("−", found.gone), ("+", found.new)):
            for one in changed:
                out.print(f"  {sign} {one.severity}: {one.message}", markup=False)

    show(found, as_json, told_of_it)
    if found.reproduced is False:
        raise typer.Exit(Exit.FAILED)


@app.command()
def overrides(as_json: AsJson = False) -> None:
    """List overrides, newest first, revoked ones too."""
    with client() as api:
        found = list(api.overrides())
    columns = {
        "id": lambda one: one.id,
        "of": lambda one: _of(one),
        "who": lambda one: one.override.who,
        "why": lambda one: one.override.why,
        "until": lambda one: one.override.until,
        "in force": lambda one: "yes" if one.in_force else "no",
    }
    show(found, as_json, lambda: table(found, columns, "No overrides."))


def _of(one: "OverrideView") -> str:
    given = one.override
    return given.license_id if given.kind == "license" else f"{given.model} by {given.route}"


@app.command()
def override(
    who: Annotated[str, typer.Option(help="Who answers for it.")],
    why: Annotated[str, typer.Option(help="The contract's number, or who gave the permission.")],
    model: Annotated[str, typer.Option(help="Glob over the model's name.")] = "*",
    route: Annotated[str, typer.Option(help="Glob over the access route.")] = "*",
    terms: Annotated[list[str] | None, typer.Option(help="Ids of shipped terms that hold.")] = None,
    replaces: Annotated[str, typer.Option(help="all, model or host: whose terms these replace.")] = "all",
    licence: Annotated[
        str | None, typer.Option("--license", help="A LicenseRef-… of your own, with --contract.")
    ] = None,
    contract: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSON file with other terms, see docs/policy.md."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Last day, as 2031-03-01.")] = None,
    as_json: AsJson = False,
) -> None:
    """Record terms of your own: shipped terms for a model that is not known, or a contract. Needs an admin key."""
    from pydantic import TypeAdapter, ValidationError

    from app.services.overrides import NewOverride

    given: dict[str, Any] = {"who": who, "why": why, "until": until}
    if contract is not None:
        try:
            given["contract"] = json.loads(contract.read_text())
        except ValueError as error:
            raise CommandFailed(f"{contract} is not JSON: {error}", Exit.USAGE, "usage") from None
    if licence is not None:
        given |= {"kind": "license", "license_id": licence}
    else:
        given |= {"kind": "terms", "model": model, "route": route, "replaces": replaces, "terms": terms or []}
    adapter: TypeAdapter[NewTermsOverride | NewLicenceOverride] = TypeAdapter(NewOverride)
    try:
        new = adapter.validate_python(given)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in wrong["loc"][1:])
        raise CommandFailed(f"{where}: {wrong['msg']}".removeprefix(": "), Exit.USAGE, "usage") from None
    with client() as api:
        made = api.record_override(new)
    show(made, as_json, lambda: out.print(made.id))


@app.command()
def revoke(
    override: Annotated[str, typer.Argument(help="Id of an override.")],
    why: Annotated[str, typer.Option(help="For example: the contract has ended.")],
    as_json: AsJson = False,
) -> None:
    """Make no decision with an override any more."""
    with client() as api:
        gone = api.revoke_override(override, why)
    show(gone, as_json, lambda: out.print(f"{gone.id} is revoked."))
