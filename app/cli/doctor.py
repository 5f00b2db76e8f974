"""`retort doctor`: what is missing or misconfigured, and how to mend it."""

import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.cli.outcome import AsJson, CommandFailed, Exit, key_of, out, service_url, settings, show

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from app.client import RetortClient
    from app.services.teachers import TeacherView
    from app.settings import Settings

_FREE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `note`: not there, and nothing is wrong with that. `advice` says how to mend what is not fine."""

    check: str
    state: Literal["fine", "note", "wrong"]
    found: str
    advice: str = ""


Check = Callable[["Settings"], Iterator[Finding]]


def doctor(
    probe: Annotated[bool, typer.Option("--probe", help="Ask every teacher now, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check this installation: what is missing or misconfigured, and how to mend it.

    Exit code 1 if anything is.
    """
    given = settings()
    findings = [found for check in CHECKS for found in check(given)] + list(service(given, probe))
    show(findings, as_json, lambda: _told(findings))
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(Exit.FAILED)


def _told(findings: list[Finding]) -> None:
    marks = {"fine": "[green]✓[/]", "note": "[yellow]•[/]", "wrong": "[red]✗[/]"}
    for finding in findings:
        out.print(f"{marks[finding.state]} [bold]{finding.check}[/]: ", end="")
        out.print(finding.found, markup=False, soft_wrap=True)
        if finding.advice:
            out.print(f"    → {finding.advice}", markup=False, soft_wrap=True)
    wrong = sum(finding.state == "wrong" for finding in findings)
    out.print("\nNothing is wrong." if not wrong else f"\n{wrong} to mend.")


def python(given: "Settings") -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", "fine", f"{version}, {sys.executable}")


def data_folder(given: "Settings") -> Iterator[Finding]:
    folder = given.data_dir.absolute()
    if not folder.exists():
        yield Finding("data folder", "note", f"{folder} is not there yet", "`retort up` makes it")
        return
    if not folder.is_dir():
        yield Finding("data folder", "wrong", f"{folder} is a file", "choose another RETORT_DATA_DIR")
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(
            "data folder", "wrong", f"{folder} cannot be written", "give this user the right to write there"
        )
        return
    free = shutil.disk_usage(folder).free
    told = f"{folder}, {free / (1 << 30):,.1f} GiB free"
    if free < _FREE_BYTES:
        yield Finding("data folder", "wrong", told, "free some space, or choose another RETORT_DATA_DIR")
    else:
        yield Finding("data folder", "fine", told)


def key(given: "Settings") -> Iterator[Finding]:
    if given.api_key is not None:
        yield Finding("key", "fine", "from RETORT_API_KEY")
        return
    try:
        mode = stat.S_IMODE(given.key_file.stat().st_mode)
    except OSError:
        yield Finding(
            "key", "note", f"{given.key_file} is not there", "`retort up` makes it; or set RETORT_API_KEY"
        )
        return
    if mode & 0o077:
        yield Finding("key", "wrong", f"others can read {given.key_file}", f"chmod 600 {given.key_file}")
    else:
        yield Finding("key", "fine", str(given.key_file))


def database(given: "Settings") -> Iterator[Finding]:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    from app.db.health import schema_problem
    from app.db.session import connect

    url = make_url(given.database)
    told = url.render_as_string(hide_password=True)
    if given.database_url is None and not (given.data_dir / "retort.db").exists():
        yield Finding("database", "note", "not made yet", "`retort up` or `retort db upgrade` makes it")
        return
    engine = connect(given.database)
    try:
        wrong = schema_problem(engine)
        if wrong is not None:
            yield Finding("database", "wrong", f"{told} {wrong}", "retort db upgrade")
            return
        yield Finding("database", "fine", f"{told}, at this version's schema")
        yield _workers(engine)
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        yield Finding("database", "wrong", f"{told}: {reason}", "start it, or mend RETORT_DATABASE_URL")
    finally:
        engine.dispose()


