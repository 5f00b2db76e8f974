"""The service in this process, over a database of the test's own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.domain.columns import TokenColumns
from app.errors import Unsupported
from app.main import create_app
from app.services.bootstrap import ensure_first_project
from app.settings import Settings
from app.teachers.base import Capabilities, GenerateRequest, Generation

from .conformance import conformance

LOCAL = ("127.0.0.1", 50_000)
NDJSON = {"Content-Type": "application/x-ndjson"}


@dataclass
class Rung:
    """A wake that remembers who was woken."""

    teachers: list[str | None] = field(default_factory=list)

    def __call__(self, teacher: str | None) -> None:
        self.teachers.append(teacher)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings.model_validate({"data_dir": tmp_path / "data", "database_url": database_url})


@pytest.fixture
def rung() -> Rung:
    return Rung()


class Canned:
    """A teacher behind the port, for tests whose subject is not the teacher."""

    def __init__(self, found: Capabilities) -> None:
        self._found = found

    async def capabilities(self) -> Capabilities:
        return self._found

    async def generate(self, request: GenerateRequest) -> list[Generation]:
        raise Unsupported("this one only tells what it can do")

    async def score(self, prompt_ids: list[int], token_ids: list[int], top_logprobs: int) -> TokenColumns:
        raise Unsupported("this one only tells what it can do")

    async def aclose(self) -> None:
        """Nothing is open."""


@pytest.fixture
def app(settings: Settings, rung: Rung) -> Iterator[FastAPI]:
    """The service; its teachers can be registered, whatever they are said to be. `real_app` has the real drivers."""
    made = create_app(settings, rung)
    given = made.state.resources
    made.state.resources = replace(given, open_teacher=lambda spec: Canned(Capabilities(reachable=True)))
    yield made
    made.state.resources.engine.dispose()


@pytest.fixture
def real_app(settings: Settings, rung: Rung) -> Iterator[FastAPI]:
    made = create_app(settings, rung)
    yield made
    made.state.resources.engine.dispose()


@contextmanager
def administering(app: FastAPI, settings: Settings) -> Iterator[TestClient]:
    """A client with the first admin key, on this machine. Every answer must be what OpenAPI says."""
    ensure_first_project(app.state.resources.engine, settings.key_file, settings.default_license)
    with TestClient(app, client=LOCAL, raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {settings.key_file.read_text().strip()}"
        client.event_hooks = {"request": [], "response": [conformance(app)]}
        yield client


@pytest.fixture
def api(app: FastAPI, settings: Settings) -> Iterator[TestClient]:
    with administering(app, settings) as client:
        yield client


@pytest.fixture
def sqlite_app(sqlite_url: str, tmp_path: Path, rung: Rung) -> Iterator[tuple[FastAPI, TestClient]]:
    """The service and a client on SQLite alone: for what does not depend on the database."""
    given = Settings.model_validate({"data_dir": tmp_path / "data", "database_url": sqlite_url})
    made = create_app(given, rung)
    with administering(made, given) as client:
        yield made, client
    made.state.resources.engine.dispose()


@pytest.fixture
def real_api(real_app: FastAPI, settings: Settings) -> Iterator[TestClient]:
    with administering(real_app, settings) as client:
        yield client


@dataclass(frozen=True)
class Made:
    """Things made over the API, with defaults."""

    api: TestClient

    def prompt_set(self, prompts: list[Any] | None = None, seal: bool = True) -> dict[str, Any]:
        set_id = self.api.post("/v1/prompt-sets", json={"name": "a set"}).json()["id"]
        body = {"prompts": ["one", "two", "three"] if prompts is None else prompts}
        answer = self.api.post(f"/v1/prompt-sets/{set_id}/prompts", params={"seal": seal}, json=body)
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()["prompt_set"]
        return made

    def teacher(self, name: str = "t0", **more: Any) -> dict[str, Any]:
        body = {
            "name": name,
            "driver": "openai",
            "model": "scripted",
            "base_url": "http://127.0.0.1:9/v1",
            "license": "Apache-2.0",
            **more,
        }
        answer = self.api.post("/v1/teachers", json=body)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def job(self, **more: Any) -> dict[str, Any]:
        if "prompt_set" not in more:
            more["prompt_set"] = self.prompt_set()["id"]
        if "teachers" not in more:
            if self.api.get("/v1/teachers/t0").status_code == 404:
                self.teacher()
            more["teachers"] = ["t0"]
        answer = self.api.post("/v1/jobs", json=more)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def override(self, **more: Any) -> dict[str, Any]:
        """Terms for any model, unless it says otherwise."""
        body = {
            "kind": "terms",
            "terms": ["apache-2.0-weights"],
            "who": "dana@example.org",
            "why": "made for a test",
            **more,
        }
        answer = self.api.post("/v1/policy/overrides", json=body)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def key(self, role: str, **more: Any) -> str:
        answer = self.api.post("/v1/keys", json={"name": f"a {role}", "role": role, **more})
        secret: str = answer.json()["secret"]
        return secret


@pytest.fixture
def made(api: TestClient) -> Made:
    return Made(api)


def lines(*rows: Any) -> bytes:
    """Rows as NDJSON; bytes stand as they are."""
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
