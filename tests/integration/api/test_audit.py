"""The audit log: every change is in it, nothing secret is, and whatever is done to it afterwards is found."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.db import audit
from app.db.session import transaction

from .answering import work_off
from .conftest import Made


def actions(api: TestClient) -> list[str]:
    return [event["action"] for event in api.get("/v1/audit", params={"limit": 1000}).json()["items"]]


@pytest.mark.smoke
def test_every_operation_that_changes_something_is_logged(app: FastAPI, api: TestClient, made: Made) -> None:
    """Each one is done once; one that is missing here, or logs nothing, is found by its name."""
    given = app.state.resources
    set_id = made.prompt_set([{"prompt": "p", "license": "MIT"}])["id"]
    made.teacher("t0")
    job = made.job(prompt_set=set_id)["id"]
    path = f"/v1/jobs/{job}"
    assert api.patch(path, json={"budget": {"max_tokens": 2_000_000}}).status_code == 200
    for action in ("pause", "resume"):
        assert api.post(f"{path}/{action}").status_code == 200
    work_off(given.engine, given.storage, job, 1, lambda *_: "x")
    assert api.post(f"{path}/retry").status_code == 200
    assert api.post(f"{path}/cancel").status_code == 200
    api.post("/v1/exports/stream", json={"selection": {"jobs": [job]}})
    export = api.post("/v1/exports", json={"selection": {"jobs": [job]}}).json()["id"]
    api.post(f"/v1/exports/{export}/uses", json={"student": "me/student"})
    api.post(f"/v1/exports/{export}/cancel")
    api.delete(f"/v1/exports/{export}")
    override = made.override()["id"]
    api.post(f"/v1/policy/overrides/{override}/revoke", json={"why": "over"})
    key = api.post("/v1/keys", json={"name": "k", "role": "reader"}).json()["id"]
    api.delete(f"/v1/keys/{key}")
    api.patch("/v1/project", json={"default_license": "MIT"})
    api.patch("/v1/teachers/t0", json={"max_in_flight": 3})
    api.post("/v1/teachers/t0/probe")
    made.teacher("t1")
    api.delete("/v1/teachers/t1")
    open_set = made.prompt_set(seal=False)["id"]
    api.post(f"/v1/prompt-sets/{open_set}/seal")
    api.post("/v1/projects", json={"name": "second"})
    api.post("/v1/takedowns", json={"prompt_set": set_id, "who": "x", "why": "y"})
    assert set(actions(api)) == {
        "export.cancel",
        "export.create",
        "export.delete",
        "export.stream",
        "export.use",
        "job.cancel",
        "job.change",
        "job.end",
        "job.pause",
        "job.resume",
        "job.retry",
        "job.submit",
        "key.create",
        "key.revoke",
        "override.record",
        "override.revoke",
        "project.change",
        "project.create",
        "prompt_set.append",
        "prompt_set.appended",
        "prompt_set.create",
        "prompt_set.seal",
        "takedown.order",
        "teacher.change",
        "teacher.delete",
        "teacher.probe",
        "teacher.register",
    }
    writes = {
        operation["operationId"]
        for item in app.openapi()["paths"].values()
        for method, operation in item.items()
        if method != "get"
    }
    reads_by_post = {"evaluate_use", "replay_decision"}
    assert len(writes - reads_by_post) == LOGGED, "a new operation changes something: log it, and do it here"
    verification = api.get("/v1/audit/verify").json()
    assert (verification["intact"], verification["problems"]) == (True, [])


# create: project, key, set, teacher, job, export, override, takedown; change: project, teacher, job; append, seal;
# probe, pause, resume, cancel, retry; cancel: export; revoke: key, override; delete: teacher, export; use: export
LOGGED = 25


def test_no_secret_and_no_content_is_in_the_log(app: FastAPI, api: TestClient, made: Made) -> None:
    key = made.key("writer")
    made.teacher(
        "t0", base_url="http://user:hunter2@127.0.0.1:9/v1", options={"provider": "vllm"}, secret_ref="env:X"
    )
    api.patch("/v1/teachers/t0", json={"base_url": "http://user:hunter3@127.0.0.1:9/v1"})
    api.post("/v1/teachers/t0/probe")
    made.job(prompt_set=made.prompt_set(["a prompt about xylophones"])["id"])
    with app.state.resources.engine.connect() as connection:
        log = repr(connection.execute(text("SELECT actor, action, subject, detail FROM audit_event")).all())
    assert "teacher.change" in log
    for secret in (key, "rtk_", "hunter", "xylophones", "env:X"):
        assert secret not in log
    assert not re.search(r"[A-Za-z0-9_-]{40,}", re.sub(r"[0-9a-f]{64}", "", log))  # nothing like a key


def test_a_request_that_is_answered_from_memory_did_nothing(api: TestClient) -> None:
    for _ in range(3):
        api.post("/v1/prompt-sets", json={"name": "x"}, headers={"Idempotency-Key": "k"})
    assert actions(api) == ["prompt_set.create"]
    assert api.post("/v1/prompt-sets", json={"name": ""}).status_code == 422
    assert actions(api) == ["prompt_set.create"]


TAMPERING = {
    "a changed detail": ('UPDATE audit_event SET detail = \'{"name":"y"}\' WHERE sequence = 3', 3),
    "another actor": ("UPDATE audit_event SET actor = 'key_other' WHERE sequence = 4", 4),
    "another time": ("UPDATE audit_event SET at = at + 1 WHERE sequence = 2", 2),
    "a removed event": ("DELETE FROM audit_event WHERE sequence = 3", 4),
    "the first one removed": ("DELETE FROM audit_event WHERE sequence = 1", 2),
    "the tail removed": ("DELETE FROM audit_event WHERE sequence = 5", 5),
    "all removed": ("DELETE FROM audit_event", 5),
    "the head moved": ("UPDATE audit_head SET sequence = 4", 4),
}


@pytest.mark.parametrize(("statement", "where"), TAMPERING.values(), ids=TAMPERING.keys())
def test_tampering_is_found(sqlite_app: tuple[FastAPI, TestClient], statement: str, where: int) -> None:
    app, api = sqlite_app
    for number in range(5):
        api.post("/v1/prompt-sets", json={"name": f"set {number}"})
    assert api.get("/v1/audit/verify").json()["intact"]
    with transaction(app.state.resources.engine) as connection:
        connection.execute(text(statement.replace(":", r"\:")))
    found = api.get("/v1/audit/verify").json()
    assert not found["intact"]
    assert found["problems"][0]["sequence"] == where


def test_a_chain_that_was_made_anew_is_found_by_an_anchor(app: FastAPI, api: TestClient, made: Made) -> None:
    for number in range(3):
        api.post("/v1/prompt-sets", json={"name": f"set {number}"})
    head = api.get("/v1/audit/head").json()
    anchor = f"{head['sequence']}:{head['hash']}"
    api.post("/v1/prompt-sets", json={"name": "later"})
    verified = api.get("/v1/audit/verify", params={"anchor": anchor}).json()
    assert (verified["intact"], verified["anchors_checked"]) == (True, 1)
    # Whoever can write to the database writes a new history, with a head that fits.
    project = api.get("/v1/project").json()["id"]
    with transaction(app.state.resources.engine) as connection:
        for table in ("audit_event", "audit_head"):
            connection.execute(text(f"DELETE FROM {table}"))  # noqa: S608
        audit.append(connection, project, "system", [audit.Event("job.end", f"job_{n}") for n in range(4)])
    assert api.get("/v1/audit/verify").json()["intact"]
    found = api.get("/v1/audit/verify", params={"anchor": anchor}).json()
    assert not found["intact"]
    assert found["problems"][0]["sequence"] == head["sequence"]
    assert api.get("/v1/audit/verify", params={"anchor": f"99:{head['hash']}"}).json()["intact"] is False
    for wrong in ("5", "x:y", f"1:{head['hash'][:-1]}", f"-1:{head['hash']}"):
        assert api.get("/v1/audit/verify", params={"anchor": wrong}).status_code == 422


def test_writers_at_once_make_one_chain(app: FastAPI, api: TestClient) -> None:
    project = api.get("/v1/project").json()["id"]
    engine = app.state.resources.engine

    def write(worker: int) -> None:
        for number in range(5):
            with transaction(engine) as connection:
                audit.append(
                    connection, project, f"worker:{worker}", [audit.Event("job.end", f"job_{number}")]
                )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    verified = api.get("/v1/audit/verify").json()
    assert (verified["intact"], verified["n_events"], verified["head"]["sequence"]) == (True, 40, 40)


def test_pages_and_subjects(api: TestClient, made: Made) -> None:
    ids = [api.post("/v1/prompt-sets", json={"name": f"s{n}"}).json()["id"] for n in range(5)]
    seen: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = api.get("/v1/audit", params={"limit": 2, **cursor}).json()
        seen += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert [event["sequence"] for event in seen] == [5, 4, 3, 2, 1]
    assert all(event["actor_name"] == "first start" for event in seen)
    (only,) = api.get("/v1/audit", params={"subject": ids[2]}).json()["items"]
    assert (only["action"], only["detail"]) == ("prompt_set.create", {"name": "s2"})
    reader = {"Authorization": f"Bearer {made.key('reader')}"}
    assert api.get("/v1/audit", headers=reader).status_code == 403
