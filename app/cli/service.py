"""Start, stop and look at the service: the embedded profile, or the API alone."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.outcome import AsJson, CommandFailed, Exit, err, out, service_url, settings, show

if TYPE_CHECKING:
    from workers.running import State

_STOP_SECONDS = 90.0

Host = Annotated[str | None, typer.Option(help="Address to listen on. [RETORT_HOST]")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0: any that is free. [RETORT_PORT]")]


def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it is ready; `retort down` stops it.")
    ] = False,
    host: Host = None,
    port: Port = None,
) -> None:
    """Start everything on this machine: database, broker, worker, API, and a small real teacher.

    Ctrl-C drains and stops it in order; again, it leaves at once. Killed at any moment, the next start goes on.
    """
    from workers.embedded import run

    _listen_at(host, port)
    if not detach:
        raise typer.Exit(run(settings()))
    state = start_detached()
    out.print(f"Retort is ready at {state.url} (its pages: {state.url}/docs). `retort down` stops it.")


def start_detached() -> "State":
    """Start the supervisor in a session of its own and wait until it is ready; or find the one that runs.

    Raises `CommandFailed`.
    """
    from workers.running import read_state

    given = settings()
    found = read_state(given.data_dir)
    if found is not None:
        err.print(f"It runs already: process {found.pid}, {found.phase}, at {found.url}.", highlight=False)
    log = given.data_dir / "logs" / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        before = output.tell()
        process = None
        if found is None:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers.embedded"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    with err.status("Starting …"):
        while True:
            state = read_state(given.data_dir)
            if state is not None and state.phase == "ready":
                return state
            if process is not None and process.poll() is not None:
                said = log.read_bytes()[before:].decode(errors="replace").strip()
                raise CommandFailed(f"it did not start:\n{said}", Exit.FAILED, "not-started")
            if process is None and state is None:
                raise CommandFailed(
                    "it went away while it was waited for: try again", Exit.FAILED, "not-started"
                )
            time.sleep(0.1)


def down() -> None:
    """Stop what `retort up` started on this data folder.

    Calls in flight are finished and recorded first.
    """
    from workers.running import read_state

    data_dir = settings().data_dir
    state = read_state(data_dir)
    if state is None:
        out.print(f"Nothing runs on {data_dir}.")
        return
    os.kill(state.pid, signal.SIGTERM)
    end = time.monotonic() + _STOP_SECONDS
    with err.status("Draining …"):
        while (still := read_state(data_dir)) is not None and still.pid == state.pid:
            if time.monotonic() > end:
                raise CommandFailed(f"process {state.pid} does not end", Exit.FAILED, "not-stopped")
            time.sleep(0.1)
    out.print("Stopped.")


def status(as_json: AsJson = False) -> None:
    """Say what runs on this data folder, and whether the service answers.

    Exit code 3 if it does not.
    """
    from app.client import RetortClient, ServiceUnreachable
    from workers.running import read_state

    given = settings()
    state = read_state(given.data_dir)
    url = service_url(given)
    try:
        with RetortClient(url, None) as api:
            ready = api.ready()
    except ServiceUnreachable:
        ready = None

    def told() -> None:
        out.print(f"{url}: {'no answer' if ready is None else ready.status}")
        if ready is not None and ready.status != "ready":
            out.print(f"  database: {ready.database}\n  broker: {ready.broker}", markup=False)
        if state is None:
            out.print(f"No supervisor runs on {given.data_dir.absolute()}.")
            return
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.started_at))
        out.print(f"Supervisor: process {state.pid}, {state.phase}, since {since}")
        out.print(f"Broker: {state.broker}")
        out.print("Children: " + ", ".join(f"{name} {pid}" for name, pid in state.children.items()))

    show({"url": url, "ready": ready, "supervisor": state}, as_json, told)
    if ready is None or ready.status == "unready":
        raise typer.Exit(Exit.UNREACHABLE)


def serve(
    host: Host = None,
    port: Port = None,
    workers: Annotated[int, typer.Option(min=1, help="API processes.")] = 1,
    fd: Annotated[int | None, typer.Option(hidden=True, help="A listening socket to use.")] = None,
) -> None:
    """Run the API alone.

    The database must be at this version's schema (`retort db upgrade`).
    """
    import uvicorn

    _listen_at(host, port)
    given = settings()
    logging.basicConfig(
        level=given.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    config = uvicorn.Config(
        "app.main:from_environment",
        factory=True,
        host=given.host,
        port=given.port,
        workers=workers,
        log_config=None,
        access_log=given.log_level == "debug",
        timeout_graceful_shutdown=10,
    )
    if fd is not None:
        uvicorn.Server(config).run(sockets=[socket.socket(fileno=fd)])
    elif workers == 1:
        uvicorn.Server(config).run()
    else:
        uvicorn.run(
            "app.main:from_environment",
            factory=True,
            host=given.host,
            port=given.port,
            workers=workers,
            log_config=None,
            access_log=config.access_log,
            timeout_graceful_shutdown=config.timeout_graceful_shutdown,
        )


def openapi() -> None:
    """Print the OpenAPI description of the REST API."""
    from app.main import create_app

    sys.stdout.write(json.dumps(create_app(settings()).openapi(), indent=2, ensure_ascii=False) + "\n")


def version() -> None:
    """Print the version."""
    from app.domain.version import code_version

    out.print(code_version())


def _listen_at(host: str | None, port: int | None) -> None:
    if host is not None:
        os.environ["RETORT_HOST"] = host
    if port is not None:
        os.environ["RETORT_PORT"] = str(port)


commands = (up, down, status, serve, openapi, version)
