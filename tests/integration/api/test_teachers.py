"""Teachers: registered after a check, changed, probed, deleted where nothing needs them."""

from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.errors import TeacherRefusedKey
from app.teachers.base import Capabilities, Teacher, TeacherSpec

from .conftest import Canned, Made

TEACHER = {"name": "t", "driver": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}


def test_register_read_list(api: TestClient, made: Made) -> None:
    full = {
        "name": "qwen",
        "driver": "vllm",
        "model": "Qwen/Qwen3-8B",
        "revision": "abc",
        "access_route": "weights",
        "base_url": "http://127.0.0.1:8000/v1",
        "secret_ref": "env:A_KEY",
        "license": "apache-2.0",
        "terms_id": None,
        "options": {"a": [1]},
        "max_in_flight": 12,
    }
    answer = api.post("/v1/teachers", json=full)
    assert answer.status_code == 201
    teacher = answer.json()
    assert {name: teacher[name] for name in full} == {**full, "license": "Apache-2.0"}
    assert (teacher["capabilities"], teacher["probed_at"], teacher["identity"]) == (None, None, None)
    for known in ("qwen", teacher["id"]):
        assert api.get(f"/v1/teachers/{known}").json() == teacher
    for name in ("b", "a", "z"):
        made.teacher(name)
    first = api.get("/v1/teachers", params={"limit": 2}).json()
    second = api.get("/v1/teachers", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [one["name"] for one in first["items"] + second["items"]] == ["a", "b", "qwen", "z"]
    assert second["next_cursor"] is None


def test_what_is_no_teacher(api: TestClient) -> None:
    changes: list[dict[str, Any]] = [
        {"name": "two words"},
        {"base_url": "ftp://x"},
        {"secret_ref": "sk-1234"},
        {"license": "mine"},
        {"max_in_flight": 0},
        {"secret": "sk-1234"},
    ]
    for change in changes:
        answer = api.post("/v1/teachers", json=TEACHER | change)
        assert answer.status_code == 422, change
        assert [fault["pointer"] for fault in answer.json()["errors"]] == [f"#/{name}" for name in change]
        assert "sk-1234" not in answer.text
    for wrong in ("sk-1234", "env:A_KEY\n", "env:", "file:relative"):
        answer = api.post("/v1/teachers", json=TEACHER | {"name": "wrong", "secret_ref": wrong})
        assert "`env:NAME` or `file:/path`, never the secret itself" in answer.json()["detail"]


def test_a_name_is_taken_once(api: TestClient) -> None:
    assert api.post("/v1/teachers", json=TEACHER).status_code == 201
    answer = api.post("/v1/teachers", json=TEACHER)
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:retort:problem:conflict")


def test_an_unknown_driver_names_the_known_ones(real_api: TestClient) -> None:
    answer = real_api.post("/v1/teachers", json=TEACHER | {"driver": "oracle"})
    assert answer.status_code == 422
    assert "embedded, openai" in answer.json()["detail"]


def test_an_address_that_may_not_be_called(real_api: TestClient) -> None:
    for address in ("http://169.254.169.254/latest", "http://10.0.0.1/v1", "http://[fe80::1]/v1"):
        answer = real_api.post("/v1/teachers", json=TEACHER | {"base_url": address})
        assert answer.status_code == 422, address
    assert real_api.post("/v1/teachers", json=TEACHER).status_code == 201
    answer = real_api.patch("/v1/teachers/t", json={"base_url": "http://169.254.169.254/latest"})
    assert answer.status_code == 422
    assert real_api.get("/v1/teachers/t").json()["base_url"] == TEACHER["base_url"]


def test_a_secret_that_only_the_worker_can_read_is_no_fault(app: FastAPI, api: TestClient) -> None:
    def refuse(spec: TeacherSpec) -> Teacher:
        raise TeacherRefusedKey("the secret is not in this process")

    app.state.resources = replace(app.state.resources, open_teacher=refuse)
    assert api.post("/v1/teachers", json=TEACHER | {"secret_ref": "env:ELSEWHERE"}).status_code == 201
    answer = api.post("/v1/teachers/t/probe")
    assert (answer.status_code, answer.json()["type"]) == (502, "urn:retort:problem:teacher-refused-key")


def test_change(api: TestClient) -> None:
    api.post("/v1/teachers", json=TEACHER | {"options": {"a": 1}, "license": "MIT"})
    changed = api.patch("/v1/teachers/t", json={"max_in_flight": 3, "license": None}).json()
    assert (changed["max_in_flight"], changed["license"], changed["options"]) == (3, None, {"a": 1})
    assert api.patch("/v1/teachers/t", json={"model": "other"}).status_code == 422
    assert api.patch("/v1/teachers/t", json={}).json() == changed


def test_delete_only_what_nothing_needs(api: TestClient, made: Made) -> None:
    made.teacher("used")
    made.teacher("unused")
    job = made.job(teachers=["used"])["id"]
    answer = api.delete("/v1/teachers/used")
    assert (answer.status_code, job in answer.json()["detail"]) == (409, True)
    assert api.delete("/v1/teachers/unused").status_code == 204
    assert api.get("/v1/teachers/unused").status_code == 404


def test_a_probe_is_kept(app: FastAPI, api: TestClient) -> None:
    api.post("/v1/teachers", json=TEACHER)
    found = Capabilities(
        reachable=True, engine="vllm 0.32.0", served_model="m", max_top_logprobs=20, token_ids=True
    )
    app.state.resources = replace(app.state.resources, open_teacher=lambda spec: Canned(found))
    probed = api.post("/v1/teachers/t/probe").json()
    assert (probed["capabilities"]["max_top_logprobs"], probed["capabilities"]["token_ids"]) == (20, True)
    assert len(probed["identity"]) == 64
    assert probed["probed_at"] is not None
    assert api.get("/v1/teachers/t").json() == probed
    # A teacher that does not answer is an answer, and does not become another one.
    silent = Capabilities(reachable=False, problems=("nothing answers",))
    app.state.resources = replace(app.state.resources, open_teacher=lambda spec: Canned(silent))
    again = api.post("/v1/teachers/t/probe").json()
    assert (again["capabilities"]["reachable"], again["capabilities"]["problems"]) == (
        False,
        ["nothing answers"],
    )
    assert again["identity"] == probed["identity"]


def test_no_transaction_is_open_while_a_teacher_is_asked(app: FastAPI, api: TestClient) -> None:
    engine = app.state.resources.engine
    api.post("/v1/teachers", json=TEACHER)
    seen: list[str] = []

    class Writes(Canned):
        async def capabilities(self) -> Capabilities:
            with engine.connect().execution_options(writes=True) as connection:
                connection.execute(text("UPDATE teacher SET model = 'changed meanwhile'"))
                connection.commit()
            seen.append("written")
            return Capabilities(reachable=True)

    app.state.resources = replace(
        app.state.resources, open_teacher=lambda spec: Writes(Capabilities(reachable=True))
    )
    assert api.post("/v1/teachers/t/probe").json()["model"] == "changed meanwhile"
    assert seen == ["written"]


def test_what_a_teacher_does_not_take_is_refused_before_a_job_begins(
    app: FastAPI, api: TestClient, made: Made
) -> None:
    refusing = Canned(Capabilities(reachable=True, refuses=("temperature", "seed")))
    app.state.resources = replace(app.state.resources, open_teacher=lambda spec: refusing)
    made.teacher("o4")
    api.post("/v1/teachers/o4/probe")
    job = {"prompt_set": made.prompt_set()["id"], "teachers": ["o4"]}
    answer = api.post("/v1/jobs", json={**job, "sampling": {"temperature": 0.2, "max_tokens": 9}})
    assert answer.status_code == 422, answer.text
    assert "takes no temperature" in answer.json()["detail"]
    for sampling in ({}, {"temperature": None, "seed": 3}):
        assert api.post("/v1/jobs", json={**job, "sampling": sampling}).status_code == 201


def test_what_a_teacher_costs(api: TestClient, made: Made) -> None:
    unknown = made.teacher("own")
    assert unknown["price"] is None
    rates = [{"input": 0.5, "output": "1.5"}, {"input": 0.25, "output": 0.75, "batch": True}]
    own = api.patch("/v1/teachers/own", json={"price": rates}).json()
    assert own["price"]["source"] == "teacher"
    assert [rate["input"] for rate in own["price"]["rates"]] == ["0.5", "0.25"]
    job = made.job(prompt_set=made.prompt_set()["id"], teachers=["own"])
    assert job["teachers"][0]["price"] == own["price"]
    assert (job["counts"]["cost_usd"], job["counts"]["unpriced"]) == (0, 0)
    # The price of a job is the one that held when it was submitted.
    api.patch("/v1/teachers/own", json={"price": None})
    assert api.get("/v1/teachers/own").json()["price"] is None
    assert api.get(f"/v1/jobs/{job['id']}").json()["teachers"][0]["price"] == own["price"]
    published = api.post(
        "/v1/teachers",
        json={
            "name": "mini",
            "driver": "openai",
            "model": "gpt-4o-mini",
            "access_route": "openai-api",
            "options": {"provider": "openai"},
        },
    )
    assert published.json()["price"]["source"].startswith("genai-prices ")
    assert api.patch("/v1/teachers/own", json={"price": [{"input": -1, "output": 1}]}).status_code == 422


def test_limits_and_replicas_are_set_changed_and_read(real_api: TestClient) -> None:
    body = {
        "name": "farm",
        "driver": "openai",
        "model": "m",
        "base_url": "http://127.0.0.1:8000/v1",
        "replicas": ["http://127.0.0.1:8001/v1"],
        "max_requests_per_minute": 60,
        "max_output_tokens_per_minute": 1000,
    }
    made = real_api.post("/v1/teachers", json=body).json()
    assert made["replicas"] == body["replicas"]
    changed = real_api.patch("/v1/teachers/farm", json={"max_requests_per_minute": 30, "replicas": []}).json()
    assert (changed["max_requests_per_minute"], changed["replicas"]) == (30, [])
    read = real_api.get("/v1/teachers/farm/load").json()
    assert read["servers"] == []
    assert (read["rates"]["requests_per_minute"], read["rates"]["input_tokens_per_minute"]) == (30, None)
    assert read["rates"]["output_tokens_per_minute"] == 1000
    forbidden = real_api.patch("/v1/teachers/farm", json={"replicas": ["http://169.254.169.254/v1"]})
    assert forbidden.status_code == 422, "each address is judged"
    twice = real_api.patch("/v1/teachers/farm", json={"replicas": [body["base_url"]]})
    assert "each address once" in twice.json()["detail"]
