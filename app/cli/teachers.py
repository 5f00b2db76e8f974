"""`retort teachers …`."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.outcome import AsJson, CommandFailed, Exit, client, out, show, table
from app.cli.pairs import pair

if TYPE_CHECKING:
    from app.services.teachers import TeacherView

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_teachers(as_json: AsJson = False) -> None:
    """List the registered teachers."""
    with client() as api:
        found = list(api.teachers())
    columns = {
        "name": lambda one: one.name,
        "driver": lambda one: one.driver,
        "model": lambda one: one.model,
        "licence": lambda one: one.license,
        "address": lambda one: one.base_url,
        "top logprobs": lambda one: (one.capabilities or {}).get("max_top_logprobs"),
        "probed": lambda one: "never" if one.probed_at is None else f"{one.probed_at:%Y-%m-%d %H:%M:%S}",
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
        str | None, typer.Option(help="A reference, env:NAME or file:/path; never the secret itself.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of the weights, where it is known.")] = None,
    access_route: Annotated[
        str, typer.Option(help="`weights`, or whose API: with the model it selects the terms.")
    ] = "weights",
    license: Annotated[str | None, typer.Option(help="SPDX expression of the model's licence.")] = None,
    trained_on: Annotated[
        list[str] | None,
        typer.Option(help="Id of an export that it was trained on; its terms bind its rows. Repeat it."),
    ] = None,
    max_in_flight: Annotated[
        int | None, typer.Option(min=1, help="Cap of calls in flight, over all workers.")
    ] = None,
    replica: Annotated[
        list[str] | None, typer.Option(help="A further address of the same model; several times.")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="The provider's limit, kept over all workers.")
    ] = None,
    input_tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="The provider's limit of prompt tokens.")
    ] = None,
    output_tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="The provider's limit of generated tokens.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of the driver, NAME=VALUE, for example provider=vllm; several times."),
    ] = None,
    probe: Annotated[bool, typer.Option(help="Ask it at once what it can do.")] = True,
    as_json: AsJson = False,
) -> None:
    """Register a teacher, and ask it what it can do. Exit code 1 if it does not answer."""
    from pydantic import ValidationError

    from app.services.teachers import NewTeacher

    given = {
        "name": name,
        "driver": driver,
        "model": model,
        "base_url": base_url,
        "secret_ref": secret,
        "revision": revision,
        "access_route": access_route,
        "license": license,
        "trained_on": trained_on,
        "max_in_flight": max_in_flight,
        "replicas": replica or None,
        "max_requests_per_minute": requests_per_minute,
        "max_input_tokens_per_minute": input_tokens_per_minute,
        "max_output_tokens_per_minute": output_tokens_per_minute,
        "options": dict(pair(text) for text in option or ()),
    }
    try:
        new = NewTeacher.model_validate({key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        wrong = "; ".join(
            f"{problem['loc'][0]}: {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_url=False)
        )
        raise CommandFailed(wrong, Exit.USAGE, "usage") from None
    with client() as api:
        made = api.register_teacher(new)
        if probe:
            made = api.probe_teacher(name)
    show(made, as_json, lambda: _told(made))
    _exit_by(made)


@app.command()
def probe(name: Annotated[str, typer.Argument(help="Name of a teacher.")], as_json: AsJson = False) -> None:
    """Ask a teacher now what it can do. Exit code 1 if it does not answer."""
    with client() as api:
        found = api.probe_teacher(name)
    show(found, as_json, lambda: _told(found))
    _exit_by(found)


@app.command()
def load(name: Annotated[str, typer.Argument(help="Name of a teacher.")], as_json: AsJson = False) -> None:
    """Read how a teacher's servers are, and what is in flight there."""
    with client() as api:
        found = api.teacher_load(name)
    columns = {
        "address": lambda one: one.url,
        "state": lambda one: one.state,
        "in flight": lambda one: f"{one.in_flight:,} of {one.room:,.0f}",
        "runs there": lambda one: one.running,
        "waits there": lambda one: one.waiting,
        "why": lambda one: one.reason,
    }
    show(found, as_json, lambda: table(found.servers, columns, "No worker calls it just now."))


@app.command()
def drivers(as_json: AsJson = False) -> None:
    """List the drivers that teachers can be spoken to with."""
    from app.teachers import known_drivers

    show(known_drivers(), as_json, lambda: out.print("\n".join(known_drivers())))


def _told(teacher: "TeacherView") -> None:
    out.print(f"[bold]{teacher.name}[/]: {teacher.model} through driver {teacher.driver}")
    found = teacher.capabilities
    if found is None:
        out.print(f"  never probed: `retort teachers probe {teacher.name}` asks it what it can do")
        return
    for name, value in found.items():
        if name != "problems" and value not in (None, False, 0):
            told = f"  {name.replace('_', ' ')}: {'yes' if value is True else value}"
            out.print(told, markup=False, soft_wrap=True)
    for problem in _problems(teacher):
        out.print(f"  {problem}", markup=False, style="yellow", soft_wrap=True)


def _problems(teacher: "TeacherView") -> list[str]:
    found = (teacher.capabilities or {}).get("problems")
    return [str(problem) for problem in found] if isinstance(found, list) else []


def _exit_by(teacher: "TeacherView") -> None:
    if teacher.capabilities is not None and not teacher.capabilities["reachable"]:
        raise typer.Exit(Exit.FAILED)
