"""From a row back to its origin, and from origins forward to the exports that hold their rows."""

from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.db import lineage as rows
from app.db.session import transaction
from app.domain.membership import CHUNK, packed

from .answering import WORKER, work_off
from .conftest import Made
from .test_export_policy import exported, file


def prompts(n: int = 9) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"prompt {i}",
            "license": "CC-BY-4.0",
            "source": f"https://example.org/{i % 3}",
            "custom_id": f"c{i}",
        }
        for i in range(n)
    ]


def job(app: FastAPI, made: Made, set_id: str, teachers: list[str], **more: Any) -> str:
    submitted = made.job(prompt_set=set_id, teachers=teachers, **more)
    work_off(app.state.resources.engine, app.state.resources.storage, submitted["id"], more.get("n", 1))
    return str(submitted["id"])


def test_back_and_forth(app: FastAPI, api: TestClient, made: Made) -> None:
    made.teacher("llama", model="meta-llama/Llama-3.3-70B-Instruct", revision="abc")
    made.teacher("small")
    given = prompts()
    given[4]["parameters"] = {"max_tokens": 3}
    set_id = made.prompt_set(given)["id"]
    job_id = job(app, made, set_id, ["small", "llama"], n=2, sampling={"seed": 5})
    all_of_it = exported(app, api, {"format": "jsonl", "selection": {"jobs": [job_id]}})
    llama = exported(app, api, {"format": "jsonl", "selection": {"jobs": [job_id], "teachers": ["llama"]}})
    line = next(
        one for one in file(api, llama, "train-00000.jsonl").splitlines() if b'"prompt_number":4' in one
    )
    row_id = line.split(b'"row_id":"')[1].split(b'"')[0].decode()
    assert row_id == f"{job_id}/0/4/1/0"

    found = api.get("/v1/lineage/row", params={"row_id": row_id}).json()
    assert found["prompt"]["source"] == "https://example.org/1"
    assert (found["prompt"]["number"], found["prompt"]["custom_id"], found["prompt"]["license"]) == (
        4,
        "c4",
        "CC-BY-4.0",
    )
    assert found["prompt"]["prompt_set"] == set_id
    teacher = found["teacher"]
    assert (teacher["name"], teacher["model"], teacher["revision"]) == (
        "llama",
        "meta-llama/Llama-3.3-70B-Instruct",
        "abc",
    )
    assert teacher["terms"] == ["llama-3.3"]
    assert (found["job"]["id"], found["job"]["asked_by_name"]) == (job_id, "first start")
    assert found["job"]["code_version"]
    assert found["job"]["sampling"]["seed"] == 5
    assert (found["attempt"]["worker"], found["attempt"]["attempts"], found["attempt"]["epoch"]) == (
        WORKER,
        1,
        1,
    )
    assert found["segment"]["path"].startswith(f"segments/{job_id}/")
    assert [one["id"] for one in found["exports"]] == [llama["id"], all_of_it["id"]]
    other = api.get("/v1/lineage/row", params={"row_id": f"{job_id}/0/4/0/1"}).json()
    assert [one["id"] for one in other["exports"]] == [all_of_it["id"]]

    def forward(**asked: Any) -> dict[str, int]:
        answer = api.get("/v1/lineage/exports", params=asked)
        assert answer.status_code == 200, answer.text
        return {one["id"]: one["n_rows"] for one in answer.json()["exports"]}

    assert forward(source="https://example.org/1") == {llama["id"]: 6, all_of_it["id"]: 12}
    assert forward(prompt_set=set_id, prompt_number=4) == {llama["id"]: 2, all_of_it["id"]: 4}
    assert forward(teacher="llama") == {llama["id"]: 18, all_of_it["id"]: 18}
    assert forward(teacher="small") == {all_of_it["id"]: 18}
    assert forward(source="https://example.org/unknown") == {}
    # A deleted export was given to somebody; one that was never whole was not.
    api.delete(f"/v1/exports/{llama['id']}")
    waiting = api.post("/v1/exports", json={"format": "jsonl", "selection": {"jobs": [job_id]}}).json()
    api.post(f"/v1/exports/{waiting['id']}/cancel")
    assert forward(teacher="llama") == {llama["id"]: 18, all_of_it["id"]: 18}


