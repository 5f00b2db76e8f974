"""Rows as lines without a file: what an export would hold, as fast as it is read, and no further than that."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event

from app.services import export
from tests.fixtures.completed import Rows, add_job, complete
from tests.fixtures.processes import free_port

from .answering import work_off
from .conftest import Made


def lines(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.content.splitlines()]


def test_a_stream_holds_what_an_export_holds(app: FastAPI, api: TestClient, made: Made) -> None:
    given = app.state.resources
    made.teacher("a")
    prompts = [{"prompt": f"p{i}", "license": "MIT", "metadata": {"i": i}} for i in range(5)]
    job = made.job(teachers=["a"], n=2, prompt_set=made.prompt_set(prompts)["id"])["id"]
    work_off(given.engine, given.storage, job, 2)
    spec = {
        "options": {"reasoning": "think"},
        "selection": {"jobs": [job], "metadata": [{"path": "i", "min": 2}]},
        "split": {"train": 0.5, "validation": 0.5},
    }
    streamed = lines(api.post("/v1/exports/stream", json=spec))
    assert len(streamed) == 6
    made_export = api.post("/v1/exports", json={**spec, "format": "jsonl"}).json()
    assert export.run_next(given.engine, given.storage, "w", 60, lambda: False)
    view = api.get(f"/v1/exports/{made_export['id']}").json()
    files = [
        api.get(f"/v1/exports/{view['id']}/files/{file['name']}").content
        for file in view["files"]
        if file["name"].endswith(".jsonl")
    ]
    exported = [json.loads(line) for content in files for line in content.splitlines()]
    assert sorted(streamed, key=lambda row: str(row["row_id"])) == sorted(
        exported, key=lambda row: str(row["row_id"])
    )
    told = api.get("/v1/audit").json()["items"]
    assert [one["subject"] for one in told if one["action"] == "export.stream"] == [job]


def test_what_cannot_be_streamed(app: FastAPI, api: TestClient, made: Made) -> None:
    given = app.state.resources
    made.teacher("a")
    job = made.job(teachers=["a"], prompt_set=made.prompt_set(["unlicensed"])["id"])["id"]
    work_off(given.engine, given.storage, job, 1)
    spec: dict[str, Any] = {"format": "parquet", "selection": {"jobs": [job]}}
    answer = api.post("/v1/exports/stream", json=spec)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/format")
    answer = api.post("/v1/exports/stream", json={"selection": {"jobs": ["job_0"]}})
    assert answer.status_code == 404
    shared = {"selection": {"jobs": [job]}, "intended_use": {"redistribution": True}}
    answer = api.post("/v1/exports/stream", json=shared)
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:retort:problem:policy-refusal")


def settled(connections: list[float]) -> int:
    """How many there were, once a second has passed without another."""
    while True:
        before = len(connections)
        time.sleep(1)
        if len(connections) == before:
            return before


@pytest.mark.smoke
def test_it_is_read_no_further_than_the_client_reads(
    sqlite_app: tuple[FastAPI, TestClient], tmp_path: Path
) -> None:
    """A page holds 4,096 rows; of 20,000 the server reads a few pages ahead into sockets, then waits, then leaves."""
    app, client = sqlite_app
    given = app.state.resources
    rows = Rows(prompts=20_000, shard_size=5_000, words=120, reasoning=False)
    add_job(given.engine, rows)
    complete(given.engine, given.storage, rows)
    connections: list[float] = []
    event.listen(given.engine, "checkout", lambda *_: connections.append(time.monotonic()))
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        url = f"http://127.0.0.1:{server.config.port}/v1/exports/stream"
        headers = {"Authorization": client.headers["Authorization"]}
        body = {"selection": {"jobs": [rows.id]}}
        with httpx.Client(timeout=60, trust_env=False, headers=headers) as http:
            assert len(lines(http.post(url, json=body))) == 20_000
            whole = settled(connections)
            with http.stream("POST", url, json=body) as answer:
                assert answer.status_code == 200
                first = next(answer.iter_lines())
                assert json.loads(first)["prompt_number"] == 0
                waiting = settled(connections) - whole
                assert waiting < whole, "nobody reads, and the server goes on"
            left = settled(connections) - whole
            assert left < whole, "the client left, and the server goes on"
            assert whole - waiting >= 2
    finally:
        server.should_exit = True
        thread.join(20)