def _workers(engine: "Engine") -> Finding:
    from sqlalchemy import select

    from app.db.models import Worker
    from app.db.session import db_now, reading

    with reading(engine) as connection:
        alive = connection.execute(select(Worker.host, Worker.pid).where(Worker.lease_until > db_now())).all()
    if alive:
        names = ", ".join(f"{row.host} process {row.pid}" for row in alive)
        return Finding("workers", "fine", f"{len(alive)} by heartbeat: {names}")
    return Finding(
        "workers", "note", "none is alive", "`retort up`, or `retort worker` beside `retort serve`"
    )


def broker(given: "Settings") -> Iterator[Finding]:
    from workers.broker import server_programs

    if given.broker_url is None:
        titles = [title for title, _ in server_programs()]
        if titles:
            yield Finding("broker", "fine", f"the embedded profile starts {titles[0]}")
        else:
            yield Finding(
                "broker",
                "note",
                "no Valkey or Redis is here: the embedded profile uses files",
                "as correct, a little slower to wake up; valkey-server or redis-server on the PATH is found",
            )
        return
    from app.broker import celery_app, problem_of

    celery = celery_app(given.broker_url.get_secret_value(), given.data_dir)
    told = celery.connection_for_write().as_uri()
    wrong = problem_of(celery)()
    if wrong is None:
        yield Finding("broker", "fine", told)
    else:
        yield Finding("broker", "wrong", f"{told} {wrong}", "start it, or mend RETORT_BROKER_URL")


def model(given: "Settings") -> Iterator[Finding]:
    from app.teachers import embedded_model

    if embedded_model.is_present():
        yield Finding("embedded teacher", "fine", str(embedded_model.model_path()))
    else:
        fetch = f"{sys.executable} -m app.teachers.embedded_model fetch, then start `retort up` again"
        yield Finding("embedded teacher", "note", "its model file is not here", fetch)


def service(given: "Settings", probe: bool) -> Iterator[Finding]:
    from app.client import RetortClient, ServiceUnreachable

    url = service_url(given)
    try:
        with RetortClient(url, key_of(given), patience=1) as api:
            ready = api.ready()
            if ready.status == "ready":
                yield Finding("service", "fine", f"{url} is ready")
            else:
                told = f"{url} is {ready.status}; database: {ready.database}; broker: {ready.broker}"
                yield Finding("service", "wrong" if ready.status == "unready" else "note", told)
            yield from _teachers(api, probe)
    except CommandFailed as error:
        yield Finding("key", "wrong", error.detail)
    except ServiceUnreachable:
        if given.url is None and _taken(given.host, given.port):
            found = f"something that is not Retort listens on port {given.port}"
            yield Finding("port", "wrong", found, "choose another one: RETORT_PORT, or `retort up --port`")
        else:
            yield Finding("service", "note", f"nothing answers at {url}", "`retort up` starts it")


def _taken(host: str, port: int) -> bool:
    if port == 0:
        return False
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1" if host == "0.0.0.0" else host, port)) == 0


def _teachers(api: "RetortClient", probe: bool) -> Iterator[Finding]:
    from app.client import ServiceRefused

    try:
        for teacher in list(api.teachers()):
            yield _teacher(api.probe_teacher(teacher.name) if probe else teacher)
    except ServiceRefused as error:
        advice = "set RETORT_API_KEY or RETORT_DATA_DIR" if error.problem.status == 401 else ""
        yield Finding("key", "wrong", f"the service refuses it: {error}", advice)


def _teacher(teacher: "TeacherView") -> Finding:
    label, again = f"teacher {teacher.name}", f"retort teachers probe {teacher.name}"
    found = teacher.capabilities
    if found is None:
        return Finding(label, "note", f"{teacher.model}, never probed", again)
    if not found["reachable"]:
        problems = found.get("problems")
        told = "; ".join(map(str, problems)) if isinstance(problems, list) else "does not answer"
        return Finding(label, "wrong", told, f"mend that, then: {again}")
    return Finding(
        label, "fine", f"{teacher.model}, {found['engine']}, up to {found['max_top_logprobs']} top logprobs"
    )


CHECKS: tuple[Check, ...] = (python, data_folder, key, database, broker, model)

commands = (doctor,)
