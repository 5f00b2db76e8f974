"""Exports over REST: asked for, read, fetched in parts, and what is nobody's business."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.services.export import run_next

from .answering import work_off
from .conftest import LOCAL, Made


@pytest.fixture
def job(app: FastAPI, made: Made) -> str:
    """Three prompts that are answered; the second one failed."""
    made.teacher("a")
    prompts = made.prompt_set([{"prompt": text, "license": "CC0-1.0"} for text in ("one", "two", "three")])
    found: str = made.job(teachers=["a"], top_logprobs=2, prompt_set=prompts["id"])["id"]
    given = app.state.resources
    work_off(
        given.engine, given.storage, found, 1, lambda number, _: "teacher-permanent" if number == 1 else None
    )
    return found


@pytest.fixture
def export(app: FastAPI, api: TestClient, job: str) -> dict[str, Any]:
    """Its rows as JSONL, made."""
    answer = api.post("/v1/exports", json={"format": "jsonl", "selection": {"jobs": [job]}, "name": "mine"})
    assert answer.status_code == 201, answer.text
    asked: dict[str, Any] = answer.json()
    assert (asked["status"], asked["files"], asked["n_rows_expected"]) == ("ready", [], 2)
    given = app.state.resources
    assert run_next(given.engine, given.storage, "a worker", 60, lambda: False)
    found: dict[str, Any] = api.get(f"/v1/exports/{asked['id']}").json()
    assert found["status"] == "completed", found
    return found


def test_files_are_what_the_manifest_says(api: TestClient, job: str, export: dict[str, Any]) -> None:
    contents = {}
    for file in export["files"]:
        answer = api.get(f"/v1/exports/{export['id']}/files/{file['name']}")
        assert answer.status_code == 200
        assert len(answer.content) == file["n_bytes"] == int(answer.headers["content-length"])
        assert (
            hashlib.sha256(answer.content).hexdigest() == file["sha256"] == answer.headers["etag"].strip('"')
        )
        assert answer.headers["content-disposition"] == f'attachment; filename="{file["name"]}"'
        contents[file["name"]] = answer.content
    manifest = json.loads(contents["manifest.json"])
    assert manifest["n_rows"] == export["n_rows"] == 2
    assert manifest["code_version"]
    (of_job,) = manifest["jobs"]
    assert of_job["id"] == job
    assert of_job["teachers"][0]["license"] == "Apache-2.0"
    data = {file["name"]: file for file in manifest["files"]}
    rows = [
        json.loads(line) for name in data for line in contents[name].splitlines() if name.endswith(".jsonl")
    ]
    assert [row["messages"][-1]["content"] for row in rows] == ["answer 0.0", "answer 2.0"]
    for name, told in data.items():
        assert told["sha256"] == hashlib.sha256(contents[name]).hexdigest()


def test_a_fetch_goes_on_where_it_was_cut(api: TestClient, export: dict[str, Any]) -> None:
    (file,) = [file for file in export["files"] if file["name"].endswith(".jsonl")]
    path, size = f"/v1/exports/{export['id']}/files/{file['name']}", file["n_bytes"]
    whole = api.get(path).content

    def part(asked: str) -> tuple[int, bytes]:
        answer = api.get(path, headers={b"Range": asked.encode("latin-1")})
        if answer.status_code == 206:
            start, end = answer.headers["content-range"].removeprefix("bytes ").split("/")[0].split("-")
            assert answer.content == whole[int(start) : int(end) + 1]
        return answer.status_code, answer.content

    assert part("bytes=0-") == (206, whole)
    assert part("bytes=10-19") == (206, whole[10:20])
    assert part(f"bytes={size - 1}-") == (206, whole[-1:])
    assert part("bytes=-5") == (206, whole[-5:])
    assert part(f"bytes=-{size + 9}") == (206, whole)
    assert part(f"bytes=5-{size + 9}") == (206, whole[5:])
    for beyond in (f"bytes={size}-", "bytes=-0"):
        assert part(beyond)[0] == 416
    refused = api.get(path, headers={"Range": f"bytes={size}-"})
    assert refused.headers["content-range"] == f"bytes */{size}"
    assert refused.json()["type"] == "urn:retort:problem:range-not-satisfiable"
    etag = api.get(path).headers["etag"]
    for mine, status in (
        (etag, 206),
        ('"another"', 200),
        (f"W/{etag}", 200),
        ("Sun, 22 Nov 2026 00:00:00 GMT", 200),
    ):
        answer = api.get(path, headers={"Range": "bytes=10-", "If-Range": mine})
        assert (answer.status_code, answer.content) == (status, whole if status == 200 else whole[10:])
    for none in (
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=9-5",
        "bytes=0-1,3-4",
        "rows=0-1",
        "bytes=\xb2-",
        "bytes 0-1",
    ):
        assert part(none) == (200, whole), none
    tag = api.get(path).headers["etag"]
    for known in (tag, f'"other", {tag}', "*"):
        assert api.get(path, headers={"If-None-Match": known}).status_code == 304
    assert api.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_file_is_looked_at_before_it_is_fetched(api: TestClient, export: dict[str, Any]) -> None:
    """As readers of Parquet over HTTP do, to learn where its footer is."""
    (file,) = [file for file in export["files"] if file["name"].endswith(".jsonl")]
    path = f"/v1/exports/{export['id']}/files/{file['name']}"
    fetched = api.get(path)
    for headers in ({}, {"Range": "bytes=0-1"}):
        told = api.head(path, headers=headers)
        assert (told.status_code, told.content) == (200, b"")
        for name in ("content-length", "content-type", "etag", "accept-ranges", "content-disposition"):
            assert told.headers[name] == fetched.headers[name]
    assert api.head(path, headers={"If-None-Match": fetched.headers["etag"]}).status_code == 304
    assert api.head(path + "x").status_code == 404


NO_FILES = (
    *(
        "..%2F..%2Fretort.db",
        "%2e%2e",
        ".hidden",
        "%00",
        "manifest.json%00",
        "manifest.json%0A",
        "C%3A%5Cwindows",
    ),
    *("sub%2Fmanifest.json", "%C3%A9", "x" * 201, "none.jsonl"),
)


def test_only_files_of_the_export_can_be_fetched(api: TestClient, export: dict[str, Any]) -> None:
    for name in NO_FILES:
        assert api.get(f"/v1/exports/{export['id']}/files/{name}").status_code in (404, 422), name


def test_a_file_that_is_gone_is_told_before_the_answer_begins(
    app: FastAPI, api: TestClient, export: dict[str, Any]
) -> None:
    for file in Path(app.state.resources.storage.path("exports")).rglob("*.jsonl"):
        file.unlink()
    name = next(file["name"] for file in export["files"] if file["name"].endswith(".jsonl"))
    answer = api.get(f"/v1/exports/{export['id']}/files/{name}")
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:retort:problem:storage")


def test_what_cannot_be_asked_for(api: TestClient, job: str) -> None:
    def refused(**body: Any) -> tuple[int, str]:
        answer = api.post("/v1/exports", json={"format": "jsonl", "selection": {"jobs": [job]}, **body})
        return answer.status_code, answer.json()["detail"]

    status, detail = refused(format="floppy")
    assert (status, "jsonl" in detail) == (422, True)
    assert refused(selection={"jobs": ["job_none"]})[0] == 404
    assert refused(selection={"jobs": []})[0] == 422
    assert refused(selection={})[0] == 422
    assert refused(name="")[0] == 422
    assert refused(mame="x") == (422, "#/mame: there is no such field")


def test_another_project_sees_nothing(
    app: FastAPI, api: TestClient, job: str, export: dict[str, Any]
) -> None:
    other = api.post("/v1/projects", json={"name": "other"}).json()["admin_key"]["secret"]
    with TestClient(app, client=LOCAL, headers={"Authorization": f"Bearer {other}"}) as stranger:
        assert stranger.get("/v1/exports").json()["items"] == []
        assert stranger.get(f"/v1/exports/{export['id']}").status_code == 404
        assert stranger.get(f"/v1/exports/{export['id']}/files/manifest.json").status_code == 404
        assert stranger.post("/v1/exports", json={"selection": {"jobs": [job]}}).status_code == 404
        assert stranger.delete(f"/v1/exports/{export['id']}").status_code == 404


def test_lists_and_doing_it_once(api: TestClient, made: Made, job: str) -> None:
    body = {"format": "jsonl", "selection": {"jobs": [job]}}
    first, again = (api.post("/v1/exports", json=body, headers={"Idempotency-Key": "e1"}) for _ in range(2))
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    second = api.post("/v1/exports", json=body).json()["id"]
    page = api.get("/v1/exports", params={"limit": 1}).json()
    assert [one["id"] for one in page["items"]] == [second]
    rest = api.get("/v1/exports", params={"limit": 1, "cursor": page["next_cursor"]}).json()
    assert ([one["id"] for one in rest["items"]], rest["next_cursor"]) == ([first.json()["id"]], None)
    reader = made.key("reader")
    asked = api.post("/v1/exports", json=body, headers={"Authorization": f"Bearer {reader}"})
    assert asked.status_code == 403
