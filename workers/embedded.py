"""The embedded profile: everything on this machine, under one supervisor. `retort up`, or `python -m workers.embedded`.

The supervisor migrates the database, makes the first project and key, starts broker, worker and API, starts again
what dies, and stops all of it in order. The children die with it, however it ends.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import DBAPIError

from app.client import RetortClient, ServiceUnreachable
from app.db import workers
from app.db.migrate import upgrade
from app.db.models import Worker
from app.db.session import connect, db_now, reading, session, transaction
from app.errors import NotFound, RetortError
from app.services import teachers
from app.services.bootstrap import ensure_first_project
from app.services.teachers import NewTeacher
from app.settings import Settings
from app.teachers import TeacherAccess, build, embedded_model
from workers.broker import Broker, start_broker
from workers.children import Child
from workers.running import AlreadyRunning, State, StillLeaving, forget_state, held, last_state, write_state

TEACHER = "embedded"
WORKER_COMMAND = (
    *(sys.executable, "-m", "celery", "-A", "workers.celery", "worker"),
    *(
        "--pool",
        "threads",
        "--concurrency",
        "2",
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
    ),
)
_READY_SECONDS = 90.0
_LOOK_SECONDS = 0.2


class StartFailed(Exception):
    """A part did not come up; the text says which, and ends with its last words."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a person (or a signal) wants: `stop` drains, `at_once` does not wait for that."""

    stop: threading.Event = field(default_factory=threading.Event)
    at_once: threading.Event = field(default_factory=threading.Event)

    def ask_to_stop(self) -> None:
        """Once: drain. Again: leave at once."""
        (self.at_once if self.stop.is_set() else self.stop).set()


class Supervisor:
    """One run of the embedded profile. `say` takes sentences for a person, `ready` is called once all answers."""

    def __init__(
        self, settings: Settings, orders: Orders, say: Callable[[str], None], ready: Callable[[State], None]
    ) -> None:
        self._settings = settings
        self._data_dir = settings.data_dir.absolute()
        self._orders = orders
        self._say = say
        self._ready = ready
        self._children: list[Child] = []  # in the order of their start

    def run(self) -> None:
        """Until `orders.stop`. Raises `AlreadyRunning`, `StillLeaving`, `StartFailed`."""
        with held(self._data_dir, self._say) as inherited, _listening(self._settings) as listener:
            before = last_state(self._data_dir)
            state = State(os.getpid(), "starting", _url(listener), "not started yet", time.time(), {})
            write_state(self._data_dir, state)
            upgrade(self._settings.database)
            database = connect(self._settings.database)
            try:
                self._prepare(database, before)
                state = self._start(state, listener, inherited)
                self._await_ready(database, state.url)
                if not self._orders.stop.is_set():
                    state = replace(state, phase="ready")
                    write_state(self._data_dir, state)
                    self._ready(state)
                self._watch(database, state)
            finally:
                write_state(self._data_dir, replace(state, phase="stopping", children=self._pids()))
                self._stop()
                database.dispose()
                forget_state(self._data_dir)

    def _prepare(self, database: Engine, before: State | None) -> None:
        """Frees what workers of a killed run held; makes the first project and key; registers the embedded teacher."""
        for pid in [] if before is None else before.children.values():
            self._bury(database, pid)
        first = ensure_first_project(database, self._settings.key_file, self._settings.default_license)
        if embedded_model.is_present():
            _register_embedded(database, first.project_id)

    def _bury(self, database: Engine, pid: int) -> None:
        with transaction(database) as connection:
            workers.bury(connection, socket.gethostname(), pid)

    def _start(self, state: State, listener: socket.socket, inherited: int) -> State:
        settings, logs = self._settings, self._data_dir / "logs"
        broker = self._broker(logs, inherited)
        environment = {
            **os.environ,
            "RETORT_PROFILE": "embedded",
            "RETORT_DATA_DIR": str(self._data_dir),
            "RETORT_DATABASE_URL": settings.database,
            "RETORT_BROKER_URL": broker.url,
        }
        worker = [*WORKER_COMMAND, "--loglevel", settings.log_level]
        api = [sys.executable, "-m", "app.cli", "serve", "--fd", str(listener.fileno())]
        for child in (
            Child("worker", worker, logs / "worker.log", environment, [inherited]),
            Child("API", api, logs / "api.log", environment, [inherited, listener.fileno()]),
        ):
            self._children.append(child)
            child.start()
        state = replace(state, broker=broker.title, children=self._pids())
        write_state(self._data_dir, state)
        return state

    def _broker(self, logs: Path, inherited: int) -> Broker:
        if self._settings.broker_url is not None:
            return Broker("the one of RETORT_BROKER_URL", self._settings.broker_url.get_secret_value(), None)
        broker = start_broker(self._data_dir, logs, [inherited])
        if broker.child is not None:
            self._children.append(broker.child)
        return broker

    def _await_ready(self, database: Engine, url: str) -> None:
        """Until the API answers and the worker's heart beats."""
        worker, api = self._children[-2:]
        end = time.monotonic() + _READY_SECONDS
        answers = False
        with RetortClient(url, None) as client:
            while not self._orders.stop.wait(0.1):
                for child in (worker, api):
                    if not child.running:
                        raise StartFailed(f"the {child.name} did not start:\n{child.last_words()}")
                answers = answers or _answers(client)
                if answers and _beats(database, worker.pid):
                    return
                if time.monotonic() > end:
                    late = worker if answers else api
                    raise StartFailed(
                        f"the {late.name} gave no sign of life in {_READY_SECONDS:.0f} s:\n{late.last_words()}"
                    )

    def _watch(self, database: Engine, state: State) -> None:
        while not self._orders.stop.wait(_LOOK_SECONDS):
            for child in self._children:
                before = child.pid
                if news := child.revive(lambda pid: self._bury(database, pid)):
                    self._say(news)
                if child.pid != before:
                    write_state(self._data_dir, replace(state, children=self._pids()))

    def _stop(self) -> None:
        """API and worker leave side by side; the broker, which both talk to, goes last."""
        for child in self._children:
            if child.name != "broker":
                child.ask_to_stop()
        for child in reversed(self._children):
            child.stop(self._settings.engine.grace_seconds + 15, self._orders.at_once.is_set)

    def _pids(self) -> dict[str, int]:
        return {child.name: child.pid for child in self._children if child.pid is not None}


