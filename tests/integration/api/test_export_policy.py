"""Exports under the policy, over REST: judged when they are asked for and when they are made; what the student owes."""

import hashlib
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.db.session import transaction
from app.exporters import signing
from app.policy.rules import PolicyRules
from app.services import export

from .answering import work_off
from .conftest import Made

SHARED = {"redistribution": True}


def make(app: FastAPI, key: bytes | None = None) -> None:
    given = app.state.resources
    assert export.run_next(
        given.engine, given.storage, "w", 60, lambda: False, rules=PolicyRules(), signing_key=key
    )


def job(app: FastAPI, made: Made, teachers: list[str], prompts: list[Any], **more: Any) -> str:
    made_job = made.job(prompt_set=made.prompt_set(prompts)["id"], teachers=teachers, **more)
    work_off(app.state.resources.engine, app.state.resources.storage, made_job["id"], more.get("n", 1))
    return str(made_job["id"])


def exported(app: FastAPI, api: TestClient, spec: dict[str, Any], key: bytes | None = None) -> dict[str, Any]:
    answer = api.post("/v1/exports", json=spec)
    assert answer.status_code == 201, answer.text
    make(app, key)
    found: dict[str, Any] = api.get(f"/v1/exports/{answer.json()['id']}").json()
    assert found["status"] == "completed", found["error"]
    return found


def file(api: TestClient, view: dict[str, Any], name: str) -> bytes:
    answer = api.get(f"/v1/exports/{view['id']}/files/{name}")
    assert answer.status_code == 200
    return answer.content


PROMPTS: list[Any] = [
    {"prompt": "a", "license": "CC-BY-4.0"},
    {"prompt": "b"},
    {"prompt": "c", "license": "MIT"},
]


@pytest.mark.smoke
def test_a_prompt_without_a_licence_is_refused_at_export_by_its_row_and_left_out_on_request(
    app: FastAPI, api: TestClient, made: Made
) -> None:
    made.teacher("small")
    job_id = job(app, made, ["small"], PROMPTS, n=2)
    spec = {"format": "jsonl", "selection": {"jobs": [job_id]}, "intended_use": SHARED}
    refused = api.post("/v1/exports", json=spec)
    assert refused.status_code == 403
    (block,) = [one for one in refused.json()["findings"] if one["severity"] == "block"]
    assert (block["code"], block["example_rows"]) == ("licence-missing", [f"{job_id}/0/1/0/0"])
    assert refused.json()["offer"]["leave_out"] == ["small | NOASSERTION (assumed)"]
    assert 'on_refusal: "drop"' in refused.json()["detail"]
    assert api.get("/v1/exports").json()["items"] == []
    forecast = api.post("/v1/exports", params={"dry_run": True}, json=spec).json()["policy"]
    assert forecast["outcome"] == "block"

    # Never silent: what was left out is named and counted in the view, the manifest and the decision.
    view = exported(app, api, {**spec, "on_refusal": "drop"})
    assert (view["n_rows"], view["left_out"]) == (4, {"small | NOASSERTION (assumed)": 2})
    rows = [line for line in file(api, view, "train-00000.jsonl").splitlines() if line]
    assert len(rows) == 4
    assert b'"prompt_number":1,' not in b"".join(rows)
    manifest = api.get(f"/v1/exports/{view['id']}/files/manifest.json").json()
    policy = manifest["policy"]
    assert policy["n_left_out"] == 2
    assert policy["left_out"][0]["n_rows"] == 2
    assert "NOASSERTION" in policy["left_out"][0]["reasons"][0]
    assert policy["license"] == "other"
    assert policy["license_by_part"] == {"small | CC-BY-4.0": "CC-BY-4.0", "small | MIT": "MIT"}
    assert policy["rows_by_part"] == {"small | CC-BY-4.0": 2, "small | MIT": 2}
    decisions = api.get("/v1/policy/decisions", params={"subject": view["id"]}).json()["items"]
    assert [one["outcome"] for one in decisions] == ["allow", "block"]
    assert view["policy"]["decision"] == policy["decision"] == decisions[0]["id"]
    for one in decisions:
        replay = api.post(f"/v1/policy/decisions/{one['id']}/replay").json()
        assert replay["reproduced"] is True


