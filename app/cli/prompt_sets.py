"""`retort prompt-sets …`."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.outcome import AsJson, client, counted, out, show, table

if TYPE_CHECKING:
    from app.services.prompt_sets import PromptSetView

app = typer.Typer(no_args_is_help=True)

SetId = Annotated[str, typer.Argument(help="Id of a prompt set.")]


@app.command("list")
def list_sets(
    most: Annotated[int, typer.Option(min=1, help="How many at the most.")] = 20, as_json: AsJson = False
) -> None:
    """List prompt sets, newest first."""
    with client() as api:
        found = list(islice(api.prompt_sets(), most))
    columns = {
        "id": lambda one: one.id,
        "name": lambda one: one.name,
        "prompts": lambda one: f"{one.n_prompts:,}",
        "rejected": lambda one: f"{one.n_errors:,}",
        "sealed": lambda one: "yes" if one.sealed else "open",
        "created": lambda one: f"{one.created_at:%Y-%m-%d %H:%M:%S}",
    }
    show(found, as_json, lambda: table(found, columns, "No prompt sets yet: `retort submit FILE` makes one."))


@app.command("show")
def show_set(prompt_set: SetId, as_json: AsJson = False) -> None:
    """Read a prompt set."""
    with client() as api:
        found = api.prompt_set(prompt_set)
    show(found, as_json, lambda: _told(found))


@app.command()
def errors(prompt_set: SetId, as_json: AsJson = False) -> None:
    """List the rows that did not parse, with line and reason."""
    with client() as api:
        found = list(api.prompt_errors(prompt_set))
    columns = {
        "line": lambda row: row.line,
        "reason": lambda row: row.reason,
        "beginning": lambda row: row.excerpt[:80],
    }
    show(found, as_json, lambda: table(found, columns, "Every row was taken."))


def _told(found: "PromptSetView") -> None:
    out.print(f"{found.id} {found.name}: {'sealed' if found.sealed else 'open'}", markup=False)
    out.print(f"  {counted(found.n_prompts, 'prompt')}, {counted(found.n_errors, 'row')} rejected")
    if found.n_license_assumed:
        out.print(f"  {counted(found.n_license_assumed, 'prompt')} named no licence")
    out.print(f"  content hash {found.content_hash}", soft_wrap=True)
