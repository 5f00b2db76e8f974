"""Contenders that are a script: the bare clients, and the peers in environments of their own.

A script gets its task as JSON in its first argument and the prompts as one line, imports what it needs, says `ready`,
waits for a line, works, and says its result as JSON. What is measured lies between that line and the result.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.bench.contenders.base import CORE, Outcome, Task, bytes_in
from tests.bench.null_teacher import MODEL, ROOT, Unavailable
from tests.bench.process_tree import Meter, pinned

_TESTS = Path(__file__).resolve().parents[2]


@dataclass
class Script:
    """`environment`: a folder of `tests/environments`; None: our own."""

    name: str
    title: str
    script: str
    client: str = ""
    environment: str | None = None
    durable: bool = False
    most_rows: int | None = None
    reads_answers_only: bool = True
    _python: str = sys.executable

    def prepare(self) -> None:
        if self.environment is None:
            return
        made = subprocess.run(
            [sys.executable, ROOT / "scripts" / "environment.py", self.environment],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            why = (made.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Unavailable(f"{self.title} cannot be installed here: {why}")
        self._python = made.stdout.strip().splitlines()[-1]

    def answer(self, task: Task) -> Outcome:
        told = json.dumps(
            {
                "client": self.client,
                "base_url": task.base_url,
                "model": MODEL,
                "k": task.shape.k,
                "tokens": task.shape.tokens,
                "in_flight": task.in_flight,
                "folder": str(task.folder / "kept"),
            }
        )
        (task.folder / "kept").mkdir(parents=True)
        log = task.folder / f"{self.name}.log"
        with log.open("wb") as errors, pinned(CORE):
            process = subprocess.Popen(
                [self._python, _TESTS / self.script, told],
                cwd=task.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            self._say(process, json.dumps(task.prompts()), log)
            self._heard(process, log)
            task.before()
            with Meter({"client": [process.pid]}) as meter:
                self._say(process, "go", log)
                result = json.loads(self._heard(process, log))
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        kept = bytes_in(task.folder / "kept") if self.durable else None
        return Outcome(result["rows"], meter.used, kept)

    def _say(self, process: "subprocess.Popen[str]", line: str, log: Path) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise _ended(self.title, log) from None

    def _heard(self, process: "subprocess.Popen[str]", log: Path) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise _ended(self.title, log)
        return line


def _ended(title: str, log: Path) -> RuntimeError:
    return RuntimeError(f"{title} ended too early:\n{log.read_text(errors='replace')[-3000:]}")


AIOHTTP = Script("aiohttp", "bare aiohttp client", "bench/bare_client.py", client="aiohttp")
HTTPX = Script("httpx", "bare httpx client", "bench/bare_client.py", client="httpx")
ROUTES = tuple(
    Script(route, f"by {route}", "bench/route_client.py", client=route)
    for route in ("chat", "completions", "compact")
)
DISTILABEL = Script(
    "distilabel",
    "distilabel",
    "environments/distilabel/client.py",
    environment="distilabel",
    durable=True,
    most_rows=5000,
)
CURATOR = Script(
    "curator",
    "curator",
    "environments/curator/client.py",
    environment="curator",
    durable=True,
    most_rows=5000,
)
