"""The service as a process of its own, on a loopback port."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.settings import Settings
from tests.fixtures import processes


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    port: int
    client: httpx.Client


@contextmanager
def serving(settings: Settings, folder: Path, key: str) -> Iterator[Server]:
    """`uvicorn --factory app.main:from_environment` over these settings' database. Killed at the end."""
    port = processes.free_port()
    log = folder / f"server-{port}.log"
    environment = {
        **os.environ,
        "RETORT_DATA_DIR": str(settings.data_dir),
        "RETORT_DATABASE_URL": settings.database,
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", "app.main:from_environment", "--port", str(port)]
    process = processes.start(command, log, environment=environment)
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=60
    ) as client:

        def answers() -> bool:
            try:
                return client.get("/healthz").status_code == 200
            except httpx.TransportError:
                return False

        try:
            processes.wait_until_ready(process, answers, log)
            yield Server(process, port, client)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
