"""`retort teachers …`."""

from typing import Annotated, Any

import typer

from app.cli.outcome import AsJson, Exit, client, out, show, table

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_teachers(as_json: AsJson = False) -> None:
    """List the registered teachers."""
    with client() as api:
        found = list(api.teachers())
    columns = {
        "name": lambda one: one["name"],
        "driver": lambda one: one["driver"],
        "model": lambda one: one["model"],
        "licence": lambda one: one["license"],
        "address": lambda one: one["base_url"],
        "top logprobs": lambda one: (one["capabilities"] or {}).get("max_top_logprobs"),
        "probed": lambda one: (one["probed_at"] or "never")[:19],
    }
    show(found, as_json, lambda: table(found, columns, "No teachers yet: `retort teachers add --help`."))


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="How jobs name it.")],
    driver: Annotated[str, typer.Option(help="How it is spoken to: `retort teachers drivers` lists them.")],
    model: Annotated[str, typer.Option(help="As the teacher's API names it.")],
    base_url: Annotated[
        str | None, typer.Option(help="Its address, for example http://127.0.0.1:8000/v1.")
    ] = None,
    secret: Annotated[
        str | None, typer.Option(help="A reference: env:NAME or file:/path. Never the secret itself.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of the weights, where it is known.")] = None,
    access_route: Annotated[
        str, typer.Option(help="weights, or whose API: with the model it selects the terms.")
    ] = "weights",
    license: Annotated[str | None, typer.Option(help="SPDX expression of the model.")] = None,
    max_in_flight: Annotated[
        int | None, typer.Option(min=1, help="Cap of calls in flight, over all workers.")
    ] = None,
    probe: Annotated[bool, typer.Option(help="Ask it at once what it can do.")] = True,
    as_json: AsJson = False,
) -> None:
    """Register a teacher."""
    given: dict[str, Any] = {
        "name": name,
        "driver": driver,
        "model": model,
        "base_url": base_url,
        "secret_ref": secret,
        "revision": revision,
        "access_route": access_route,
        "license": license,
        "max_in_flight": max_in_flight,
    }
    with client() as api:
        made = api.register_teacher({key: value for key, value in given.items() if value is not None})
        if probe:
            made = api.probe_teacher(name)
    show(made, as_json, lambda: _told(made))
    _exit_by(made)


@app.command()
def probe(name: Annotated[str, typer.Argument(help="Name of a teacher.")], as_json: AsJson = False) -> None:
    """Ask a teacher now what it can do."""
    with client() as api:
        found = api.probe_teacher(name)
    show(found, as_json, lambda: _told(found))
    _exit_by(found)


@app.command()
def drivers() -> None:
    """List the drivers that teachers can be spoken to with."""
    from app.teachers import known_drivers

    for name in known_drivers():
        out.print(name)


def _told(teacher: dict[str, Any]) -> None:
    out.print(f"[bold]{teacher['name']}[/]: {teacher['model']} through {teacher['driver']}")
    found = teacher["capabilities"]
    if found is None:
        out.print("  never probed: `retort teachers probe` asks it what it can do")
        return
    for name, value in found.items():
        if name != "problems" and value not in (None, False, 0):
            out.print(f"  {name}: {value}", markup=False)
    for problem in found["problems"]:
        out.print(f"  [yellow]{problem}[/]")


def _exit_by(teacher: dict[str, Any]) -> None:
    found = teacher["capabilities"]
    if found is not None and not found["reachable"]:
        raise typer.Exit(Exit.FAILED)
