"""Jobs: checked, submitted, counted, moved."""

import time
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from app.db import lanes, provider_batches, shards
from app.db.session import transaction
from app.domain.clock import PACE_SECONDS
from app.teachers.base import Capabilities

from .answering import claimed, finish, record, work_off
from .conftest import NDJSON, Canned, Made, Rung, lines


def test_submitted_as_asked(api: TestClient, made: Made, rung: Rung) -> None:
    prompt_set = made.prompt_set()
    made.teacher("a")
    made.teacher("b", revision="r1", license="MIT")
    asked: dict[str, Any] = {
        "name": "mine",
        "prompt_set": prompt_set["id"],
        "teachers": ["b", "a"],
        "sampling": {"temperature": 0.2, "max_tokens": 9, "seed": 4},
        "n": 3,
        "top_logprobs": 5,
        "elicit": {"max_reasoning_tokens": 77},
        "priority": 2,
        "max_in_flight": 8,
        "reuse": True,
        "intended_use": {"commercial": True, "research": False},
        "budget": {"max_tokens": 1000},
    }
    job = made.job(**asked)
    assert (job["status"], job["waits_for"]) == ("ready", "a worker")
    assert job["counts"]["expected"] == job["counts"]["remaining"] == 3 * 2 * 3
    assert [
        (lane["position"], lane["name"], lane["revision"], lane["license"]) for lane in job["teachers"]
    ] == [
        (0, "b", "r1", "MIT"),
        (1, "a", None, "Apache-2.0"),
    ]
    (stage,) = job["stages"]
    assert (stage["n"], stage["top_logprobs"], stage["elicit"]["max_reasoning_tokens"]) == (3, 5, 77)
    assert (stage["sampling"]["temperature"], stage["sampling"]["seed"]) == (0.2, 4)
    assert (job["priority"], job["max_in_flight"], job["reuse"], job["follow"]) == (2, 8, True, False)
    assert job["intended_use"] == {
        "commercial": True,
        "competing": False,
        "redistribution": False,
        "research": False,
    }
    assert job["budget"]["max_tokens"] == 1000
    assert job["created_at"].endswith("Z")
    assert api.get(f"/v1/jobs/{job['id']}").json() == job
    for _ in range(3000):
        if set(rung.teachers) == {"a", "b", None}:
            return
        time.sleep(0.02)
    raise AssertionError(f"only {rung.teachers} were woken")


def test_the_name_is_the_sets_where_none_is_given(made: Made) -> None:
    assert made.job()["name"] == "a set"


def test_what_cannot_be_is_refused_with_the_way_out(api: TestClient, made: Made) -> None:
    sealed, teacher = made.prompt_set(), made.teacher()
    assert teacher["name"] == "t0"

    def refused(status: int, words: str, **more: Any) -> None:
        answer = api.post("/v1/jobs", json={"prompt_set": sealed["id"], "teachers": ["t0"], **more})
        assert answer.status_code == status, answer.text
        assert words in answer.json()["detail"], answer.json()["detail"]

    refused(404, "no prompt set", prompt_set="ps_none")
    refused(422, "register it first", teachers=["t0", "t1"])
    refused(422, "named twice: t0", teachers=["t0", "t0"])
    refused(409, "seal it first", prompt_set=made.prompt_set(["a"], seal=False)["id"])
    refused(422, "holds no prompt", prompt_set=made.prompt_set([])["id"])
    stranger = made.prompt_set(["a", {"prompt": "b", "teacher": "else"}])["id"]
    refused(422, "prompt 1 asks for teacher 'else'", prompt_set=stranger)
    assert api.get("/v1/jobs").json()["items"] == []


def test_more_logprobs_than_the_probe_found(app: FastAPI, api: TestClient, made: Made) -> None:
    made.teacher()
    with transaction(app.state.resources.engine) as connection:
        connection.execute(
            text("UPDATE teacher SET capabilities = :found"),
            {"found": '{"reachable": true, "max_top_logprobs": 20}'},
        )
    sealed = made.prompt_set()["id"]
    answer = api.post("/v1/jobs", json={"prompt_set": sealed, "teachers": ["t0"], "top_logprobs": 21})
    assert answer.status_code == 422
    assert "at most 20 top logprobs; 21 were asked for" in answer.json()["detail"]
    assert made.job(prompt_set=sealed, top_logprobs=20)["status"] == "ready"


