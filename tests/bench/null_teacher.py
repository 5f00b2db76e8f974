"""The null teacher: nginx, which answers every question with the same prebuilt bytes: the contender is the limit.

Where nginx cannot be had, the scripted teacher stands in. It costs more than some contenders, so that rows per second
then say nothing; CPU per row still does, since it runs on a core of its own.

The bytes are what the scripted teacher answers, in vLLM's shape. Each shape has a path of its own, since nginx does not
read the question: `http://…/k20-t64/v1/chat/completions`. What follows from that: `n`, `max_tokens` and `seed` change
nothing, and nothing is refused.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import httpx
import orjson

from tests.bench.process_tree import pinned
from tests.bench.scripted_server import ScriptedServer
from tests.fixtures import processes

MODEL = "scripted"
ROOT = Path(__file__).resolve().parents[2]
_DEBIAN = ROOT / "tests" / "environments" / "debian.sh"

_CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
{user}
events {{ worker_connections 4096; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    default_type application/json;
    client_max_body_size 64m;
    client_body_buffer_size 256k;
    sendfile on;
    tcp_nodelay on;
    keepalive_timeout 300s;
    keepalive_requests 1000000000;
    open_file_cache max=100;
    log_format sizes '$request_method $uri $request_length $bytes_sent';
    access_log {folder}/access.log sizes buffer=256k flush=100ms;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {folder}/www;
        # Files answer no POST: their refusal is turned into the file.
        location / {{ error_page 405 =200 $uri; }}
    }}
}}
"""


class Unavailable(Exception):
    """A part of the benchmark cannot be had on this machine; the text says why, in one line."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What an answer holds: `tokens` tokens and `k` candidates a position."""

    k: int
    tokens: int

    @property
    def name(self) -> str:
        return f"k{self.k}-t{self.tokens}"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Answers to questions, and bytes with their headers both ways."""

    calls: int = 0
    received: int = 0
    sent: int = 0


def program() -> str:
    """nginx's program, installed from Debian where it is missing and that is possible. Raises `Unavailable`."""
    found = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if found is None:
        made = subprocess.run(
            [_DEBIAN, "nginx-light"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        found = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
        if found is None:
            said = (made.stderr or made.stdout).strip().splitlines() or ["it cannot be installed"]
            raise Unavailable(f"no nginx: {said[-1]}")
    return found


class NullTeacher(Protocol):
    """`url(shape)`: a teacher's base URL."""

    title: str

    def url(self, shape: Shape) -> str: ...

    def traffic(self) -> Traffic:
        """What went over the wire since the last call of this."""
        ...


class Nginx:
    """A running nginx."""

    title = "nginx"

    def __init__(self, folder: Path, shapes: list[Shape], cores: set[int] | None = None) -> None:
        self._folder = folder
        self._shapes = shapes
        self._cores = cores
        self._log_read = 0
        self.port = processes.free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, shape: Shape) -> str:
        return f"http://127.0.0.1:{self.port}/{shape.name}/v1"

    def __enter__(self) -> "Nginx":
        nginx = program()
        _lay_out(self._folder, self._shapes)
        self._folder.chmod(0o755)
        config = self._folder / "nginx.conf"
        owner = f"user {self._folder.owner()};" if self._folder.owner() == "root" else ""
        config.write_text(_CONFIG.format(folder=self._folder, port=self.port, user=owner))
        log = self._folder / "nginx.log"
        command: list[str | Path] = [
            nginx,
            "-p",
            self._folder,
            "-e",
            self._folder / "error.log",
            "-c",
            config,
        ]
        with pinned(self._cores):
            self._process = processes.start(command, log)
        processes.wait_until_ready(self._process, self._answers, log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            processes.stop(self._process)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def traffic(self) -> Traffic:
        time.sleep(0.25)  # it writes its log a tenth of a second late
        with (self._folder / "access.log").open("rb") as log:
            log.seek(self._log_read)
            lines = log.read().splitlines()
            self._log_read = log.tell()
        calls = received = sent = 0
        for line in lines:
            _, uri, request, answer = line.split()
            if uri.endswith(b"/completions"):
                calls += 1
                received += int(request)
                sent += int(answer)
        return Traffic(calls, received, sent)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url(self._shapes[0])}/models", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


class Scripted:
    """The scripted teacher as a stand-in. It counts calls, not bytes."""

    def __init__(self, server: ScriptedServer, why: str) -> None:
        self.title = f"the scripted teacher, for there is {why}"
        self._server = server
        self._calls = 0

    def url(self, shape: Shape) -> str:
        return f"{self._server.url}/v1"

    def traffic(self) -> Traffic:
        before, self._calls = self._calls, int(self._server.stats()["calls"])
        return Traffic(self._calls - before)


@contextmanager
def null_teacher(folder: Path, shapes: list[Shape], cores: set[int] | None = None) -> Iterator[NullTeacher]:
    folder.mkdir(parents=True)
    try:
        program()
    except Unavailable as reason:
        script = {"tokens": max(shape.tokens for shape in shapes), "max_logprobs": 21}
        with ScriptedServer(script, folder, cores) as server:
            yield Scripted(server, str(reason))
    else:
        with Nginx(folder, shapes, cores) as nginx:
            yield nginx


def _lay_out(folder: Path, shapes: list[Shape]) -> None:
    """Ask the scripted teacher once for each shape, and keep what it says."""
    with (
        ScriptedServer({"max_logprobs": 1 + max(shape.k for shape in shapes)}, folder) as scripted,
        httpx.Client(base_url=scripted.url, trust_env=False) as http,
    ):
        for shape in shapes:
            scripted.change(tokens=shape.tokens)
            root = folder / "www" / shape.name
            (root / "v1" / "chat").mkdir(parents=True)
            for path, method, body in (
                ("version", "GET", None),
                ("v1/models", "GET", None),
                ("v1/chat/completions", "POST", _question(shape)),
            ):
                answer = http.request(method, f"/{path}", content=body)
                answer.raise_for_status()
                (root / path).write_bytes(answer.content)


def _question(shape: Shape) -> bytes:
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the answer?"}],
        "seed": 1,
        "return_token_ids": True,
    }
    if shape.k:  # one more than wanted: the sampled token may take the place of the last one
        asked |= {"logprobs": True, "top_logprobs": shape.k + 1, "return_tokens_as_token_ids": True}
    return orjson.dumps(asked)
