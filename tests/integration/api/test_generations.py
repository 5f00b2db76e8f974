"""Students that were trained on an export, and teachers that were students."""

from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.testclient import TestClient

from .conftest import Made
from .test_export_policy import exported, file
from .test_lineage import job


def rows(api: TestClient, export: dict[str, Any]) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in file(api, export, "train-00000.jsonl").splitlines()]


def test_what_was_trained_on_an_export_is_recorded(app: FastAPI, api: TestClient, made: Made) -> None:
    made.teacher("small")
    set_id = made.prompt_set([{"prompt": "a", "license": "CC0-1.0"}])["id"]
    first = job(app, made, set_id, ["small"])
    export = exported(app, api, {"format": "jsonl", "selection": {"jobs": [first]}})
    told = {"student": "me/student", "revision": "abc", "run": "https://example.org/7", "note": "two epochs"}
    answer = api.post(f"/v1/exports/{export['id']}/uses", json=told, headers={"Idempotency-Key": "once"})
    assert answer.status_code == 201
    assert answer.json().items() >= told.items()
    again = api.post(f"/v1/exports/{export['id']}/uses", json=told, headers={"Idempotency-Key": "once"})
    assert again.json() == answer.json()
    api.post(f"/v1/exports/{export['id']}/uses", json={"student": "me/other"})
    api.delete(f"/v1/exports/{export['id']}")  # students outlive files
    listed = api.get(f"/v1/exports/{export['id']}/uses").json()["items"]
    assert [one["student"] for one in listed] == ["me/other", "me/student"]
    assert api.get("/v1/exports/exp_none/uses").status_code == 404
    assert api.post("/v1/exports/exp_none/uses", json={"student": "x"}).status_code == 404
    assert api.post(f"/v1/exports/{export['id']}/uses", json={"student": ""}).status_code == 422
    assert any(one["action"] == "export.use" for one in api.get("/v1/audit").json()["items"])


def test_generations_are_counted_through_students_that_became_teachers(
    app: FastAPI, api: TestClient, made: Made
) -> None:
    set_id = made.prompt_set([{"prompt": "a", "license": "CC0-1.0"}, {"prompt": "b", "license": "CC0-1.0"}])[
        "id"
    ]
    made.teacher("first")
    depths: list[int] = []
    exports: list[dict[str, Any]] = []
    for name in ("first", "second", "third"):
        if name != "first":
            made.teacher(name, trained_on=[exports[-1]["id"]])
        job_id = job(app, made, set_id, [name])
        depths.append(api.get(f"/v1/jobs/{job_id}").json()["teachers"][0]["generation_depth"])
        exports.append(exported(app, api, {"format": "jsonl", "selection": {"jobs": [job_id]}}))
    assert depths == [0, 1, 2]
    assert [{row["generation_depth"] for row in rows(api, export)} for export in exports] == [{0}, {1}, {2}]
    card = file(api, exports[2], "README.md").decode()
    assert "| third | third |" in card or "| third |" in card
    assert "| 2 | 2 |" in card  # depth and rows of the third teacher

    # Only the teachers whose rows an export took count.
    both = job(app, made, set_id, ["first", "third"])
    of_first = exported(app, api, {"format": "jsonl", "selection": {"jobs": [both], "teachers": ["first"]}})
    of_both = exported(app, api, {"format": "jsonl", "selection": {"jobs": [both]}})
    assert {row["generation_depth"] for row in rows(api, of_both)} == {0, 2}
    changed = api.patch("/v1/teachers/second", json={"trained_on": [of_first["id"], of_both["id"]]}).json()
    assert changed["trained_on"] == [of_first["id"], of_both["id"]]
    deeper = job(app, made, set_id, ["second"])
    assert api.get(f"/v1/jobs/{deeper}").json()["teachers"][0]["generation_depth"] == 3

    refused = api.patch("/v1/teachers/second", json={"trained_on": ["exp_none"]})
    assert (refused.status_code, "exp_none" in refused.json()["detail"]) == (422, True)