def test_a_dry_run_counts_and_stores_nothing(api: TestClient, made: Made) -> None:
    made.teacher("a")
    made.teacher("b")
    sealed = made.prompt_set([f"prompt {n}" for n in range(600)])
    body = {"prompt_set": sealed["id"], "teachers": ["a", "b"], "n": 2, "sampling": {"max_tokens": 10}}
    answer = api.post("/v1/jobs", json=body, params={"dry_run": True})
    assert answer.status_code == 200
    found = answer.json()
    assert (found["n_prompts"], found["n_completions"], found["n_shards_at_most"]) == (600, 2400, 6)
    assert found["max_completion_tokens"] == 24_000
    told = found["forecast"]
    assert (told["requests"]["low"], told["requests"]["high"]) == (2400, 2400)
    assert told["completion_tokens"] == {"low": 2400, "likely": None, "high": 24_000}
    assert 2400 * 5 < told["prompt_tokens"]["low"] < told["prompt_tokens"]["likely"] < 2400 * 30
    assert (told["cost_usd"], told["seconds"]) == (None, None), "neither price nor pace is known"
    assert any("600 prompts name no licence" in warning for warning in found["warnings"])
    assert any("never probed" in warning for warning in found["warnings"])
    assert api.get("/v1/jobs").json()["items"] == []
    job = made.job(**body)
    assert (job["counts"]["expected"], job["shards"]["total"]) == (found["n_completions"], 6)


def test_an_estimate_knows_prices_limits_and_what_was_made_before(
    api: TestClient, made: Made, engine: Engine
) -> None:
    made.teacher("a")
    changes = {"price": [{"input": 1000, "output": 2000}], "max_requests_per_minute": 60}
    assert api.patch("/v1/teachers/a", json=changes).status_code == 200
    sealed = made.prompt_set([f"prompt {n:04}" for n in range(120)])
    body = {"prompt_set": sealed["id"], "teachers": ["a"], "sampling": {"max_tokens": 100}}
    before = made.job(**body)
    with transaction(engine) as connection:
        connection.execute(
            text(
                "INSERT INTO counter (job_id, teacher, stripe, completed, failed, reused, prompt_tokens, "
                "completion_tokens, calls, retries) VALUES (:job, 0, 0, 10, 0, 0, 50, 300, 10, 0)"
            ),
            {"job": before["id"]},
        )
        connection.execute(
            text("UPDATE job SET status = 'completed', started_at = 1000, ended_at = 1005 WHERE id = :job"),
            {"job": before["id"]},
        )
    told = api.post("/v1/jobs", json=body, params={"dry_run": True}).json()["forecast"]
    assert told["completion_tokens"] == {"low": 120, "likely": 3600, "high": 12_000}
    assert told["seconds"] == {"low": 120, "likely": 120, "high": None}, "by the limit, slower than the pace"
    prompt, answers = told["prompt_tokens"]["likely"], told["completion_tokens"]["likely"]
    assert told["cost_usd"]["likely"] == pytest.approx((prompt * 1000 + answers * 2000) / 1e6, rel=0.1)
    assert told["cost_usd"]["low"] < told["cost_usd"]["likely"] < told["cost_usd"]["high"]


def test_prompts_that_name_their_teacher(api: TestClient, made: Made) -> None:
    made.teacher("a")
    made.teacher("b")
    sealed = made.prompt_set(["both", {"prompt": "only a", "teacher": "a"}])
    body = {"prompt_set": sealed["id"], "teachers": ["a", "b"]}
    found = api.post("/v1/jobs", json=body, params={"dry_run": True}).json()
    assert (found["n_completions"], found["n_completions_at_most"]) == (None, 4)
    assert made.job(**body)["counts"]["expected"] == 3


