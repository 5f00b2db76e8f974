"""One commit, at the edge: before the answer, and never told as a success when it fails."""

from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.api.dependencies import Writing, after_commit

from .conftest import LOCAL


def test_a_commit_that_fails_is_not_told_as_a_success(app: FastAPI) -> None:
    told: list[str] = []

    @app.post("/fail-at-commit")
    def fail_at_commit(session: Writing) -> dict[str, str]:
        after_commit(session, lambda: told.append("committed"))
        connection = session.connection()
        if connection.dialect.name == "sqlite":
            connection.execute(text("PRAGMA defer_foreign_keys = ON"))
            connection.execute(
                text(
                    "INSERT INTO prompt_set (id, project_id, name, sealed, content_hash, n_prompts, n_errors,"
                    " n_license_assumed, names_teachers, created_by, created_at)"
                    " VALUES ('ps_x', 'no such project', 'x', 0, x'00', 0, 0, 0, 0, 'x', 0)"
                )
            )
        else:
            connection.execute(text("CREATE TEMP TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
            connection.execute(text("INSERT INTO late VALUES (1), (1)"))
        return {"status": "this must not reach the client"}

    with TestClient(app, client=LOCAL, raise_server_exceptions=False) as client:
        answer = client.post("/fail-at-commit")
    assert answer.status_code == 409
    assert "must not reach" not in answer.text
    assert told == []


def test_an_endpoint_that_raises_leaves_nothing(app: FastAPI, api: TestClient) -> None:
    @app.post("/half")
    def half(session: Writing) -> None:
        session.connection().execute(
            text("INSERT INTO project (id, name, created_at) VALUES ('prj_half', 'half', 0)")
        )
        raise RuntimeError("half way")

    assert api.post("/half").status_code == 500
    with app.state.resources.engine.connect() as connection:
        assert (
            connection.execute(text("SELECT count(*) FROM project WHERE id = 'prj_half'")).scalar_one() == 0
        )


def test_more_writers_than_threads_all_get_through(api: TestClient) -> None:
    """Requests that wait for SQLite's one writer must not keep the writer from a thread to go on in."""

    def create(number: int) -> int:
        return api.post("/v1/prompt-sets", json={"name": f"set {number}"}).status_code

    with ThreadPoolExecutor(100) as pool:
        statuses = list(pool.map(create, range(200)))
    assert statuses == [201] * 200
