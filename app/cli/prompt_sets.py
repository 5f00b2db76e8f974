"""`retort prompt-sets …`."""

from typing import Annotated

import typer

from app.cli.outcome import AsJson, client, out, show, table

app = typer.Typer(no_args_is_help=True)

SetId = Annotated[str, typer.Argument(help="Id of a prompt set.")]


@app.command("list")
def list_sets(
    most: Annotated[int, typer.Option(min=1, help="How many at the most.")] = 20, as_json: AsJson = False
) -> None:
    """List prompt sets, newest first."""
    with client() as api:
        found = [one for one, _ in zip(api.prompt_sets(), range(most), strict=False)]
    columns = {
        "id": lambda one: one["id"],
        "name": lambda one: one["name"],
        "prompts": lambda one: one["n_prompts"],
        "rejected": lambda one: one["n_errors"],
        "sealed": lambda one: "yes" if one["sealed"] else "open",
        "created": lambda one: one["created_at"][:19],
    }
    show(found, as_json, lambda: table(found, columns, "No prompt sets yet: `retort submit FILE`."))


@app.command("show")
def show_set(prompt_set: SetId, as_json: AsJson = False) -> None:
    """Read a prompt set."""
    with client() as api:
        found = api.prompt_set(prompt_set)

    def told() -> None:
        for name, value in found.items():
            out.print(f"{name}: {value}", markup=False)

    show(found, as_json, told)


@app.command()
def errors(prompt_set: SetId, as_json: AsJson = False) -> None:
    """List the rows that did not parse, with line and reason."""
    with client() as api:
        found = list(api.prompt_errors(prompt_set))
    columns = {
        "line": lambda row: row["line"],
        "reason": lambda row: row["reason"],
        "beginning": lambda row: row["excerpt"][:80],
    }
    show(found, as_json, lambda: table(found, columns, "Every row was taken."))
