"""`retort project …`: the project that the key opens."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.outcome import AsJson, client, out, show

if TYPE_CHECKING:
    from app.services.projects import ProjectView

app = typer.Typer(no_args_is_help=True)


@app.command("show")
def show_project(as_json: AsJson = False) -> None:
    """Read the project that your key opens."""
    with client() as api:
        found = api.project()
    show(found, as_json, lambda: _told(found))


@app.command()
def default_license(
    expression: Annotated[
        str, typer.Argument(help="SPDX expression, for example CC0-1.0; `none` takes the default away.")
    ],
    as_json: AsJson = False,
) -> None:
    """Say which licence prompts have that name none.

    It holds for prompts that are sent from now on.
    """
    with client() as api:
        changed = api.change_project(default_license=None if expression.lower() == "none" else expression)
    show(changed, as_json, lambda: _told(changed))


def _told(project: "ProjectView") -> None:
    out.print(f"{project.id} {project.name}", markup=False)
    default = project.default_license or "none: prompts that name no licence are NOASSERTION"
    out.print(f"  default licence: {default}", markup=False)
