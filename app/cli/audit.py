"""`retort audit …`."""

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.outcome import AsJson, CommandFailed, Exit, client, out, show, table

if TYPE_CHECKING:
    from app.services.audit import AuditVerification

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_events(
    about: Annotated[str | None, typer.Option(help="Only events about this id.")] = None,
    most: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List who did what, newest first. Needs an admin key."""
    with client() as api:
        found = list(islice(api.audit_events(**({} if about is None else {"subject": about})), most))
    columns = {
        "#": lambda one: one.sequence,
        "when": lambda one: f"{one.at:%Y-%m-%d %H:%M:%S}",
        "who": lambda one: one.actor_name or one.actor,
        "did": lambda one: one.action,
        "to": lambda one: one.subject,
        "detail": lambda one: json.dumps(one.detail, ensure_ascii=False) if one.detail else None,
    }
    show(found, as_json, lambda: table(found, columns, "Nothing was done yet."))


@app.command()
def head(as_json: AsJson = False) -> None:
    """Print the end of the chain, as sequence:hash. Keep it elsewhere, for `retort audit verify --anchor`."""
    with client() as api:
        found = api.audit_head()
    show(found, as_json, lambda: out.print(f"{found.sequence}:{found.hash}", soft_wrap=True))


@app.command()
def verify(
    anchor: Annotated[
        list[str] | None,
        typer.Option(help="A head that was kept, sequence:hash; may be given several times."),
    ] = None,
    manifest: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="A manifest.json: it carries the head of its day."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify the whole chain. Exit code 1 where an event was changed, added or taken away."""
    anchors = [*(anchor or []), *(_anchor_of(file) for file in manifest or [])]
    with client() as api:
        found = api.verify_audit(anchors)
    show(found, as_json, lambda: _told(found))
    if not found.intact:
        raise typer.Exit(Exit.FAILED)


def _anchor_of(file: Path) -> str:
    try:
        told = json.loads(file.read_text())["audit"]
        return f"{told['sequence']}:{told['hash']}"
    except (ValueError, KeyError, TypeError):
        raise CommandFailed(
            f"{file} is no manifest with a head of the audit log", Exit.USAGE, "usage"
        ) from None


def _told(found: "AuditVerification") -> None:
    if found.intact:
        kept = f", {found.anchors_checked} anchors found again" if found.anchors_checked else ""
        out.print(f"Intact: {found.n_events:,} events{kept}.")
        if not found.anchors_checked:
            out.print("Only an anchor that was kept elsewhere shows that the chain was not made anew.")
        return
    for one in found.problems:
        out.print(f"Event {one.sequence}: {one.detail}", markup=False)