def test_a_llama_row_gives_the_student_its_name(app: FastAPI, api: TestClient, made: Made) -> None:
    made.teacher("llama", model="meta-llama/Llama-3.3-70B-Instruct")
    made.teacher("small")
    free, llama = (job(app, made, [name], [PROMPTS[0]]) for name in ("small", "llama"))
    spec = {"format": "jsonl", "intended_use": SHARED}
    alone = exported(app, api, {**spec, "selection": {"jobs": [free]}})
    both = exported(app, api, {**spec, "selection": {"jobs": [free, llama]}})
    filtered = exported(app, api, {**spec, "selection": {"jobs": [free, llama], "teachers": ["small"]}})
    notices = [
        api.get(f"/v1/exports/{one['id']}/files/student_notice.json").json()
        for one in (alone, both, filtered)
    ]
    assert [notice["required_name_prefix"] for notice in notices] == [None, "Llama", None]
    assert notices[0]["attributions"][0]["value"] == "CC-BY-4.0"
    text_of_both = file(api, both, "STUDENT_NOTICE.md").decode()
    for said in (
        "must begin with “Llama”",
        "Built with Llama",
        "Llama 3.3 Acceptable Use Policy",
        "CC-BY-4.0",
    ):
        assert said in text_of_both
    manifest = api.get(f"/v1/exports/{both['id']}/files/manifest.json").json()
    assert manifest["student_notice"] == notices[1]
    assert manifest["policy"]["license_by_part"]["llama | CC-BY-4.0"] == (
        "CC-BY-4.0 AND LicenseRef-scancode-llama-3.3-license-2024"
    )
    listed = {one["name"] for one in manifest["files"]}
    assert {"STUDENT_NOTICE.md", "student_notice.json"} <= listed


def test_what_changed_since_the_job_was_made_is_judged_anew(
    app: FastAPI, api: TestClient, made: Made
) -> None:
    made.teacher("ours", model="our-org/model")
    override = made.override(model="our-org/*")
    job_id = job(app, made, ["ours"], [PROMPTS[2]])
    spec = {"format": "jsonl", "selection": {"jobs": [job_id]}}
    # Accepted, and then the contract ends before a worker has come to it.
    waiting = api.post("/v1/exports", json=spec).json()
    api.post(f"/v1/policy/overrides/{override['id']}/revoke", json={"why": "the contract ended"})
    make(app)
    failed = api.get(f"/v1/exports/{waiting['id']}").json()
    assert failed["status"] == "failed"
    assert "no terms are known for our-org/model" in failed["error"]
    assert failed["files"] == []
    newest = api.get("/v1/policy/decisions", params={"subject": waiting["id"]}).json()["items"][0]
    assert newest["outcome"] == "block"
    events = [
        one["action"] for one in api.get("/v1/audit", params={"subject": waiting["id"]}).json()["items"]
    ]
    assert events == ["export.fail", "export.create"]
    assert api.post("/v1/exports", json=spec).status_code == 403
    # Another use than the job's is judged by itself, too.
    made.override(model="our-org/*", terms=["openai-services"])
    competing = {**spec, "intended_use": {"competing": True}}
    assert "3.3(e)" in api.post("/v1/exports", json=competing).json()["detail"]
    assert api.post("/v1/exports", json=spec).status_code == 201


def test_nothing_is_left_to_offer(app: FastAPI, api: TestClient, made: Made) -> None:
    made.teacher("small")
    job_id = job(app, made, ["small"], ["no licence"])
    spec = {"format": "jsonl", "selection": {"jobs": [job_id]}, "on_refusal": "drop"}
    refused = api.post("/v1/exports", json=spec)
    assert refused.status_code == 403
    assert refused.json()["offer"] is None
    assert "No row of this selection would be left" in refused.json()["detail"]


