"""Health, readiness, metrics, events."""

import json
import signal
import threading
import time
from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, text

from app.main import create_app
from app.settings import Settings
from tests.fixtures.processes import free_port

from .answering import work_off
from .conftest import LOCAL, Made, administering
from .server import serving


def test_ready(api: TestClient) -> None:
    assert api.get("/healthz").json()["status"] == "ok"
    answer = api.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "database": "ok", "broker": "ok"})


def test_a_schema_behind_or_missing_is_unready(empty_database_url: str, tmp_path: Path) -> None:
    app = create_app(Settings.model_validate({"data_dir": tmp_path, "database_url": empty_database_url}))
    with TestClient(app) as client:
        empty = client.get("/readyz")
        with app.state.resources.engine.begin() as connection:
            connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)"))
            connection.execute(text("INSERT INTO alembic_version VALUES ('0000')"))
        behind = client.get("/readyz")
        assert client.get("/healthz").status_code == 200
    assert (empty.status_code, empty.json()["status"]) == (503, "unready")
    assert "no schema yet" in empty.json()["database"]
    assert (behind.status_code, "is at 0000" in behind.json()["database"]) == (503, True)


def test_a_database_that_is_away_is_unready(tmp_path: Path) -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    app = create_app(Settings.model_validate({"data_dir": tmp_path, "database_url": url}))
    with TestClient(app) as client:
        answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "unready")


def test_a_broker_that_is_away_only_degrades(settings: Settings, broker_url: str) -> None:
    def readiness(url: str) -> dict[str, str]:
        app = create_app(Settings.model_validate({**settings.model_dump(), "broker_url": url}))
        with TestClient(app, client=LOCAL) as client:
            answer = client.get("/readyz")
        assert answer.status_code == 200
        found: dict[str, str] = answer.json()
        return found

    assert readiness(broker_url)["status"] == "ready"
    away = readiness(f"redis://127.0.0.1:{free_port()}/0")
    assert (away["status"], away["database"]) == ("degraded", "ok")
    assert "does not answer" in away["broker"]


def test_a_broker_that_hangs_holds_up_no_request(settings: Settings) -> None:
    answered = threading.Event()
    app = create_app(settings, lambda teacher: _waits_for(answered))
    with administering(app, settings) as client:
        made = Made(client)
        made.teacher(name="t0", base_url="http://127.0.0.1:9/v1")
        for _ in range(3):
            assert made.job(prompt_set=made.prompt_set()["id"], teachers=["t0"])["status"] == "ready"
        assert not answered.is_set()
        answered.set()
    app.state.resources.engine.dispose()


def _waits_for(answered: threading.Event) -> None:
    answered.wait()


def test_metrics(app: FastAPI, api: TestClient, made: Made) -> None:
    given = app.state.resources
    job = made.job()["id"]
    work_off(given.engine, given.storage, job, 1, lambda number, index: "x" if number == 2 else None)
    made.job(prompt_set=made.prompt_set()["id"])
    api.get("/v1/jobs/none")
    answer = api.get("/metrics", headers={"Authorization": ""})
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples[("retort_database_up",)] == 1
    assert samples[("retort_jobs", ("status", "completed"))] == 1
    assert samples[("retort_jobs", ("status", "ready"))] == 1
    assert samples[("retort_jobs", ("status", "paused"))] == 0
    assert samples[("retort_completions_total", ("outcome", "completed"))] == 2
    assert samples[("retort_completions_failed",)] == 1
    assert samples[("retort_tokens_total", ("kind", "completion"))] == 6
    assert samples[("retort_calls_in_flight",)] == 0
    route = ("method", "GET"), ("route", "/v1/jobs/{job_id}"), ("status", "404")
    assert samples[("retort_http_requests_total", *route)] == 1
    assert "a set" not in answer.text


def test_metrics_without_a_database(tmp_path: Path) -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    app = create_app(Settings.model_validate({"data_dir": tmp_path, "database_url": url}))
    with TestClient(app) as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200
    assert "retort_database_up 0.0" in answer.text


def test_events_tell_of_progress_each_second_until_the_end(app: FastAPI, api: TestClient, made: Made) -> None:
    given = app.state.resources
    job = made.job()["id"]
    looked = threading.Semaphore(0)
    event.listen(given.engine, "checkout", lambda *_: looked.release())

    def end() -> None:
        for _ in range(6):  # two for the request at most, then one a second
            looked.acquire()
        work_off(given.engine, given.storage, job)

    ending = threading.Thread(target=end)
    ending.start()
    started = time.monotonic()
    answer = api.get(f"/v1/jobs/{job}/events")
    took = time.monotonic() - started
    ending.join()
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in answer.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        events.append((fields["event"], int(fields["id"]), json.loads(fields["data"])))
    assert [number for _, number, _ in events] == list(range(len(events)))
    assert [kind for kind, _, _ in events] == ["progress"] * (len(events) - 1) + ["ended"]
    assert len(events) >= 4
    assert took >= 0.99 * (len(events) - 1)  # a second lies between two; a slow machine may make it more
    assert events[0][2]["counts"]["completed"] == 0
    assert (events[-1][2]["status"], events[-1][2]["counts"]["completed"]) == ("completed", 3)


def test_events_of_a_job_that_has_ended_end_at_once(api: TestClient, made: Made) -> None:
    job = made.job()["id"]
    api.post(f"/v1/jobs/{job}/cancel")
    answer = api.get(f"/v1/jobs/{job}/events")
    assert answer.text.startswith("event: ended\nid: 0\ndata: {")
    assert answer.text.count("event:") == 1
    assert api.get("/v1/jobs/none/events").status_code == 404


def test_a_server_that_is_told_to_stop_ends_its_streams(
    api: TestClient, made: Made, settings: Settings, tmp_path: Path
) -> None:
    job = made.job()["id"]
    with serving(settings, tmp_path, settings.key_file.read_text().strip()) as server:
        with server.client.stream("GET", f"/v1/jobs/{job}/events") as answer:
            pieces = answer.iter_bytes()
            assert next(pieces).startswith(b"event: progress")
            server.process.terminate()
            assert b"ended" not in b"".join(pieces)
        assert server.process.wait(60) in (0, -signal.SIGTERM)
