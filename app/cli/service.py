"""Start and stop: the embedded profile, or API and worker alone."""

import os
import signal
import subprocess
import sys
import time
from typing import Annotated

import typer

from app.cli.outcome import AsJson, Exit, err, fail, out, settings, show
from app.client import RetortClient, ServiceUnreachable


def up(
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once it answers; `retort down` stops it.")
    ] = False,
) -> None:
    """Start everything on this machine: database, broker, worker, API. Ctrl-C stops it in order."""
    command = [sys.executable, "-m", "workers.embedded"]
    if not detach:
        os.execv(command[0], command)
    given = settings()
    log = given.data_dir / "logs" / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    with RetortClient(given.service_url, None) as api:
        while True:
            try:
                if api.ready()["status"] != "unready":
                    break
            except ServiceUnreachable:
                pass
            if process.poll() not in (None, 0):
                last = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
                fail(f"it did not start:\n{last}", Exit.FAILED)
            time.sleep(0.1)
    out.print(f"Retort answers at {given.service_url} (API pages: {given.service_url}/docs). Log: {log}")


def down() -> None:
    """Stop what `retort up` started on this data folder. Calls in flight are finished and kept."""
    from workers.embedded import read_state

    state = read_state(settings().data_dir)
    if state is None:
        out.print("Nothing runs on this data folder.")
        return
    os.kill(state.pid, signal.SIGTERM)
    with err.status("Draining …"):
        while read_state(settings().data_dir) is not None:
            time.sleep(0.1)
    out.print("Stopped.")


def status(as_json: AsJson = False) -> None:
    """Say what runs on this data folder, and whether the service answers."""
    from workers.embedded import read_state

    given = settings()
    state = read_state(given.data_dir)
    try:
        with RetortClient(given.service_url, None) as api:
            ready = api.ready()
    except ServiceUnreachable:
        ready = None
    found = {
        "url": given.service_url,
        "ready": ready,
        "supervisor": None if state is None else state.pid,
        "broker": None if state is None else state.broker,
    }

    def told() -> None:
        out.print(f"{given.service_url}: {'no answer' if ready is None else ready['status']}")
        if state is not None:
            out.print(f"supervised by process {state.pid}, broker: {state.broker}")

    show(found, as_json, told)
    if ready is None:
        raise typer.Exit(Exit.UNREACHABLE)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: RETORT_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. Default: RETORT_PORT.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="API processes.")] = 1,
) -> None:
    """Run the API alone. The database must be migrated (`retort db upgrade`)."""
    given = settings()
    os.execv(
        sys.executable,
        [
            *(sys.executable, "-m", "uvicorn", "--factory", "app.main:from_environment", "--no-access-log"),
            *("--host", host or given.host, "--port", str(port or given.port), "--workers", str(workers)),
        ],
    )


def worker(
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="Serve this teacher only; may be given several times. Default: all."),
    ] = None,
) -> None:
    """Run one worker process. Start as many as you like, on as many machines as you like."""
    if teacher:
        os.environ["RETORT_WORKER_TEACHERS"] = '["' + '","'.join(teacher) + '"]'
    os.execv(
        sys.executable,
        [
            *(sys.executable, "-m", "celery", "-A", "workers.celery", "worker", "--pool", "threads"),
            *(
                "--concurrency",
                "2",
                "--without-gossip",
                "--without-mingle",
                "--loglevel",
                settings().log_level,
            ),
        ],
    )


def openapi() -> None:
    """Print the OpenAPI description of the REST API."""
    import json

    from app.main import create_app

    print(json.dumps(create_app(settings()).openapi(), indent=2))  # noqa: T201 - this is the output


def version() -> None:
    """Print the version."""
    from app.domain.version import code_version

    out.print(code_version())


commands = (up, down, status, serve, worker, openapi, version)