def test_a_manifest_is_signed_and_one_flipped_byte_is_found(
    app: FastAPI, api: TestClient, made: Made
) -> None:
    made.teacher("small")
    private = signing.new_private_key()
    public = signing.public_key_of(private)
    job_id = job(app, made, ["small"], [PROMPTS[2]])
    view = exported(app, api, {"format": "jsonl", "selection": {"jobs": [job_id]}}, private)
    manifest, envelope = file(api, view, "manifest.json"), file(api, view, "manifest.dsse.json")
    signed = signing.verify(envelope, manifest, public)
    for name, sha256 in signed.items():
        assert hashlib.sha256(file(api, view, name)).hexdigest() == sha256
    assert set(signed) == {one["name"] for one in view["files"]} - {"manifest.dsse.json"}
    told = api.get(f"/v1/exports/{view['id']}/files/manifest.json").json()
    assert told["signed_by"] == signing.key_id(public)
    # The manifest is an anchor of the audit log.
    anchor = f"{told['audit']['sequence']}:{told['audit']['hash']}"
    assert api.get("/v1/audit/verify", params={"anchor": anchor}).json()["anchors_checked"] == 1
    assert (
        api.get("/v1/audit", params={"subject": view["id"]}).json()["items"][0]["detail"]["manifest_sha256"]
        == hashlib.sha256(manifest).hexdigest()
    )


def test_which_rows_are_in_an_export_is_known(app: FastAPI, api: TestClient, made: Made) -> None:
    made.teacher("small")
    prompts: list[Any] = [{"prompt": f"p{n}", "license": "MIT" if n % 2 else "CC0-1.0"} for n in range(20)]
    job_id = job(app, made, ["small"], prompts, n=2)
    spec = {
        "format": "jsonl",
        "selection": {"jobs": [job_id], "prompt_licenses": ["MIT"]},
        "file_size": {"rows": 7},
    }
    view = exported(app, api, spec)
    with transaction(app.state.resources.engine) as connection:
        rows = connection.execute(text("SELECT file, sample_index, n_rows FROM export_member")).all()
    assert sum(row.n_rows for row in rows) == view["n_rows"] == 20
    assert {row.sample_index for row in rows} == {0, 1}
    assert len({row.file for row in rows}) == 3
    api.delete(f"/v1/exports/{view['id']}")
    with transaction(app.state.resources.engine) as connection:  # students may have been trained on it
        assert connection.execute(text("SELECT sum(n_rows) FROM export_member")).scalar() == 20


def test_a_teacher_that_moves_on_does_not_leave_its_hosts_terms_behind(
    app: FastAPI, api: TestClient, made: Made
) -> None:
    made.teacher("moved", base_url="https://api.openai.com/v1")
    job_id = job(app, made, ["moved"], [PROMPTS[2]])
    competing = {"format": "jsonl", "selection": {"jobs": [job_id]}, "intended_use": {"competing": True}}
    assert "3.3(e)" in api.post("/v1/exports", json=competing).json()["detail"]
    for address in ("https://api.openai.com/v2", "http://127.0.0.1:9/v1", "http://127.0.0.2:9/v1"):
        assert api.patch("/v1/teachers/moved", json={"base_url": address}).status_code == 200
    api.patch("/v1/teachers/moved", json={"max_in_flight": 3})
    refused = api.post("/v1/exports", json=competing).json()
    assert "3.3(e)" in refused["detail"]
    (moved,) = [one for one in refused["findings"] if one["code"] == "route-mismatch"]
    assert "its address once belonged to OpenAI API" in moved["message"]
    # Neither does one whose further addresses are taken away again, whenever they were named.
    made.teacher("many", replicas=["https://api.openai.com/v1"])
    made.teacher("more")
    api.patch("/v1/teachers/more", json={"replicas": ["https://api.openai.com/v1"]})
    for name in ("many", "more"):
        assert api.patch(f"/v1/teachers/{name}", json={"replicas": []}).json()["replicas"] == []
    # New rows may be made anywhere by now: another teacher says where.
    made.teacher("settled")
    use = {"intended_use": {"competing": True}, "licenses": ["MIT"]}
    outcomes = [
        api.post("/v1/policy/evaluate", json={"teachers": [name], **use}).json()["outcome"]
        for name in ("moved", "many", "more", "settled")
    ]
    assert outcomes == ["block", "block", "block", "allow"]
