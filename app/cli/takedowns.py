"""`retort takedown …`."""

import secrets
import time
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.lineage import exports_told
from app.cli.outcome import AsJson, CommandFailed, Exit, client, err, out, show, table
from app.domain.lifecycle import TakedownStatus

if TYPE_CHECKING:
    from app.services.takedown import TakedownView

app = typer.Typer(no_args_is_help=True)

_EVERY = 0.5


@app.command()
def order(
    who: Annotated[str, typer.Option(help="Who asked for it.")],
    why: Annotated[str, typer.Option(help="For example the letter that asked for it.")],
    source: Annotated[str | None, typer.Option(help="Every prompt with this very source.")] = None,
    teacher: Annotated[str | None, typer.Option(help="All rows of this teacher.")] = None,
    prompt_set: Annotated[str | None, typer.Option(help="Id of a set; all of it without --prompt.")] = None,
    prompt: Annotated[
        list[int] | None, typer.Option(help="Number of a prompt; may be given several times.")
    ] = None,
    withdraw_exports: Annotated[
        bool, typer.Option("--withdraw-exports", help="Also delete the files of exports that hold such rows.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what it would find.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Stay until it is carried out.")] = True,
    as_json: AsJson = False,
) -> None:
    """Remove what was made from a source, of prompts, or by a teacher. It cannot be undone. Needs an admin key."""
    from pydantic import ValidationError

    from app.services.takedown import TakedownRequest

    try:
        asked = TakedownRequest(
            source=source,
            teacher=teacher,
            prompt_set=prompt_set,
            prompts=tuple(prompt) if prompt else None,
            who=who,
            why=why,
            withdraw_exports=withdraw_exports,
        )
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise CommandFailed(detail, Exit.USAGE, "usage") from None
    with client() as api:
        if dry_run:
            found = api.forecast_takedown(asked)
            show(found, as_json, lambda: exports_told(found.exports))
            return
        made = api.order_takedown(asked, idempotency_key=f"cli-{secrets.token_hex(12)}")
        err.print(f"Takedown {made.id} is ordered.")
        while wait and made.status != TakedownStatus.COMPLETED:
            time.sleep(_EVERY)
            made = api.takedown(made.id)
    show(made, as_json, lambda: _told(made))


@app.command("list")
def list_takedowns(as_json: AsJson = False) -> None:
    """List takedowns, newest first."""
    with client() as api:
        found = list(api.takedowns())
    columns = {
        "id": lambda one: one.id,
        "status": lambda one: one.status,
        "of": lambda one: ", ".join(str(value) for value in one.target.values() if value is not None),
        "rows": lambda one: f"{one.n_completions:,}",
        "tainted exports": lambda one: len(one.tainted_exports),
        "who": lambda one: one.who,
    }
    show(found, as_json, lambda: table(found, columns, "No takedowns."))


@app.command("show")
def show_takedown(
    takedown: Annotated[str, typer.Argument(help="Id of a takedown.")], as_json: AsJson = False
) -> None:
    """Show how far a takedown has come, and the exports that it taints."""
    with client() as api:
        found = api.takedown(takedown)
    show(found, as_json, lambda: _told(found))


def _told(found: "TakedownView") -> None:
    out.print(f"{found.id} is {found.status}" + (f": {found.error}" if found.error else ""), markup=False)
    out.print(
        f"  {found.n_prompts:,} prompts, {found.n_completions:,} completions, {found.n_segments:,} segments"
    )
    for one in found.tainted_exports:
        gone = "withdrawn" if one.withdrawn_at else "still there"
        out.print(f"  tainted: {one.id} ({one.name}), {one.n_rows:,} rows, {gone}", markup=False)
