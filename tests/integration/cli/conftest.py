"""The command line against a service that runs: its API and a worker as processes, a scripted teacher, SQLite."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from app.cli import main
from app.exporters import signing
from tests.faults.world import ScriptedServer
from tests.fixtures.service import Service, running_service
from tests.fixtures.valkey import ValkeyServer


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def problem(self) -> dict[str, Any]:
        """What it told a script on standard error."""
        found: dict[str, Any] = json.loads(self.err.splitlines()[-1])
        return found


class Retort(Protocol):
    def __call__(self, *words: object) -> Ran: ...


def ran(capsys: pytest.CaptureFixture[str], words: tuple[object, ...]) -> Ran:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    told = capsys.readouterr()
    return Ran(int(ended.value.code or 0), told.out, told.err)


@pytest.fixture
def alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Retort:
    """`retort …` in an empty folder, where no service is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETORT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("RETORT_URL", "http://127.0.0.1:1")
    return lambda *words: ran(capsys, words)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedServer]:
    """A scripted teacher; `change` gives it another script."""
    made = ScriptedServer(tmp_path_factory.mktemp("teacher"), {"tokens": 6})
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def service(
    migrated_sqlite: Path,
    valkey_server: ValkeyServer,
    teacher: ScriptedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """One service for all these tests: they make things of their own, and count nothing that is not theirs."""
    folder = tmp_path_factory.mktemp("service")
    shutil.copyfile(migrated_sqlite, folder / "retort.db")
    database = f"sqlite:///{folder / 'retort.db'}"
    grace = {"RETORT_ENGINE__GRACE_SECONDS": "1", "RETORT_ENGINE__BATCH_LOOK_SECONDS": "0.2"}
    key = folder / "data" / "signing.key"
    key.parent.mkdir()
    key.write_bytes(signing.new_private_key())
    with running_service(database, valkey_server.url, folder / "data", settings=grace) as made:
        made.call("PATCH", "/v1/project", json={"default_license": "CC0-1.0"})  # else no export
        made.call(
            "POST",
            "/v1/teachers",
            json={"name": "t", "driver": "openai", "model": "scripted", "base_url": f"{teacher.url}/v1",
                  "options": {"provider": "vllm"}, "license": "Apache-2.0"},
        )  # fmt: skip
        yield made


@pytest.fixture
def retort(
    service: Service,
    teacher: ScriptedServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Retort:
    """`retort …` with the service's address and key, in a folder of the test's own."""
    teacher.change(faults=[])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETORT_DATA_DIR", str(service.folder))
    monkeypatch.setenv("RETORT_URL", service.url)
    return lambda *words: ran(capsys, words)
