"""The scripted teacher as a process, on cores of its own."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import Popen
from types import TracebackType
from typing import Any

import httpx

from tests.bench.process_tree import pinned
from tests.fixtures import processes


class ScriptedServer:
    """`with ScriptedServer({"tokens": 64}, folder) as teacher: teacher.url`"""

    def __init__(self, script: Mapping[str, Any], folder: Path, cores: set[int] | None = None) -> None:
        self.port = processes.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._script = dict(script)
        self._log = folder / f"scripted-{self.port}.log"
        self._cores = cores
        self._process: Popen[bytes] | None = None

    def __enter__(self) -> "ScriptedServer":
        command = [sys.executable, "-m", "app.teachers.scripted", "--port", str(self.port)]
        with pinned(self._cores):
            self._process = processes.start([*command, "--script", json.dumps(self._script)], self._log)
        processes.wait_until_ready(self._process, self._answers, self._log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            processes.stop(self._process)

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/_stats", trust_env=False).json()
        return found

    def change(self, **script: Any) -> None:
        """Another script from now on; counters back to zero."""
        self._script |= script
        self.reset()

    def reset(self) -> None:
        """Counters back to zero."""
        answer = httpx.post(f"{self.url}/_script", params={"reset": "1"}, json=self._script, trust_env=False)
        answer.raise_for_status()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/version", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False
