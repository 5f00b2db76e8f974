"""`Idempotency-Key`: one request, however often it is sent."""

from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.api.once import WriterOnce
from app.services import prompt_sets

from .conftest import Made

KEY = {"Idempotency-Key": "order-66"}


def test_the_same_request_is_answered_from_memory(api: TestClient) -> None:
    first = api.post("/v1/prompt-sets", json={"name": "x"}, headers=KEY)
    again = api.post("/v1/prompt-sets", json={"name": "x"}, headers=KEY)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert len(api.get("/v1/prompt-sets").json()["items"]) == 1


def test_another_request_with_the_key_is_refused(api: TestClient, made: Made) -> None:
    assert api.post("/v1/prompt-sets", json={"name": "x"}, headers=KEY).status_code == 201
    for path, body in (
        ("/v1/prompt-sets", {"name": "y"}),
        ("/v1/keys", {"name": "x", "role": "reader"}),
        ("/v1/projects", {"name": "x"}),
    ):
        answer = api.post(path, json=body, headers=KEY)
        assert answer.status_code == 409, path
        assert answer.json()["type"] == "urn:retort:problem:idempotency-conflict"


def test_jobs_and_teachers_are_made_once(api: TestClient, made: Made) -> None:
    prompt_set = made.prompt_set()["id"]
    for path, body in (
        (
            "/v1/teachers",
            {"name": "t", "driver": "openai", "model": "scripted", "base_url": "http://127.0.0.1:9/v1"},
        ),
        ("/v1/jobs", {"prompt_set": prompt_set, "teachers": ["t"]}),
    ):
        headers = {"Idempotency-Key": path.replace("/", "-")}
        answers = [api.post(path, json=body, headers=headers) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [201] * 3, answers[0].text
        assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(api.get("/v1/jobs").json()["items"]) == 1


def test_many_at_once_make_one(api: TestClient) -> None:
    def send(_: int) -> tuple[int, str | None]:
        answer = api.post("/v1/prompt-sets", json={"name": "x"}, headers=KEY)
        return answer.status_code, answer.json().get("id")

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(send, range(48)))
    assert {status for status, _ in answers} <= {201, 409}  # 409: under way, ask again
    assert len({made for status, made in answers if status == 201}) == 1
    assert len(api.get("/v1/prompt-sets").json()["items"]) == 1


def test_a_crash_between_making_and_answering_leaves_the_key_free(app: FastAPI, api: TestClient) -> None:
    crash = [True]

    @app.post("/v1/crashing")
    def crashing(once: WriterOnce) -> object:
        who = once.caller

        def make() -> prompt_sets.PromptSetView:
            made = prompt_sets.create(once.session, who.project_id, who.key_id, "x")
            if crash.pop():
                raise RuntimeError("the process dies here")
            return made

        return once.answer(201, make)

    assert api.post("/v1/crashing", headers=KEY).status_code == 500
    assert api.get("/v1/prompt-sets").json()["items"] == []
    crash.append(False)
    assert api.post("/v1/crashing", headers=KEY).status_code == 201
    assert api.post("/v1/crashing", headers=KEY).headers["idempotency-replayed"] == "true"
    assert len(api.get("/v1/prompt-sets").json()["items"]) == 1


def test_a_refused_request_does_not_take_the_key(api: TestClient, made: Made) -> None:
    body = {"prompt_set": made.prompt_set()["id"], "teachers": ["later"]}
    assert api.post("/v1/jobs", json=body, headers=KEY).status_code == 422
    made.teacher("later")
    assert api.post("/v1/jobs", json=body, headers=KEY).status_code == 201


def test_keys_of_two_projects_do_not_meet(app: FastAPI, api: TestClient) -> None:
    secret = api.post("/v1/projects", json={"name": "other"}).json()["admin_key"]["secret"]
    mine = api.post("/v1/prompt-sets", json={"name": "x"}, headers=KEY).json()["id"]
    theirs = api.post(
        "/v1/prompt-sets", json={"name": "x"}, headers={**KEY, "Authorization": f"Bearer {secret}"}
    )
    assert theirs.status_code == 201
    assert theirs.json()["id"] != mine


def test_a_key_must_be_a_word(api: TestClient) -> None:
    for key in ("", "two words", "x" * 256):
        answer = api.post("/v1/prompt-sets", json={"name": "x"}, headers={"Idempotency-Key": key})
        assert answer.status_code == 422, key


def test_the_memory_is_in_the_transaction_that_creates(app: FastAPI, api: TestClient) -> None:
    api.post("/v1/prompt-sets", json={"name": "x"}, headers=KEY)
    with app.state.resources.engine.connect() as connection:
        rows = connection.execute(text("SELECT status, created_at FROM idempotent_request")).all()
        made = connection.execute(text("SELECT created_at FROM prompt_set")).scalar_one()
    assert [row.status for row in rows] == [201]
    assert abs(rows[0].created_at - made) < 5
