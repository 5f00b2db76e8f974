"""The embedded profile: everything on this machine, under one supervisor. `python -m workers.embedded`, `retort up`.

The supervisor migrates the database, makes the first project and key, starts broker, worker and API, starts again
what dies, and stops all of it in order. The children die with it, however it ends.
"""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from sqlalchemy import select

from app.client import RetortClient, ServiceUnreachable
from app.db.migrate import upgrade
from app.db.models import Teacher
from app.db.session import connect, db_now, transaction
from app.domain.fingerprints import new_id
from app.services.bootstrap import ensure_first_project
from app.settings import Settings
from app.teachers import embedded_model
from workers.broker import start_broker
from workers.children import Child

TEACHER = "embedded"
_READY_SECONDS = 60


class AlreadyRunning(Exception):
    """Another supervisor holds the data folder; `state` says which."""

    def __init__(self, state: "State | None") -> None:
        who = "another process" if state is None else f"process {state.pid} ({state.url})"
        super().__init__(f"{who} already serves this data folder")
        self.state = state


class StartFailed(Exception):
    """A child did not come up; the text ends with its last words."""


@dataclass(frozen=True, slots=True)
class State:
    """What a running supervisor tells others, in `<data_dir>/up.json`."""

    pid: int
    url: str
    broker: str
    started_at: float


def read_state(data_dir: Path) -> State | None:
    """The state of the supervisor that runs on this data folder; None where none does."""
    file = data_dir / "up.json"
    try:
        state = State(**json.loads(file.read_text()))
        with (data_dir / "up.lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None  # nobody holds the lock: the file was left by a kill -9
    except BlockingIOError:
        return state
    except (OSError, ValueError, TypeError):
        return None


def _locked(data_dir: Path) -> IO[str]:
    data_dir.mkdir(parents=True, exist_ok=True)
    lock = (data_dir / "up.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise AlreadyRunning(read_state(data_dir)) from error
    return lock


def supervise(
    settings: Settings, say: Callable[[str], None], stopped: threading.Event, ready: Callable[[State], None]
) -> None:
    """Run the embedded profile until `stopped` is set. `ready` is called once the service answers.

    Raises `AlreadyRunning`, `StartFailed`.
    """
    data_dir = settings.data_dir.absolute()
    with _locked(data_dir):
        upgrade(settings.database)
        _prepare(settings)
        logs = data_dir / "logs"
        broker = start_broker(data_dir, logs)
        broker_url = broker.url if settings.broker_url is None else settings.broker_url.get_secret_value()
        environment = {
            **os.environ,
            "RETORT_PROFILE": "embedded",
            "RETORT_DATA_DIR": str(data_dir),
            "RETORT_DATABASE_URL": settings.database,
            "RETORT_BROKER_URL": broker_url,
            "RETORT_HOST": settings.host,
            "RETORT_PORT": str(settings.port),
        }
        api = [sys.executable, "-m", "uvicorn", "--factory", "app.main:from_environment", "--no-access-log"]
        api += ["--host", settings.host, "--port", str(settings.port), "--timeout-graceful-shutdown", "5"]
        worker = [sys.executable, "-m", "celery", "-A", "workers.celery", "worker", "--pool", "threads"]
        worker += [
            "--concurrency",
            "2",
            "--without-gossip",
            "--without-mingle",
            "--loglevel",
            settings.log_level,
        ]
        children = [
            Child("worker", worker, logs / "worker.log", environment),
            Child("api", api, logs / "api.log", environment),
        ]
        try:
            for child in children:
                child.start()
            state = State(os.getpid(), settings.service_url, broker.title, time.time())
            _write_state(data_dir, state)
            _await_ready(settings, children, stopped)
            if not stopped.is_set():
                ready(state)
            supervised = [*children, *([broker.child] if broker.child is not None else [])]
            while not stopped.wait(0.5):
                for child in supervised:
                    if news := child.revive():
                        say(news)
        finally:
            for child in reversed(children):
                child.stop(settings.engine.grace_seconds + 15)
            if broker.child is not None:
                broker.child.stop(5)
            (data_dir / "up.json").unlink(missing_ok=True)


def _prepare(settings: Settings) -> None:
    """The first project and key, and the embedded teacher where its model is on this machine."""
    database = connect(settings.database)
    try:
        first = ensure_first_project(database, settings.key_file, settings.default_license)
        if not embedded_model.is_present():
            return
        with transaction(database) as connection:
            known = connection.execute(
                select(Teacher.id).where(Teacher.project_id == first.project_id, Teacher.name == TEACHER)
            ).one_or_none()
            if known is None:
                connection.execute(
                    Teacher.__table__.insert().values(  # type: ignore[attr-defined]
                        id=new_id("tch"),
                        project_id=first.project_id,
                        name=TEACHER,
                        driver="embedded",
                        model=embedded_model.MODEL,
                        revision=embedded_model.REVISION,
                        access_route="weights",
                        license=embedded_model.LICENSE,
                        options={},
                        created_at=db_now(),
                    )
                )
    finally:
        database.dispose()


def _write_state(data_dir: Path, state: State) -> None:
    temporary = data_dir / "up.json.new"
    temporary.write_text(json.dumps(asdict(state)))
    temporary.replace(data_dir / "up.json")


def _await_ready(settings: Settings, children: list[Child], stopped: threading.Event) -> None:
    end = time.monotonic() + _READY_SECONDS
    with RetortClient(settings.service_url, None) as client:
        while not stopped.wait(0.1):
            for child in children:
                if not child.running:
                    raise StartFailed(f"the {child.name} did not start:\n{child.last_words()}")
            try:
                if client.ready()["status"] != "unready":
                    return
            except ServiceUnreachable:
                pass
            if time.monotonic() > end:
                raise StartFailed(
                    f"the API did not answer in {_READY_SECONDS} s:\n{children[1].last_words()}"
                )


def main() -> int:
    settings = Settings()
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - a program's own output

    def ready(state: State) -> None:
        say(f"Retort answers at {state.url} (API pages: {state.url}/docs), broker: {state.broker}.")
        say(
            f"The admin key is in {settings.key_file}. Logs: {settings.data_dir / 'logs'}. Ctrl-C stops everything."
        )

    try:
        supervise(settings, say, stopped, ready)
    except AlreadyRunning as error:
        say(f"{error}.")
        return 0 if error.state is not None else 1
    except StartFailed as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
