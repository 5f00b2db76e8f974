"""The policy over REST: jobs are judged when they are submitted; decisions are kept and replayed; overrides."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.db.session import transaction

from .conftest import Made

CLAUSE = (
    "use Output to develop artificial intelligence models that compete with OpenAI’s products and services"
)


def gpt(made: Made, **more: Any) -> None:
    made.teacher("gpt", model="gpt-4o-mini", access_route="openai-api", license=None, **more)


def asked(made: Made, teacher: str = "gpt", **more: Any) -> dict[str, Any]:
    return {"prompt_set": made.prompt_set()["id"], "teachers": [teacher], **more}


@pytest.mark.smoke
def test_a_competing_use_of_openai_is_refused_with_its_clause_and_kept(api: TestClient, made: Made) -> None:
    gpt(made)
    body = asked(made, intended_use={"competing": True, "commercial": True, "research": False})
    answer = api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "once"})
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "urn:retort:problem:policy-refusal"
    (block,) = [one for one in problem["findings"] if one["severity"] == "block"]
    assert (block["code"], block["section"], block["teachers"], block["rows"]) == (
        "competing-forbidden",
        "3.3(e)",
        ["gpt"],
        3,
    )
    for said in ("3.3(e)", CLAUSE, "override"):
        assert said in problem["detail"]
    assert CLAUSE in block["clause"]
    assert block["document_sha256"]
    assert api.get("/v1/jobs").json()["items"] == []

    # The refusal is a decision like any other, with its inputs, and it is in the log.
    kept = api.get(f"/v1/policy/decisions/{problem['decision_id']}").json()
    assert (kept["outcome"], kept["moment"], kept["subject"]) == ("block", "creation", None)
    assert kept["decision"]["inputs"]["use"]["competing"] is True
    (event,) = api.get("/v1/audit", params={"subject": problem["decision_id"]}).json()["items"]
    assert (event["action"], event["detail"]["codes"]) == ("policy.refuse", ["competing-forbidden"])
    # A refusal is no answer to remember: with the cause mended, the same request goes through.
    made.override(model="gpt-*", route="openai-api", replaces="host", terms=["openai-services"])
    assert api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "once"}).status_code == 403
    made.override(model="gpt-4o-mini", route="openai-api")
    job = api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "once"})
    assert job.status_code == 201


@pytest.mark.parametrize("prompts", [[], [{"prompt": "a", "license": "CC0-1.0", "teacher": "small"}]])
def test_a_teacher_is_judged_before_the_first_prompt_for_it_comes(
    api: TestClient, made: Made, prompts: list[Any]
) -> None:
    gpt(made)
    made.teacher("small")
    set_id = api.post("/v1/prompt-sets", json={"name": "open"}).json()["id"]
    if prompts:
        api.post(f"/v1/prompt-sets/{set_id}/prompts", json={"prompts": prompts})
    body = {"prompt_set": set_id, "teachers": ["small", "gpt"], "follow": True}
    refused = api.post("/v1/jobs", json={**body, "intended_use": {"competing": True}})
    assert refused.status_code == 403
    (block,) = [one for one in refused.json()["findings"] if one["severity"] == "block"]
    assert (block["section"], block["teachers"]) == ("3.3(e)", ["gpt"])
    assert "rows" not in block
    forecast = api.post(
        "/v1/jobs", params={"dry_run": True}, json={**body, "intended_use": {"competing": True}}
    )
    assert forecast.json()["policy"]["outcome"] == "block"
    job = api.post("/v1/jobs", json=body)
    assert job.status_code == 201
    assert any("NOASSERTION" in warning for warning in job.json()["policy"]["warnings"])


def test_a_study_of_openai_is_accepted_with_a_warning_that_stays(api: TestClient, made: Made) -> None:
    gpt(made)
    body = asked(made)
    forecast = api.post("/v1/jobs", params={"dry_run": True}, json=body).json()["policy"]
    assert forecast["outcome"] == "allow-with-warnings"
    assert {one["code"] for one in forecast["findings"]} == {"condition", "licence-missing"}
    job = api.post("/v1/jobs", json=body).json()
    for found in (job, api.get(f"/v1/jobs/{job['id']}").json(), api.get("/v1/jobs").json()["items"][0]):
        assert found["policy"]["outcome"] == "allow-with-warnings"
        assert any("Permitted Exception" in warning for warning in found["policy"]["warnings"])
        assert any("NOASSERTION" in warning for warning in found["policy"]["warnings"])
    (kept,) = api.get("/v1/policy/decisions", params={"subject": job["id"]}).json()["items"]
    assert kept["id"] == job["policy"]["decision"]


def test_a_dry_run_shows_a_refusal_and_refuses_nothing(api: TestClient, made: Made) -> None:
    gpt(made)
    made.teacher("small")
    body = asked(made) | {"teachers": ["gpt", "small"], "intended_use": {"competing": True}}
    answer = api.post("/v1/jobs", params={"dry_run": True}, json=body)
    assert answer.status_code == 200
    policy = answer.json()["policy"]
    assert policy["outcome"] == "block"
    assert policy["offer"]["keep"] == ["small | NOASSERTION (assumed)"]
    assert policy["offer"]["rows_left_out"] == 3
    assert api.get("/v1/policy/decisions").json()["items"] == []


def test_licences_of_prompts_are_judged_by_their_rows(api: TestClient, made: Made) -> None:
    made.teacher("small")
    made.teacher("other")
    prompts: list[Any] = [
        {"prompt": "a", "license": "CC0-1.0"},
        {"prompt": "b", "license": "CC-BY-NC-4.0"},
        {"prompt": "c", "license": "cc-by-nc-4.0", "teacher": "other"},
        {"prompt": "d"},
    ]
    body = {
        "prompt_set": made.prompt_set(prompts)["id"],
        "teachers": ["small", "other"],
        "intended_use": {"commercial": True, "research": False},
    }
    answer = api.post("/v1/jobs", json=body)
    assert answer.status_code == 403
    (block,) = [one for one in answer.json()["findings"] if one["severity"] == "block"]
    assert (block["code"], block["prompt_licenses"]) == ("commerce-forbidden", ["CC-BY-NC-4.0"])
    assert block["rows"] == 3  # prompt 1 by both teachers, prompt 2 by the one that it asks for
    assert block["example_rows"] == ["prompt 1", "prompt 2"]
    assert {one["parts"][0] for one in answer.json()["findings"] if one["code"] == "licence-missing"} == {
        "other | NOASSERTION (assumed)"
    }


def test_an_invalid_expression_is_a_row_error_and_a_default_is_noted(api: TestClient, made: Made) -> None:
    api.patch("/v1/project", json={"default_license": "CC-BY-4.0"})
    set_id = api.post("/v1/prompt-sets", json={"name": "x"}).json()["id"]
    rows = [{"prompt": "a", "license": "CC-BY"}, {"prompt": "b"}, {"prompt": "c", "license": "MIT OR"}]
    appended = api.post(
        f"/v1/prompt-sets/{set_id}/prompts", params={"seal": True}, json={"prompts": rows}
    ).json()
    assert [(one["line"], one["kind"]) for one in appended["errors"]] == [
        (1, "invalid-license"),
        (3, "invalid-license"),
    ]
    made.teacher("small")
    job = api.post("/v1/jobs", json={"prompt_set": set_id, "teachers": ["small"]}).json()
    assert job["policy"]["outcome"] == "allow"
    decision = api.get(f"/v1/policy/decisions/{job['policy']['decision']}").json()["decision"]
    assert [one["code"] for one in decision["findings"]] == ["licence-assumed"]
    assert decision["license"]["license"] == "CC-BY-4.0"


def test_parts_are_counted_over_appends_and_where_an_older_version_added_prompts(
    app: FastAPI, api: TestClient, made: Made
) -> None:
    set_id = made.prompt_set([{"prompt": "a", "license": "MIT"}, "b"], seal=False)["id"]
    rows = {"prompts": [{"prompt": "c", "license": "MIT"}]}
    api.post(f"/v1/prompt-sets/{set_id}/prompts", params={"seal": True}, json=rows)
    made.teacher("small")
    body = {"prompt_set": set_id, "teachers": ["small"]}

    def counted() -> list[tuple[str, int]]:
        job = api.post("/v1/jobs", json=body).json()
        decision = api.get(f"/v1/policy/decisions/{job['policy']['decision']}").json()["decision"]
        return [(part["prompt_license"], part["rows"]) for part in decision["parts"]]

    assert counted() == [("MIT", 2), ("NOASSERTION", 1)]
    with transaction(app.state.resources.engine) as connection:
        connection.execute(text("DELETE FROM prompt_part WHERE license = 'MIT'"))
    assert counted() == [("MIT", 2), ("NOASSERTION", 1)]


def test_an_unknown_model_is_refused_until_somebody_answers_for_it(api: TestClient, made: Made) -> None:
    made.teacher("ours", model="our-org/tuned-llama")
    body = asked(made, "ours")
    refused = api.post("/v1/jobs", json=body)
    assert refused.status_code == 403
    assert "our-org/tuned-llama" in refused.json()["detail"]
    override = made.override(model="our-org/*", route="weights", replaces="model", terms=["llama-3.3"])
    assert override["in_force"]
    job = api.post("/v1/jobs", json=body).json()
    decision = api.get(f"/v1/policy/decisions/{job['policy']['decision']}").json()["decision"]
    (note,) = [one for one in decision["findings"] if one["code"] == "override-applied"]
    assert "dana@example.org: made for a test" in note["message"]
    assert decision["inputs"]["overrides"][0]["id"] == override["id"]

    path = f"/v1/policy/overrides/{override['id']}"
    assert api.post(f"{path}/revoke", json={}).status_code == 422  # why?
    gone = api.post(f"{path}/revoke", json={"why": "no longer ours"}).json()
    again = api.post(f"{path}/revoke", json={"why": "something else"}).json()
    assert gone["revoked_why"] == again["revoked_why"] == "no longer ours"
    assert not gone["in_force"]
    assert api.post("/v1/jobs", json=body).status_code == 403
    # The decision that was made with it replays with it: what a decision was made from is a part of it.
    replay = api.post(f"/v1/policy/decisions/{job['policy']['decision']}/replay").json()
    assert (replay["same_policy"], replay["reproduced"], replay["new"], replay["gone"]) == (
        True,
        True,
        [],
        [],
    )
    assert [
        one["action"] for one in api.get("/v1/audit", params={"subject": override["id"]}).json()["items"]
    ] == [
        "override.revoke",
        "override.revoke",
        "override.record",
    ]


def test_terms_named_at_registration_hold_with_a_warning(api: TestClient, made: Made) -> None:
    wrong = {"name": "x", "driver": "openai", "model": "m", "terms_id": "llama-9"}
    answer = api.post("/v1/teachers", json=wrong)
    assert answer.status_code == 422
    assert "llama-3.3" in answer.json()["detail"]
    made.teacher("ours", model="our-org/model", terms_id="llama-3.3")
    job = made.job(teachers=["ours"])
    assert job["policy"]["outcome"] == "allow-with-warnings"
    assert any("named at registration" in warning for warning in job["policy"]["warnings"])
    decision = api.get(f"/v1/policy/decisions/{job['policy']['decision']}").json()["decision"]
    assert any(one["value"] == "Llama" for one in decision["permissions"]["obligations"])


def test_a_decision_of_another_policy_is_told_apart(app: FastAPI, api: TestClient, made: Made) -> None:
    decision = made.job()["policy"]["decision"]
    with transaction(app.state.resources.engine) as connection:
        row = "SELECT body FROM policy_decision WHERE id = :id"
        body: str = connection.execute(text(row), {"id": decision}).scalar_one()
        digest = body.split('"policy_digest":"')[1][:64]
        connection.execute(
            text("UPDATE policy_decision SET body = :body WHERE id = :id"),
            {"id": decision, "body": body.replace(digest, "0" * 64)},
        )
    replay = api.post(f"/v1/policy/decisions/{decision}/replay").json()
    assert (replay["same_policy"], replay["reproduced"]) == (False, None)
    assert replay["outcome_then"] == replay["outcome_now"] == "allow-with-warnings"


def test_what_a_replay_finds_where_a_stored_decision_was_changed(
    app: FastAPI, api: TestClient, made: Made
) -> None:
    decision = made.job()["policy"]["decision"]
    with transaction(app.state.resources.engine) as connection:
        connection.execute(
            text("UPDATE policy_decision SET body = replace(body, 'licence-missing', 'licence-assumed')")
        )
    replay = api.post(f"/v1/policy/decisions/{decision}/replay").json()
    assert (replay["same_policy"], replay["reproduced"]) == (True, False)
    assert [one["code"] for one in replay["gone"]] == ["licence-assumed"]


def test_the_policy_can_be_read_and_asked(api: TestClient, made: Made) -> None:
    policy = api.get("/v1/policy").json()
    assert "llama-3.3" in policy["terms"]
    assert policy["rules"]["stale_after_days"] == 180
    terms = api.get("/v1/policy/terms/openai-services").json()
    assert any(CLAUSE in (one["clause"] or "") for one in terms["provisions"])
    assert api.get("/v1/policy/terms/nothing").status_code == 404
    made.teacher("small")
    gpt(made)
    body = {"teachers": ["small", "gpt"], "licenses": ["CC-BY-SA-4.0"], "intended_use": {"competing": True}}
    forecast = api.post("/v1/policy/evaluate", json=body).json()
    assert (forecast["outcome"], forecast["offer"]["leave_out"]) == ("block", ["gpt | CC-BY-SA-4.0"])
    assert api.post("/v1/policy/evaluate", json={"teachers": ["nobody"]}).status_code == 422
    assert api.post("/v1/policy/evaluate", json={**body, "licenses": ["CC-BY"]}).status_code == 422


def test_who_may_record_overrides(app: FastAPI, api: TestClient, made: Made) -> None:
    body = {"kind": "terms", "terms": ["llama-3.3"], "who": "x", "why": "y"}
    writer = {"Authorization": f"Bearer {made.key('writer')}"}
    assert api.post("/v1/policy/overrides", json=body, headers=writer).status_code == 403
    for wrong in (
        {**body, "terms": ["none-such"]},
        {**body, "who": ""},
        {**body, "contract": {}},
        {"kind": "license", "license_id": "MIT", "who": "x", "why": "y"},
        {**body, "kind": "other"},
    ):
        assert api.post("/v1/policy/overrides", json=wrong).status_code == 422, wrong
    other = api.post("/v1/projects", json={"name": "other"}).json()["admin_key"]["secret"]
    override = made.override()
    stranger = {"Authorization": f"Bearer {other}"}
    assert api.get(f"/v1/policy/overrides/{override['id']}", headers=stranger).status_code == 404
    assert api.get("/v1/policy/overrides", headers=stranger).json()["items"] == []