def test_pages_and_filters(api: TestClient, made: Made) -> None:
    sealed = made.prompt_set()["id"]
    ids = [made.job(prompt_set=sealed)["id"] for _ in range(7)]
    api.post(f"/v1/jobs/{ids[3]}/pause")
    seen: list[str] = []
    cursor = None
    while True:
        params = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = api.get("/v1/jobs", params=params).json()
        assert len(page["items"]) <= 3
        seen += [job["id"] for job in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]
    assert [job["id"] for job in api.get("/v1/jobs", params={"status": "paused"}).json()["items"]] == [ids[3]]


def test_a_cursor_of_anything_else_is_refused(api: TestClient) -> None:
    for cursor in ("x", "e30", "WzFd", "é", "WyJwcm9tcHRzIiwwXQ"):
        answer = api.get("/v1/jobs", params={"cursor": cursor})
        assert (answer.status_code, answer.json()["type"]) == (400, "urn:retort:problem:invalid-cursor")


def test_verbs_and_the_moves_that_are_none(api: TestClient, made: Made) -> None:
    job = made.job()["id"]

    def verb(name: str) -> tuple[str, str | None]:
        answer = api.post(f"/v1/jobs/{job}/{name}")
        assert answer.status_code == 200, answer.text
        return answer.json()["status"], answer.json()["waits_for"]

    for _ in range(2):
        assert verb("pause") == ("paused", "a person: POST …/resume")
    for _ in range(2):
        assert verb("resume") == ("ready", "a worker")
    for _ in range(2):
        assert verb("cancel") == ("cancelled", None)
    for name in ("pause", "resume", "retry"):
        answer = api.post(f"/v1/jobs/{job}/{name}")
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:retort:problem:illegal-transition")
    assert api.get(f"/v1/jobs/{job}").json()["ended_at"] is not None


def test_counts_shards_and_their_history(app: FastAPI, api: TestClient, made: Made) -> None:
    given = app.state.resources
    sealed = made.prompt_set([f"prompt {n}" for n in range(300)])["id"]
    job = made.job(prompt_set=sealed, n=2, top_logprobs=2)["id"]
    first, second = claimed(given.engine, job)
    record(given.engine, first, 2, lambda number, index: "teacher-permanent" if number == 1 else None)
    found = api.get(f"/v1/jobs/{job}").json()
    assert found["status"] == "running"
    assert found["started_at"] is not None
    counts = found["counts"]
    assert (counts["expected"], counts["completed"], counts["failed"], counts["remaining"]) == (
        600,
        510,
        2,
        88,
    )
    assert (counts["prompt_tokens"], counts["completion_tokens"], counts["calls"]) == (510 * 5, 510 * 3, 512)
    assert found["shards"] == {"total": 2, "finished": 0}
    assert (found["teachers"][0]["completed"], found["teachers"][0]["failed"]) == (510, 2)
    shards = api.get(f"/v1/jobs/{job}/shards", params={"limit": 1}).json()
    (shard,) = shards["items"]
    assert (shard["first_prompt"], shard["end_prompt"], shard["status"], shard["owner"]) == (
        0,
        256,
        "leased",
        "by hand",
    )
    assert [(one["epoch"], one["owner"], one["outcome"]) for one in shard["attempts"]] == [
        (1, "by hand", None)
    ]
    rest = api.get(f"/v1/jobs/{job}/shards", params={"cursor": shards["next_cursor"]}).json()
    assert [one["first_prompt"] for one in rest["items"]] == [256]
    assert rest["next_cursor"] is None
    record(given.engine, second, 2, lambda *_: None)
    for claim in (first, second):
        finish(given.engine, given.storage, claim)
    done = api.get(f"/v1/jobs/{job}").json()
    assert (done["status"], done["pace"], done["counts"]["remaining"]) == ("completed", None, 0)
    (shard,) = api.get(f"/v1/jobs/{job}/shards", params={"status": "finished", "limit": 1}).json()["items"]
    assert shard["attempts"][0]["outcome"] == "finished"


