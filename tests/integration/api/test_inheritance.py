"""Students that became teachers, over REST: the terms of what they were trained on bind the rows that they make."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.db.session import transaction

from .conftest import Made
from .test_export_policy import exported, file
from .test_lineage import job

PROMPTS = [{"prompt": "a", "license": "CC0-1.0"}, {"prompt": "b", "license": "CC0-1.0"}]
COMPETING = {"competing": True}


def first_generation(app: FastAPI, api: TestClient, made: Made, **teacher: Any) -> str:
    """The id of an export of rows by this teacher."""
    made.teacher("first", **teacher)
    job_id = job(app, made, made.prompt_set(PROMPTS)["id"], ["first"])
    return str(exported(app, api, {"format": "jsonl", "selection": {"jobs": [job_id]}})["id"])


@pytest.mark.smoke
def test_a_student_does_not_launder_what_it_was_trained_on(app: FastAPI, api: TestClient, made: Made) -> None:
    export = first_generation(
        app, api, made, model="gpt-4o-mini", access_route="openai-api", base_url="https://api.openai.com/v1"
    )
    set_id = made.prompt_set(PROMPTS)["id"]
    made.teacher("student", trained_on=[export])
    body = {"prompt_set": set_id, "teachers": ["student"]}
    refused = api.post("/v1/jobs", json={**body, "intended_use": COMPETING})
    assert refused.status_code == 403
    (block,) = [one for one in refused.json()["findings"] if one["severity"] == "block"]
    assert (block["section"], block["teachers"], block["rows"]) == ("3.3(e)", ["student"], 2)
    assert f"Teacher student was trained on rows of export {export}." in refused.json()["detail"]
    asked = {"teachers": ["student"], "licenses": ["CC0-1.0"], "intended_use": COMPETING}
    assert api.post("/v1/policy/evaluate", json=asked).json()["outcome"] == "block"
    replay = api.post(f"/v1/policy/decisions/{refused.json()['decision_id']}/replay").json()
    assert (replay["reproduced"], replay["outcome_now"]) == (True, "block")

    # What was said when the job was submitted holds for its rows, even if it is unsaid later.
    job_id = job(app, made, set_id, ["student"])
    unsaid = api.patch("/v1/teachers/student", json={"trained_on": []}).json()
    assert unsaid["trained_on"] == []
    (changed,) = [one for one in api.get("/v1/audit").json()["items"] if one["action"] == "teacher.change"]
    assert changed["detail"] == {"fields": ["trained_on"], "trained_on": []}
    spec = {"format": "jsonl", "selection": {"jobs": [job_id]}}
    again = api.post("/v1/exports", json={**spec, "intended_use": COMPETING})
    assert (again.status_code, "3.3(e)" in again.json()["detail"]) == (403, True)
    assert api.post("/v1/exports/stream", json={**spec, "intended_use": COMPETING}).status_code == 403
    view = exported(app, api, spec)
    manifest = api.get(f"/v1/exports/{view['id']}/files/manifest.json").json()
    assert manifest["jobs"][0]["teachers"][0]["trained_on"] == [export]
    assert any(f"export {export}" in warning for warning in manifest["policy"]["warnings"])
    origin = api.get("/v1/lineage/row", params={"row_id": f"{job_id}/0/0/0/0"}).json()["teacher"]
    assert origin["trained_on"] == [export]
    assert "openai-services" in origin["terms"]


def test_what_becomes_known_later_binds_rows_that_are_there(
    app: FastAPI, api: TestClient, made: Made
) -> None:
    export = first_generation(app, api, made, model="meta-llama/Llama-3.3-70B-Instruct")
    made.teacher("student")
    job_id = job(app, made, made.prompt_set(PROMPTS)["id"], ["student"])
    spec = {"format": "jsonl", "selection": {"jobs": [job_id]}}

    def prefix(view: dict[str, Any]) -> str | None:
        notice = api.get(f"/v1/exports/{view['id']}/files/student_notice.json").json()
        found: str | None = notice["required_name_prefix"]
        return found

    assert prefix(exported(app, api, spec)) is None
    api.patch("/v1/teachers/student", json={"trained_on": [export]})
    second = exported(app, api, spec)
    assert prefix(second) == "Llama"
    assert "must begin with “Llama”" in file(api, second, "STUDENT_NOTICE.md").decode()
    # The next generation knows it by that export, wherever the first teacher is by now.
    made.teacher("grandchild", trained_on=[second["id"]])
    third = job(app, made, made.prompt_set(PROMPTS)["id"], ["grandchild"])
    assert prefix(exported(app, api, {"format": "jsonl", "selection": {"jobs": [third]}})) == "Llama"


def test_an_export_that_nobody_judged_says_nothing_and_blocks(
    app: FastAPI, api: TestClient, made: Made
) -> None:
    export = first_generation(app, api, made)
    made.teacher("student", trained_on=[export])
    with transaction(app.state.resources.engine) as connection:
        connection.execute(text("UPDATE export SET policy_decision_id = NULL"))
    refused = api.post(
        "/v1/jobs", json={"prompt_set": made.prompt_set(PROMPTS)["id"], "teachers": ["student"]}
    )
    assert refused.status_code == 403
    assert [one["code"] for one in refused.json()["findings"]] == ["training-data-unknown"]
