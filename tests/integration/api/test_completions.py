"""Completions: in a stable order, by page, with their token columns wherever those lie."""

import math
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from .answering import claimed, finish, record, work_off
from .conftest import Made


def walked(api: TestClient, path: str, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        answer = api.get(path, params=params)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["items"]) <= params.get("limit", 50)
        found += page["items"]
        if page["next_cursor"] is None:
            return found
        params["cursor"] = page["next_cursor"]


def place(row: dict[str, Any]) -> tuple[int, int, int, int]:
    return row["stage"], row["prompt_number"], row["teacher"], row["sample_index"]


@pytest.fixture
def job(app: FastAPI, made: Made) -> str:
    """Forty prompts, two teachers, two samples; prompts 7 and 30 failed."""
    given = app.state.resources
    made.teacher("a")
    made.teacher("b")
    sealed = made.prompt_set([f"prompt {n}" for n in range(40)])["id"]
    made_job: str = made.job(prompt_set=sealed, teachers=["a", "b"], n=2, top_logprobs=2)["id"]
    kinds = {7: "teacher-permanent", 30: "teacher-transient"}
    work_off(given.engine, given.storage, made_job, 2, lambda number, index: kinds.get(number))
    return made_job


def test_pages_hold_everything_once_and_in_order(api: TestClient, job: str) -> None:
    rows = walked(api, f"/v1/jobs/{job}/completions", limit=7)
    assert [place(row) for row in rows] == [
        (0, p, t, i) for p in range(40) for t in range(2) for i in range(2)
    ]
    first = rows[0]
    assert (first["answer"], first["teacher_name"], first["status"]) == ("answer 0.0", "a", "completed")
    assert (first["messages"], first["tokens"]) == (None, None)
    assert len(first["content_hash"]) == 64


def test_filters(api: TestClient, job: str) -> None:
    path = f"/v1/jobs/{job}/completions"
    completed = walked(api, path, status="completed", limit=9)
    assert {row["prompt_number"] for row in completed} == set(range(40)) - {7, 30}
    failed = walked(api, path, status="failed", limit=3)
    assert [place(row)[1:] for row in failed] == [
        (p, t, i) for p in (7, 30) for t in range(2) for i in range(2)
    ]
    one = walked(api, path, prompt_number=12)
    assert [place(row) for row in one] == [(0, 12, t, i) for t in range(2) for i in range(2)]
    assert walked(api, path, prompt_number=12, status="failed") == []
    assert api.get(path, params={"status": "lost"}).status_code == 422


def test_failures_by_kind(api: TestClient, job: str) -> None:
    path = f"/v1/jobs/{job}/failures"
    assert len(walked(api, path, limit=3)) == 8
    rows = walked(api, path, kind=["teacher-transient"])
    assert {row["prompt_number"] for row in rows} == {30}
    assert rows[0]["error_detail"] == "it went wrong"


def test_the_prompt_goes_with_it(api: TestClient, job: str) -> None:
    (row, *_) = walked(api, f"/v1/jobs/{job}/completions", prompt_number=5, include="prompt")
    assert row["messages"] == [{"role": "user", "content": "prompt 5"}]


def test_tokens_out_of_segments(api: TestClient, job: str) -> None:
    rows = walked(api, f"/v1/jobs/{job}/completions", include="tokens", limit=50)
    for row in rows:
        if row["status"] == "failed":
            assert row["tokens"] is None
            continue
        number, index = row["prompt_number"], row["sample_index"]
        assert row["tokens"] == {
            "k": 2,
            "token_ids": [number, 8, 9],
            "sampled_logprob": [-0.25, -1.5, -0.125],
            "sampled_rank": [1, 2, 1],
            "tail_logmass": pytest.approx(
                [math.log(1 - sum(map(math.exp, row))) for row in ([-0.25, -2.0], [-0.5, -1.5], [-0.125])],
                rel=1e-5,
            ),
            "sampled": [True, True, True],
            "topk_ids": [[number, 7], [index, 8], [9, -1]],
            "topk_logprobs": [[-0.25, -2.0], [-0.5, -1.5], [-0.125, None]],
            "prompt_ids": [1, 2],
        }


def test_tokens_out_of_parts_are_the_same(app: FastAPI, api: TestClient, made: Made) -> None:
    given = app.state.resources
    job = made.job(top_logprobs=2)["id"]
    (claim,) = claimed(given.engine, job)
    record(given.engine, claim, 1, lambda number, index: "teacher-permanent" if number == 1 else None)
    path = f"/v1/jobs/{job}/completions"
    before = walked(api, path, include="tokens")
    assert [row["tokens"] is not None for row in before] == [True, False, True]
    finish(given.engine, given.storage, claim)
    assert walked(api, path, include="tokens") == before
    # A failed one is made again: its columns are in a part, its siblings' still in the segment.
    api.post(f"/v1/jobs/{job}/retry")
    (claim,) = claimed(given.engine, job)
    record(given.engine, claim, 1, lambda *_: None)
    after = walked(api, path, include="tokens")
    assert [row["tokens"]["token_ids"] for row in after] == [[0, 8, 9], [1, 8, 9], [2, 8, 9]]


def test_pages_with_tokens_are_bounded(api: TestClient, job: str) -> None:
    answer = api.get(f"/v1/jobs/{job}/completions", params={"include": "tokens", "limit": 101})
    assert answer.status_code == 422
    assert "at most 100" in answer.json()["detail"]


def test_a_cursor_of_the_other_order_is_refused(api: TestClient, job: str) -> None:
    path = f"/v1/jobs/{job}/completions"
    cursor = api.get(path, params={"limit": 1}).json()["next_cursor"]
    assert api.get(path, params={"status": "failed", "cursor": cursor}).status_code == 400


def test_a_damaged_segment_is_told_as_such(app: FastAPI, api: TestClient, job: str) -> None:
    storage = app.state.resources.storage
    for path in list(storage.list("segments")):
        storage.path(path).write_bytes(b"not a segment")
    answer = api.get(f"/v1/jobs/{job}/completions", params={"include": "tokens"})
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:retort:problem:storage")
    assert api.get(f"/v1/jobs/{job}/completions").status_code == 200
