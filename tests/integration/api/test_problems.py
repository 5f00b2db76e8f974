"""Every error is a problem (RFC 9457), and one table maps every class of the tree to a status."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app import errors
from app.api.problems import MEDIA_TYPE, STATUS
from app.main import create_app
from app.settings import Settings
from tests.fixtures.processes import free_port

from .conftest import LOCAL, Made


def tree(root: type[errors.RetortError]) -> Iterator[type[errors.RetortError]]:
    yield root
    for branch in root.__subclasses__():
        yield from tree(branch)


def test_every_class_of_the_error_tree_has_a_status_of_its_own() -> None:
    classes = set(tree(errors.RetortError))
    assert len(classes) > 20
    assert set(STATUS) == classes


def test_kinds_of_errors_are_unique() -> None:
    kinds = [error.kind for error in tree(errors.RetortError)]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("error", list(tree(errors.RetortError)))
def test_each_error_class_becomes_its_problem(error: type[errors.RetortError], tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path))

    @app.get("/break")
    def break_() -> None:
        raise error("this is what is wrong", where="there")

    answer = TestClient(app, raise_server_exceptions=False).get("/break")
    problem = answer.json()
    assert answer.status_code == STATUS[error] == problem["status"]
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert problem["type"] == f"urn:retort:problem:{error.kind}"
    assert problem["where"] == "there"
    if STATUS[error] != 500:
        assert problem["detail"] == "this is what is wrong"
    assert problem["request_id"] == answer.headers["x-request-id"]


def test_a_fault_of_ours_is_told_without_its_insides(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    @app.get("/break")
    def break_() -> None:
        raise ZeroDivisionError("a secret of the house")

    answer = TestClient(app, raise_server_exceptions=False).get("/break", headers={"X-Request-ID": "mine-1"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "secret" not in answer.text
    assert "a secret of the house" in caplog.text
    assert "mine-1" in caplog.text


def test_nothing_there(api: TestClient) -> None:
    answer = api.get("/v1/nothing")
    assert (answer.status_code, answer.headers["content-type"]) == (404, MEDIA_TYPE)
    assert "/v1/nothing" in answer.json()["detail"]


def test_a_method_that_is_not_possible_names_those_that_are(api: TestClient) -> None:
    answer = api.delete("/v1/jobs")
    assert (answer.status_code, answer.headers["content-type"]) == (405, MEDIA_TYPE)
    assert answer.headers["allow"] == "GET, POST"


def test_a_wrong_body_says_where(api: TestClient, made: Made) -> None:
    body = {
        "prompt_set": made.prompt_set()["id"],
        "teachers": ["t0"],
        "sampling": {"temperature": 9},
        "top_k": 3,
    }
    answer = api.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    pointers = {fault["pointer"]: fault["detail"] for fault in answer.json()["errors"]}
    assert set(pointers) == {"#/sampling/temperature", "#/top_k"}
    assert pointers["#/top_k"] == "there is no such field"


def test_a_wrong_parameter_says_where(api: TestClient) -> None:
    answer = api.get("/v1/jobs", params={"limit": 0})
    assert answer.status_code == 422
    assert answer.json()["errors"][0] == {
        "detail": "Input should be greater than or equal to 1",
        "pointer": "limit",
        "in": "query",
    }


def test_a_body_that_is_not_json(api: TestClient) -> None:
    answer = api.post("/v1/jobs", content=b'{"teachers": [', headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "not JSON" in answer.json()["detail"]


def test_text_that_the_database_cannot_hold_is_the_callers_fault(api: TestClient) -> None:
    assert api.get("/v1/jobs/job_%00").status_code in (404, 422)
    answer = api.post("/v1/teachers", json={"name": "t", "driver": "openai", "model": "a\x00b"})
    assert answer.status_code in (201, 422)


def test_a_database_that_does_not_answer_is_a_503(tmp_path: Path) -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    app = create_app(Settings.model_validate({"data_dir": tmp_path, "database_url": url}))
    with TestClient(app, client=LOCAL, raise_server_exceptions=False) as client:
        answer = client.get("/v1/jobs", headers={"Authorization": "Bearer rtk_x"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert answer.json()["type"] == "urn:retort:problem:database-unavailable"


def test_a_body_over_the_bound_is_refused_before_it_is_read(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"max_body_bytes": 1024}))
    with TestClient(app, client=LOCAL, raise_server_exceptions=False) as client:
        told = client.post("/v1/jobs", content=b"x" * 2000)

        def pieces() -> Iterator[bytes]:
            for _ in range(20):
                yield b"x" * 100

        untold = client.post("/v1/jobs", content=pieces(), headers={"Content-Type": "application/json"})
    app.state.resources.engine.dispose()
    for answer in (told, untold):
        assert answer.status_code == 413, answer.text
        assert answer.headers["content-type"] == MEDIA_TYPE
        assert "1,024 bytes" in answer.json()["detail"]
        assert answer.json()["type"] == "urn:retort:problem:content-too-large"


def test_a_request_id_that_no_log_can_bear_is_replaced(api: TestClient) -> None:
    answer = api.get("/healthz", headers={"X-Request-ID": "two words"})
    assert answer.headers["x-request-id"] != "two words"


def test_every_answer_carries_the_security_headers(api: TestClient) -> None:
    for path in ("/healthz", "/v1/jobs", "/v1/nothing", "/docs"):
        headers = api.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["content-security-policy"].startswith("default-src 'none'")


def test_a_parameter_that_nobody_reads_is_told(api: TestClient) -> None:
    answer = api.get("/v1/jobs", params={"statsu": "failed"})
    assert answer.status_code == 422
    assert "cursor, limit, status" in answer.json()["detail"]
    assert answer.json()["errors"] == [
        {"detail": "there is no such parameter", "pointer": "statsu", "in": "query"}
    ]
