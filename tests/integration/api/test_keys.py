"""Projects, keys, roles, and where a key works."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.db.session import connect
from app.services.bootstrap import ensure_first_project
from app.settings import Settings

from .conftest import LOCAL, Made


def asking(app: FastAPI, secret: str, client: tuple[str, int] = LOCAL) -> TestClient:
    return TestClient(app, client=client, headers={"Authorization": f"Bearer {secret}"})


def test_the_first_key_is_in_a_private_file_and_made_once(
    api: TestClient, app: FastAPI, settings: Settings
) -> None:
    before = settings.key_file.read_text()
    assert settings.key_file.stat().st_mode & 0o777 == 0o600
    again = ensure_first_project(app.state.resources.engine, settings.key_file, None)
    assert not again.made
    assert settings.key_file.read_text() == before
    assert api.get("/v1/project").json()["name"] == "default"


def test_the_first_key_works_on_this_machine_only(app: FastAPI, api: TestClient, settings: Settings) -> None:
    secret = settings.key_file.read_text().strip()
    for far in ("10.0.0.7", "::ffff:10.0.0.7", "fe80::1", "testclient"):
        assert asking(app, secret, (far, 1)).get("/v1/project").status_code == 403, far
    for local in ("127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"):
        assert asking(app, secret, (local, 1)).get("/v1/project").status_code == 200, local


def test_a_proxy_on_this_machine_does_not_make_its_clients_local(api: TestClient) -> None:
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        assert api.get("/v1/project", headers={header: "127.0.0.1"}).status_code == 403


def test_without_a_known_key_nothing_is_told(app: FastAPI, api: TestClient) -> None:
    for header in (None, "Bearer", "Bearer x", "Bearer rtk_wrong", "Basic cnRrX3g6eA=="):
        client = TestClient(app, client=LOCAL, headers={} if header is None else {"Authorization": header})
        answer = client.get("/v1/jobs")
        assert answer.status_code == 401, header
        assert answer.headers["www-authenticate"] == "Bearer"


def test_roles(app: FastAPI, api: TestClient, made: Made) -> None:
    reader, writer = (asking(app, made.key(role)) for role in ("reader", "writer"))
    teacher = {"name": "t", "driver": "openai", "model": "m"}
    assert reader.get("/v1/jobs").status_code == 200
    assert reader.post("/v1/prompt-sets", json={"name": "x"}).status_code == 403
    assert reader.get("/v1/keys").status_code == 403
    assert writer.post("/v1/prompt-sets", json={"name": "x"}).status_code == 201
    assert writer.post("/v1/teachers", json=teacher).status_code == 403
    assert writer.post("/v1/keys", json={"name": "x", "role": "admin"}).status_code == 403
    assert api.post("/v1/teachers", json=teacher).status_code == 201
    assert "role admin" in writer.post("/v1/teachers", json=teacher).json()["detail"]


def test_a_revoked_key_opens_nothing(app: FastAPI, api: TestClient) -> None:
    key = api.post("/v1/keys", json={"name": "k", "role": "writer"}).json()
    client = asking(app, key["secret"])
    assert client.get("/v1/project").status_code == 200
    revoked = api.delete(f"/v1/keys/{key['id']}").json()
    assert revoked["revoked_at"] is not None
    assert client.get("/v1/project").status_code == 401
    assert api.delete(f"/v1/keys/{key['id']}").json() == revoked


def test_the_last_admin_key_stays(api: TestClient) -> None:
    first = api.get("/v1/keys").json()["items"][0]
    assert api.delete(f"/v1/keys/{first['id']}").status_code == 409
    other = api.post("/v1/keys", json={"name": "other", "role": "admin"}).json()
    assert api.delete(f"/v1/keys/{other['id']}").status_code == 200
    assert api.delete(f"/v1/keys/{first['id']}").status_code == 409


def test_projects_see_nothing_of_each_other(app: FastAPI, api: TestClient, made: Made) -> None:
    job = made.job()
    project = api.post("/v1/projects", json={"name": "other", "default_license": "cc-by-4.0"}).json()
    assert project["default_license"] == "CC-BY-4.0"
    other = asking(app, project["admin_key"]["secret"])
    assert other.get("/v1/project").json()["name"] == "other"
    assert other.get("/v1/jobs").json()["items"] == []
    key = api.get("/v1/keys").json()["items"][0]["id"]
    for path in (
        f"/v1/jobs/{job['id']}",
        f"/v1/jobs/{job['id']}/completions",
        f"/v1/jobs/{job['id']}/failures",
        f"/v1/jobs/{job['id']}/events",
        f"/v1/jobs/{job['id']}/shards",
        f"/v1/prompt-sets/{job['prompt_set']}",
        f"/v1/prompt-sets/{job['prompt_set']}/prompts",
        f"/v1/prompt-sets/{job['prompt_set']}/errors",
        "/v1/teachers/t0",
    ):
        assert other.get(path).status_code == 404, path
    for verb in ("pause", "resume", "cancel", "retry"):
        assert other.post(f"/v1/jobs/{job['id']}/{verb}").status_code == 404
    assert (
        other.post(f"/v1/prompt-sets/{job['prompt_set']}/prompts", json={"prompts": ["x"]}).status_code == 404
    )
    assert other.post(f"/v1/prompt-sets/{job['prompt_set']}/seal").status_code == 404
    assert other.delete(f"/v1/keys/{key}").status_code == 404
    assert (
        other.post("/v1/jobs", json={"prompt_set": job["prompt_set"], "teachers": ["t0"]}).status_code == 404
    )
    assert api.post("/v1/projects", json={"name": "other"}).status_code == 409


def test_no_secret_is_kept(app: FastAPI, api: TestClient, settings: Settings) -> None:
    """Not in its own table, not in the answer that is kept for a replay."""
    headers = {"Idempotency-Key": "a-key"}
    secret = api.post("/v1/keys", json={"name": "k", "role": "admin"}, headers=headers).json()["secret"]
    replay = api.post("/v1/keys", json={"name": "k", "role": "admin"}, headers=headers)
    assert replay.headers["idempotency-replayed"] == "true"
    assert replay.json()["secret"] is None
    first = settings.key_file.read_text().strip()
    with app.state.resources.engine.connect() as connection:
        for table in ("api_key", "idempotent_request", "project"):
            for row in connection.execute(text(f"SELECT * FROM {table}")):  # noqa: S608 - names of ours
                kept = b" ".join(v if isinstance(v, bytes) else str(v).encode() for v in row)
                assert secret.encode() not in kept
                assert first.encode() not in kept


def test_a_default_licence_must_be_one(api: TestClient) -> None:
    answer = api.patch("/v1/project", json={"default_license": "whatever"})
    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:retort:problem:invalid-license"
    assert (
        api.patch("/v1/project", json={"default_license": "cc0-1.0"}).json()["default_license"] == "CC0-1.0"
    )
    assert api.patch("/v1/project", json={"default_license": None}).json()["default_license"] is None
    changed = api.patch("/v1/project", json={"storage_profile": "compact"}).json()
    assert (changed["storage_profile"], changed["default_license"]) == ("compact", None)
    assert api.patch("/v1/project", json={"storage_profile": "tiny"}).status_code == 422
    assert api.patch("/v1/project", json={"storage_profile": None}).json()["storage_profile"] is None


def test_two_processes_that_start_at_once_make_one_project(
    settings: Settings, database_url: str, tmp_path: Path
) -> None:

    engines = [connect(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda engine: ensure_first_project(engine, tmp_path / "k", None), engines))
    assert sum(one.made for one in made) == 1
    assert len({one.project_id for one in made}) == 1
    with engines[0].connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM api_key")).scalar_one() == 1
    for engine in engines:
        engine.dispose()