def _listening(settings: Settings) -> socket.socket:
    """The API's listening socket. It outlives the API process: callers wait while that is started again."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise StartFailed(
            f"port {settings.port} of {settings.host} cannot be had ({error.strerror}): another program listens there, "
            "or this user may not. RETORT_PORT (or --port) chooses another one; 0: any that is free."
        ) from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _answers(client: RetortClient) -> bool:
    try:
        return client.ready().status != "unready"
    except ServiceUnreachable:
        return False


def _beats(database: Engine, pid: int | None) -> bool:
    alive = select(func.count()).where(
        Worker.host == socket.gethostname(), Worker.pid == pid, Worker.lease_until > db_now()
    )
    with reading(database) as connection:
        return bool(connection.execute(alive).scalar_one())


def embedded_teacher() -> NewTeacher:
    """The small real teacher that comes with Retort, as it is registered."""
    return NewTeacher(
        name=TEACHER,
        driver="embedded",
        model=embedded_model.MODEL,
        revision=embedded_model.REVISION,
        access_route="weights",
        license=embedded_model.LICENSE,
    )


def _register_embedded(database: Engine, project_id: str) -> None:
    """Registered and probed, which reads the head of the model's file: what it can do is known before the first job."""
    with session(database, writes=True) as work:
        try:
            found = teachers.get(work, project_id, TEACHER)
        except NotFound:
            found = teachers.register(work, project_id, embedded_teacher())
    if found.driver == "embedded" and found.probed_at is None:
        teachers.probe(database, project_id, "system", TEACHER, lambda spec: build(spec, TeacherAccess()))


def run(settings: Settings, leashed: bool = False) -> int:
    """Supervise until SIGINT or SIGTERM; `leashed`: also until standard input ends. Returns an exit code."""
    orders = Orders()

    def on_signal(number: int, frame: FrameType | None) -> None:
        orders.ask_to_stop()
        again = "Leaving at once …" if orders.at_once.is_set() else "Draining (again: leave at once) …"
        os.write(2, f"\n{again}\n".encode())

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    if leashed:
        threading.Thread(target=_until_input_ends, args=(orders,), daemon=True).start()

    def ready(state: State) -> None:
        _say(f"Retort is ready at {state.url} (its pages: {state.url}/docs).")
        _say(f"Broker: {state.broker}.")
        _say(f"The admin key is in {settings.key_file}, logs are in {settings.data_dir / 'logs'}.")
        _say("Ctrl-C drains and stops everything.")

    try:
        Supervisor(settings, orders, _say, ready).run()
    except AlreadyRunning as error:
        _say(f"Nothing was started: {error}.")
        return 4
    except (StillLeaving, StartFailed) as error:
        _say(f"error: {error}")
        return 1
    except RetortError as error:
        _say(f"error: {error.detail}")
        return 1
    except DBAPIError as error:
        _say(f"error: the database does not answer: {str(error.orig).splitlines()[0]}")
        return 1
    except OSError as error:
        _say(f"error: {error.filename or settings.data_dir}: {error.strerror}")
        return 1
    _say("Stopped.")
    return 0


def _until_input_ends(orders: Orders) -> None:
    while os.read(0, 1024):
        pass
    orders.stop.set()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - a program's own output


if __name__ == "__main__":
    sys.exit(run(Settings(), leashed="--leashed" in sys.argv[1:]))