def test_pace_and_time_left(app: FastAPI, api: TestClient, made: Made) -> None:
    engine = app.state.resources.engine
    job = made.job(prompt_set=made.prompt_set([f"p{n}" for n in range(100)])["id"])["id"]
    (claim,) = claimed(engine, job)
    assert claim is not None
    with transaction(engine) as connection:
        now = time.time()
        connection.execute(text("UPDATE job SET started_at = :t WHERE id = :id"), {"t": now - 60, "id": job})
        step = int(now // PACE_SECONDS)
        for back in range(1, 7):
            for stripe in range(2):
                connection.execute(
                    text("INSERT INTO pace (job_id, step, stripe, rows, tokens) VALUES (:j, :s, :p, 5, 50)"),
                    {"j": job, "s": step - back, "p": stripe},
                )
    found = api.get(f"/v1/jobs/{job}").json()["pace"]
    steps = found["window_seconds"] // PACE_SECONDS
    assert 10 <= steps <= 12  # the whole steps since the job began
    assert found["rows_per_second"] == pytest.approx(60 / (steps * PACE_SECONDS), abs=0.01)
    assert found["tokens_per_second"] == pytest.approx(600 / (steps * PACE_SECONDS), abs=0.1)
    assert found["eta_seconds"] == pytest.approx(100 / found["rows_per_second"], rel=0.01)
    assert found["eta_low_seconds"] < found["eta_seconds"] < found["eta_high_seconds"]


def test_a_parked_teacher_says_why_and_resume_tries_at_once(
    app: FastAPI, api: TestClient, made: Made
) -> None:
    engine = app.state.resources.engine
    job = made.job()["id"]
    with transaction(engine) as connection:
        lanes.park(connection, job, 0, "teacher-unavailable", "nothing answers at its address", 600)
    found = api.get(f"/v1/jobs/{job}").json()
    assert found["status"] == "parked"
    assert found["waits_for"] == "teacher 't0': nothing answers at its address"
    parked = found["teachers"][0]["parked"]
    assert (parked["kind"], parked["reason"]) == ("teacher-unavailable", "nothing answers at its address")
    assert parked["until"] is not None
    resumed = api.post(f"/v1/jobs/{job}/resume").json()
    assert (resumed["status"], resumed["teachers"][0]["parked"]) == ("ready", None)
    assert claimed(engine, job) != []


def test_a_job_that_follows_its_set(app: FastAPI, api: TestClient, made: Made) -> None:
    given = app.state.resources
    open_set = made.prompt_set(["a"], seal=False)["id"]
    job = made.job(prompt_set=open_set, follow=True)["id"]
    work_off(given.engine, given.storage, job)
    waiting = api.get(f"/v1/jobs/{job}").json()
    assert (waiting["status"], waiting["waits_for"]) == (
        "running",
        "more prompts, or the seal of its prompt set",
    )
    api.post(f"/v1/prompt-sets/{open_set}/prompts", content=lines("b", "c"), headers=NDJSON)
    assert api.get(f"/v1/jobs/{job}").json()["counts"]["expected"] == 3
    work_off(given.engine, given.storage, job)
    assert api.get(f"/v1/jobs/{job}").json()["status"] == "running"
    api.post(f"/v1/prompt-sets/{open_set}/seal")
    assert api.get(f"/v1/jobs/{job}").json()["status"] == "completed"


def test_retry_by_kind_and_of_all(app: FastAPI, api: TestClient, made: Made) -> None:
    given = app.state.resources
    job = made.job(prompt_set=made.prompt_set([f"p{n}" for n in range(600)])["id"], n=2)["id"]
    kinds = {3: "teacher-transient", 300: "teacher-permanent", 301: "teacher-permanent"}
    work_off(given.engine, given.storage, job, 2, lambda number, index: kinds.get(number))
    done = api.get(f"/v1/jobs/{job}").json()
    assert (done["status"], done["counts"]["failed"], done["shards"]["finished"]) == ("completed", 6, 3)
    nothing = api.post(f"/v1/jobs/{job}/retry", json={"kinds": ["no-such-kind"]}).json()
    assert (nothing["n_retried"], nothing["job"]["status"]) == (0, "completed")
    some = api.post(f"/v1/jobs/{job}/retry", json={"kinds": ["teacher-permanent"]}).json()
    assert (some["n_retried"], some["job"]["status"]) == (4, "running")
    counts = some["job"]["counts"]
    assert (counts["completed"], counts["failed"], counts["remaining"]) == (1194, 2, 4)
    assert some["job"]["shards"] == {"total": 3, "finished": 2}
    assert some["job"]["ended_at"] is None
    failures = api.get(f"/v1/jobs/{job}/failures").json()["items"]
    assert [row["prompt_number"] for row in failures] == [3, 3]
    work_off(given.engine, given.storage, job, 2)
    assert api.get(f"/v1/jobs/{job}").json()["status"] == "completed"
    rest = api.post(f"/v1/jobs/{job}/retry").json()
    assert rest["n_retried"] == 2
    work_off(given.engine, given.storage, job, 2)
    done = api.get(f"/v1/jobs/{job}").json()
    assert (done["status"], done["counts"]["completed"], done["counts"]["failed"]) == ("completed", 1200, 0)


def test_retry_while_the_shard_is_under_lease(app: FastAPI, api: TestClient, made: Made) -> None:
    given = app.state.resources
    job = made.job()["id"]
    (claim,) = claimed(given.engine, job)
    record(given.engine, claim, 1, lambda number, index: "teacher-permanent" if number == 1 else None)
    answer = api.post(f"/v1/jobs/{job}/retry").json()
    assert (answer["n_retried"], answer["job"]["counts"]["failed"]) == (1, 0)
    record(given.engine, claim, 1, lambda *_: None, sequence=2)
    finish(given.engine, given.storage, claim)
    done = api.get(f"/v1/jobs/{job}").json()
    assert (done["status"], done["counts"]["completed"], done["counts"]["failed"]) == ("completed", 3, 0)


def test_a_job_of_nothing_but_failures_can_be_retried(app: FastAPI, api: TestClient, made: Made) -> None:
    given = app.state.resources
    job = made.job()["id"]
    work_off(given.engine, given.storage, job, 1, lambda *_: "teacher-permanent")
    assert api.get(f"/v1/jobs/{job}").json()["status"] == "failed"
    assert api.post(f"/v1/jobs/{job}/retry").json()["job"]["status"] == "running"
    work_off(given.engine, given.storage, job)
    assert api.get(f"/v1/jobs/{job}").json()["status"] == "completed"


def test_a_job_in_batch_mode(app: FastAPI, api: TestClient, made: Made) -> None:
    prompt_set = made.prompt_set()["id"]
    made.teacher("local", driver="embedded")
    made.teacher("api")
    job = {"prompt_set": prompt_set, "execution": "batch"}
    refused = api.post("/v1/jobs", json={**job, "teachers": ["local"]})
    assert (refused.status_code, "has no batch API" in refused.json()["detail"]) == (422, True)
    assert api.post("/v1/jobs", json={**job, "teachers": ["api"], "execution": "later"}).status_code == 422
    capped = api.post("/v1/jobs", json={**job, "teachers": ["api"], "budget": {"max_tokens": 9}})
    assert (capped.status_code, "handed over as a whole" in capped.json()["detail"]) == (422, True)
    api.post("/v1/teachers/api/probe")
    refused = api.post("/v1/jobs", json={**job, "teachers": ["api"]})
    assert (refused.status_code, "found by its last probe" in refused.json()["detail"]) == (422, True)
    able = Canned(Capabilities(reachable=True, batch_api=True))
    app.state.resources = replace(app.state.resources, open_teacher=lambda spec: able)
    api.post("/v1/teachers/api/probe")
    submitted = api.post("/v1/jobs", json={**job, "teachers": ["api"]}).json()
    assert submitted["teachers"][0]["execution"] == "batch"
    engine = app.state.resources.engine
    with transaction(engine) as connection:
        assert shards.candidates(connection, ()) == [], "the engine's loop leaves its shards alone"
        (lane,) = provider_batches.to_plan(connection, (), 10)
        for number in range(3):
            assert bool(provider_batches.plan(connection, f"pbt_{number}", lane, 1, 10)) == (number == 0)
    url = f"/v1/jobs/{submitted['id']}/batches"
    (batch,) = api.get(url).json()["items"]
    assert (batch["id"], batch["status"], batch["provider_id"]) == ("pbt_0", "planned", None)
    assert batch["next_look_at"] is not None
    assert api.get(f"/v1/jobs/{submitted['id']}").json()["status"] == "running"
    assert api.get("/v1/jobs/job_none/batches").status_code == 404