def test_what_is_asked_wrongly_is_told(api: TestClient, made: Made) -> None:
    set_id = made.prompt_set(["a"])["id"]
    wrong: list[dict[str, Any]] = [
        {},
        {"source": "x", "teacher": "y"},
        {"prompt_set": set_id},
        {"prompt_number": 1},
    ]
    for asked in wrong:
        assert api.get("/v1/lineage/exports", params=asked).status_code == 422, asked
    unknown: list[dict[str, Any]] = [
        {"teacher": "nobody"},
        {"prompt_set": set_id, "prompt_number": 7},
        {"prompt_set": "ps_0", "prompt_number": 0},
    ]
    for asked in unknown:
        assert api.get("/v1/lineage/exports", params=asked).status_code == 404, asked
    for row_id in ("x", "job_1/0/0/0", "job_1/0/-1/0/0"):
        assert api.get("/v1/lineage/row", params={"row_id": row_id}).status_code == 422
    assert api.get("/v1/lineage/row", params={"row_id": "job_1/0/0/0/0"}).status_code == 404


def test_another_project_sees_nothing(app: FastAPI, api: TestClient, made: Made) -> None:
    made.teacher("small")
    job_id = job(app, made, made.prompt_set(prompts(3))["id"], ["small"])
    exported(app, api, {"format": "jsonl", "selection": {"jobs": [job_id]}})
    stranger = {
        "Authorization": "Bearer "
        + api.post("/v1/projects", json={"name": "o"}).json()["admin_key"]["secret"]
    }
    row = {"row_id": f"{job_id}/0/0/0/0"}
    assert api.get("/v1/lineage/row", params=row).status_code == 200
    assert api.get("/v1/lineage/row", params=row, headers=stranger).status_code == 404
    source = {"source": "https://example.org/0"}
    assert api.get("/v1/lineage/exports", params=source).json()["exports"] != []
    assert api.get("/v1/lineage/exports", params=source, headers=stranger).json()["n_prompts"] == 0


def test_lookups_of_a_large_export_read_few_rows(app: FastAPI, api: TestClient, made: Made) -> None:
    """A job of four million prompts, as far as the index of exports is concerned."""
    made.teacher("small")
    set_id = made.prompt_set(prompts(3))["id"]
    job_id = job(app, made, set_id, ["small"])
    view = exported(app, api, {"format": "jsonl", "selection": {"jobs": [job_id]}})
    engine = app.state.resources.engine
    n = 4_000_000
    with transaction(engine) as connection:
        connection.execute(text("DELETE FROM export_member"))
        for chunk, (n_rows, bits) in packed(np.arange(0, n, 2)).items():
            connection.execute(
                text(
                    "INSERT INTO export_member "
                    "(export_id, file, job_id, stage, teacher, sample_index, chunk, n_rows, bits) "
                    "VALUES (:export, 'f', :job, 0, 0, 0, :chunk, :n, :bits)"
                ),
                {"export": view["id"], "job": job_id, "chunk": chunk, "n": n_rows, "bits": bits},
            )
        stored = connection.execute(text("SELECT count(*), sum(length(bits)) FROM export_member")).one()
        assert stored[0] == -(-n // CHUNK)
        assert stored[1] < 100_000
        assert rows.exports_of_row(connection, job_id, 0, 3_000_000, 0, 0) == {view["id"]: "f"}
        assert rows.exports_of_row(connection, job_id, 0, 3_000_001, 0, 0) == {}
        some = {set_id: np.arange(0, n, 1000)}
        assert rows.exports_of_prompts(connection, some) == {view["id"]: 4000}
        assert rows.exports_of_lanes(connection, [(job_id, 0)]) == {view["id"]: n // 2}
