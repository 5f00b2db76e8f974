"""Takedowns: the text is gone from every file on disk, hashes stay, and every view says what happened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.db.session import transaction
from app.services import export, takedown
from app.settings import Settings
from app.storage.segments import read_segment, verify_segment

from .answering import claimed, finish, record, work_off
from .conftest import Made
from .test_export_policy import exported

BOOK = "https://example.org/book"


def prompts(n: int = 12) -> list[dict[str, Any]]:
    """Every third one is from the book; its text is found nowhere else."""
    return [
        {
            "prompt": f"planted-prompt-{i}" if i % 3 == 1 else f"other {i}",
            "license": "CC0-1.0",
            "source": BOOK if i % 3 == 1 else "ours",
            "custom_id": f"planted-id-{i}" if i % 3 == 1 else None,
            "metadata": {"note": f"planted-note-{i}" if i % 3 == 1 else "free"},
            "parameters": {"stop": [f"planted-stop-{i}"]} if i % 3 == 1 else None,
        }
        for i in range(n)
    ]


def order(api: TestClient, **asked: Any) -> dict[str, Any]:
    answer = api.post("/v1/takedowns", json={"who": "rights@example.org", "why": "a letter", **asked})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def carry_out(app: FastAPI, stopped: Callable[[], bool] = lambda: False) -> None:
    given = app.state.resources
    assert takedown.run_next(given.engine, given.storage, "w", 60, stopped, again_seconds=0)


def done(app: FastAPI, api: TestClient, **asked: Any) -> dict[str, Any]:
    ordered = order(api, **asked)
    carry_out(app)
    found: dict[str, Any] = api.get(f"/v1/takedowns/{ordered['id']}").json()
    assert found["status"] == "completed", found["error"]
    return found


def job(app: FastAPI, made: Made, set_id: str, teachers: list[str], **more: Any) -> str:
    submitted = made.job(prompt_set=set_id, teachers=teachers, top_logprobs=2, **more)
    work_off(app.state.resources.engine, app.state.resources.storage, submitted["id"], more.get("n", 1))
    return str(submitted["id"])


def on_disk(folder: Path, word: bytes) -> list[str]:
    return [
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file() and word in file.read_bytes()
    ]


def recounted(app: FastAPI, job_id: str) -> None:
    """Counters, shards and the job say what a recount of the rows says."""
    with app.state.resources.engine.connect() as connection:
        counts = text("SELECT status, count(*) FROM completion WHERE job_id = :job GROUP BY status")
        rows: dict[str, int] = {status: n for status, n in connection.execute(counts, {"job": job_id})}  # noqa: C416
        counters = connection.execute(
            text("SELECT sum(completed), sum(failed), sum(removed) FROM counter WHERE job_id = :job"),
            {"job": job_id},
        ).one()
        shards = connection.execute(
            text("SELECT sum(n_completed), sum(n_failed), sum(n_expected) FROM shard WHERE job_id = :job"),
            {"job": job_id},
        ).one()
        expected = connection.execute(
            text("SELECT n_expected FROM job WHERE id = :job"), {"job": job_id}
        ).scalar_one()
    assert tuple(n or 0 for n in counters) == tuple(
        rows.get(one, 0) for one in ("completed", "failed", "removed")
    )
    assert tuple(shards[:2]) == (rows.get("completed", 0), rows.get("failed", 0))
    assert shards[2] == expected


@pytest.mark.smoke
def test_a_source_is_gone_from_every_view_and_every_file(
    app: FastAPI, api: TestClient, made: Made, settings: Settings, tmp_path: Path
) -> None:
    made.teacher("small")
    set_id = made.prompt_set(prompts())["id"]
    job_id = job(app, made, set_id, ["small"], n=2)
    view = exported(app, api, {"format": "jsonl", "selection": {"jobs": [job_id]}})
    ours = exported(
        app, api, {"format": "jsonl", "selection": {"jobs": [job_id], "prompt_licenses": ["MIT"]}}
    )
    assert on_disk(tmp_path, b"planted-prompt-4") != []
    before = api.get("/v1/lineage/row", params={"row_id": f"{job_id}/0/4/0/1"}).json()
    forecast = api.post(
        "/v1/takedowns", params={"dry_run": True}, json={"source": BOOK, "who": "x", "why": "y"}
    ).json()
    assert (forecast["n_prompts"], [one["id"] for one in forecast["exports"]]) == (4, [view["id"]])

    found = done(app, api, source=BOOK, withdraw_exports=True)
    assert (found["n_prompts"], found["n_completions"], found["n_segments"]) == (4, 8, 1)
    assert [(one["id"], one["n_rows"]) for one in found["tainted_exports"]] == [(view["id"], 8)]
    assert found["tainted_exports"][0]["withdrawn_at"] is not None

    # On disk: prompts, answers and parameters are in no file, the database and its log included.
    words = [f"planted-{kind}-{i}" for kind in ("prompt", "id", "note", "stop") for i in (1, 4, 7, 10)]
    if app.state.resources.engine.dialect.name == "sqlite":
        words += [f"answer {i}.{index}" for i in (1, 4, 7, 10) for index in (0, 1)]
        for word in words:
            assert on_disk(tmp_path, word.encode()) == [], word
        assert on_disk(tmp_path, b"answer 2.1") != []
    else:
        queries = [
            text(query)
            for query in (
                "SELECT count(*) FROM prompt p WHERE p::text LIKE :word",
                "SELECT count(*) FROM prompt WHERE convert_from(body, 'UTF8') LIKE :word",
                "SELECT count(*) FROM completion c WHERE c::text LIKE :word",
            )
        ]
        vacuumed = (
            "SELECT min(last_vacuum) FROM pg_stat_user_tables WHERE relname IN ('prompt', 'completion')"
        )
        with app.state.resources.engine.connect() as connection:
            for word in words:
                for query in queries:
                    assert connection.execute(query, {"word": f"%{word}%"}).scalar() == 0
            assert connection.execute(text(vacuumed)).scalar() is not None

    # Every view.
    rows = api.get(
        f"/v1/jobs/{job_id}/completions", params={"limit": 100, "include": ["tokens", "prompt"]}
    ).json()["items"]
    gone = [row for row in rows if row["status"] == "removed"]
    assert sorted({row["prompt_number"] for row in gone}) == [1, 4, 7, 10]
    for row in gone:
        assert (row["answer"], row["tokens"], row["n_tokens"], row["removed_by"]) == (
            None,
            None,
            None,
            found["id"],
        )
        assert row["content_hash"]
        assert row["messages"] == []
    assert all(row["tokens"] for row in rows if row["status"] == "completed")
    counts = api.get(f"/v1/jobs/{job_id}").json()["counts"]
    assert (counts["expected"], counts["completed"], counts["removed"], counts["remaining"]) == (16, 16, 8, 0)
    recounted(app, job_id)
    stored = api.get(f"/v1/prompt-sets/{set_id}/prompts").json()["items"][4]
    assert (stored["messages"], stored["custom_id"], stored["removed_by"]) == ([], None, found["id"])
    assert stored["source"] == BOOK
    assert api.get(f"/v1/prompt-sets/{set_id}").json()["n_removed"] == 4
    after = api.get("/v1/lineage/row", params={"row_id": f"{job_id}/0/4/0/1"}).json()
    assert (after["status"], after["removed_by"], after["prompt"]["removed_by"]) == (
        "removed",
        found["id"],
        found["id"],
    )
    assert after["content_hash"] == before["content_hash"]
    assert after["segment"] is None
    assert after["exports"][0]["tainted_by"][0]["takedown"] == found["id"]
    tainted = api.get(f"/v1/exports/{view['id']}").json()
    assert (tainted["status"], tainted["tainted_by"][0]["n_rows"]) == ("deleted", 8)
    assert api.get(f"/v1/exports/{ours['id']}").json()["tainted_by"] == []
    again = exported(app, api, {"format": "jsonl", "selection": {"jobs": [job_id]}})
    assert again["n_rows"] == 16
    actions = [one["action"] for one in api.get("/v1/audit", params={"subject": found["id"]}).json()["items"]]
    assert actions == ["takedown.complete", "takedown.order"]
    # Again, there is nothing left to take down.
    second = done(app, api, source=BOOK)
    assert (second["n_prompts"], second["n_completions"], second["tainted_exports"]) == (0, 0, [])


def segments(app: FastAPI, job_id: str) -> list[Any]:
    with app.state.resources.engine.connect() as connection:
        return list(
            connection.execute(
                text(
                    "SELECT g.path, g.sha256 FROM segment g JOIN shard s ON s.segment_id = g.id WHERE s.job_id = :job"
                ),
                {"job": job_id},
            )
        )


def test_token_columns_are_in_no_segment_any_more(app: FastAPI, api: TestClient, made: Made) -> None:
    made.teacher("small")
    set_id = made.prompt_set(prompts())["id"]
    job_id = job(app, made, set_id, ["small"])
    storage = app.state.resources.storage
    ((old, _),) = segments(app, job_id)
    kept = read_segment(storage, old).to_pylist()
    done(app, api, prompt_set=set_id, prompts=[3, 4])
    ((new, sha256),) = segments(app, job_id)
    assert new != old
    assert list(storage.list("segments")) == [new]
    verify_segment(storage, new, sha256)
    assert read_segment(storage, new).to_pylist() == [
        row for row in kept if row["prompt_number"] not in (3, 4)
    ]


def test_what_a_teacher_made_is_gone_and_it_makes_no_more(app: FastAPI, api: TestClient, made: Made) -> None:
    made.teacher("good")
    made.teacher("bad")
    set_id = made.prompt_set(prompts())["id"]
    ended = job(app, made, set_id, ["good", "bad"])
    view = exported(app, api, {"format": "jsonl", "selection": {"jobs": [ended]}})
    running = made.job(prompt_set=set_id, teachers=["good", "bad"], top_logprobs=2)["id"]
    found = done(app, api, teacher="bad")
    assert (found["n_prompts"], found["n_completions"]) == (0, 12)
    assert [(one["id"], one["n_rows"]) for one in found["tainted_exports"]] == [(view["id"], 12)]
    assert api.get(f"/v1/exports/{view['id']}").json()["status"] == "completed"  # flagged, not withdrawn
    for one in (ended, running):
        recounted(app, one)
    assert api.get(f"/v1/jobs/{running}").json()["counts"]["expected"] == 12
    work_off(app.state.resources.engine, app.state.resources.storage, running)
    job_view = api.get(f"/v1/jobs/{running}").json()
    assert (job_view["status"], [lane["completed"] for lane in job_view["teachers"]]) == (
        "completed",
        [12, 0],
    )
    names = {
        row["teacher_name"]
        for row in api.get(f"/v1/jobs/{ended}/completions?status=completed").json()["items"]
    }
    assert names == {"good"}


def test_a_worker_that_holds_a_shard_is_fenced(app: FastAPI, api: TestClient, made: Made) -> None:
    """It has prompts and answers in memory that are taken down; parts are in the database."""
    given = app.state.resources
    made.teacher("small")
    set_id = made.prompt_set(prompts())["id"]
    job_id = made.job(prompt_set=set_id, teachers=["small"], top_logprobs=2)["id"]
    (claim,) = claimed(given.engine, job_id)
    record(given.engine, claim, 1, lambda number, _: "x" if number == 7 else None)
    found = done(app, api, source=BOOK)
    assert (found["n_prompts"], found["n_completions"]) == (4, 4)
    with pytest.raises(AssertionError):  # the checkpoint is refused
        record(given.engine, claim, 2, lambda *_: None, sequence=2)
    recounted(app, job_id)
    (again,) = claimed(given.engine, job_id)
    assert again.epoch == claim.epoch + 2
    finish(given.engine, given.storage, again)
    view = api.get(f"/v1/jobs/{job_id}").json()
    assert (view["status"], view["counts"]["completed"], view["counts"]["removed"]) == ("completed", 8, 4)
    ((path, _),) = segments(app, job_id)
    assert set(read_segment(given.storage, path).column("prompt_number").to_pylist()) == {
        0,
        2,
        3,
        5,
        6,
        8,
        9,
        11,
    }


def test_new_jobs_do_not_ask_what_was_taken_down(app: FastAPI, api: TestClient, made: Made) -> None:
    made.teacher("small")
    given = prompts()
    given[4]["teacher"] = "small"
    set_id = made.prompt_set(given)["id"]
    done(app, api, source=BOOK)
    job_id = job(app, made, set_id, ["small"], n=2)
    view = api.get(f"/v1/jobs/{job_id}").json()
    assert (view["status"], view["counts"]["expected"], view["counts"]["completed"]) == ("completed", 16, 16)
    recounted(app, job_id)
    assert exported(app, api, {"format": "jsonl", "selection": {"jobs": [job_id]}})["n_rows"] == 16


def test_an_export_under_way_begins_again(app: FastAPI, api: TestClient, made: Made) -> None:
    given = app.state.resources
    made.teacher("small")
    set_id = made.prompt_set(prompts())["id"]
    job_id = job(app, made, set_id, ["small"])
    spec = {"format": "jsonl", "selection": {"jobs": [job_id]}, "file_size": {"rows": 3}}
    waiting = api.post("/v1/exports", json=spec).json()
    files = 0

    def stop_after_two() -> bool:
        nonlocal files
        files += 1
        return files > 4

    export.run_next(given.engine, given.storage, "w", 60, stop_after_two)
    assert api.get(f"/v1/exports/{waiting['id']}").json()["files"] != []
    done(app, api, source=BOOK)
    assert api.get(f"/v1/exports/{waiting['id']}").json()["files"] == []
    assert list(given.storage.list("exports")) == []
    assert export.run_next(given.engine, given.storage, "w", 60, lambda: False)
    made_view = api.get(f"/v1/exports/{waiting['id']}").json()
    assert (made_view["status"], made_view["n_rows"], made_view["tainted_by"]) == ("completed", 8, [])


class Killed(BaseException):
    """As by kill -9: nothing is caught, nothing is cleaned up."""


@pytest.mark.parametrize("at", range(1, 14))
def test_killed_anywhere_it_goes_on_and_ends_the_same(
    sqlite_app: tuple[FastAPI, TestClient], tmp_path: Path, at: int
) -> None:
    """Every commit and every question whether to stop is a place to die."""
    app, api = sqlite_app
    made, given = Made(api), app.state.resources
    made.teacher("small")
    set_id = made.prompt_set(prompts())["id"]
    job_id = job(app, made, set_id, ["small"])
    ordered = order(api, source=BOOK)
    calls = 0

    def dies() -> bool:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        return False

    try:
        takedown.run_next(given.engine, given.storage, "first", 0, dies)
    except Killed:
        assert takedown.run_next(given.engine, given.storage, "second", 60, lambda: False)
    found = api.get(f"/v1/takedowns/{ordered['id']}").json()
    assert (found["status"], found["n_prompts"], found["n_completions"]) == ("completed", 4, 4)
    recounted(app, job_id)
    assert on_disk(tmp_path, b"planted-prompt") == []
    assert len(list(given.storage.list("segments"))) == 1
    assert [
        one["action"] for one in api.get("/v1/audit", params={"subject": found["id"]}).json()["items"]
    ] == [
        "takedown.complete",
        "takedown.order",
    ]


def test_a_file_that_a_dead_worker_left_is_swept(app: FastAPI, api: TestClient, made: Made) -> None:
    given = app.state.resources
    made.teacher("small")
    set_id = made.prompt_set(prompts())["id"]
    job_id = made.job(prompt_set=set_id, teachers=["small"], top_logprobs=2)["id"]
    (claim,) = claimed(given.engine, job_id)
    record(given.engine, claim, 1, lambda *_: None)
    left = f"segments/{job_id}/{claim.shard_id:08d}-e{claim.epoch}-g1.parquet"
    given.storage.write_atomically(left, lambda file: (file.write(b"token ids"), None)[1])
    writing = given.storage.new_file(f"segments/{job_id}/{claim.shard_id:08d}-e{claim.epoch}-g2.parquet")
    writing.file.write(b"token ids")
    done(app, api, source=BOOK)
    assert not given.storage.exists(left)
    assert list(given.storage.unfinished()) == []
    writing.abandon()


def test_beginnings_of_rows_that_did_not_parse_go_with_their_set(
    sqlite_app: tuple[FastAPI, TestClient], tmp_path: Path
) -> None:
    """From the remembered answer to the append, too; asked again, it still says what was done."""
    app, api = sqlite_app
    set_id = api.post("/v1/prompt-sets", json={"name": "a set"}).json()["id"]
    sent = {"prompts": [{"prompt": "fine", "license": "MIT"}, {"prompt": "planted-row", "license": "no !"}]}

    def append() -> dict[str, Any]:
        answer = api.post(f"/v1/prompt-sets/{set_id}/prompts", json=sent, headers={"Idempotency-Key": "once"})
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    before = append()
    assert "planted-row" in before["errors"][0]["excerpt"]
    assert on_disk(tmp_path, b"planted-row") != []
    done(app, api, prompt_set=set_id)
    assert on_disk(tmp_path, b"planted-row") == []
    assert append() == {**before, "errors": [{**before["errors"][0], "excerpt": ""}]}


def test_an_export_that_failed_leaves_nothing_to_be_taken_down(
    app: FastAPI, api: TestClient, made: Made
) -> None:
    """It wrote files and was refused at the end: no list of tainted exports would ever name it."""
    given = app.state.resources
    made.teacher("ours", model="our-org/model")
    told = {"kind": "terms", "model": "our-org/*", "replaces": "model", "terms": ["apache-2.0-weights"]}
    override = api.post("/v1/policy/overrides", json={**told, "who": "dana", "why": "ours"}).json()
    job_id = job(app, made, made.prompt_set(prompts())["id"], ["ours"])
    spec = {"format": "jsonl", "selection": {"jobs": [job_id]}, "file_size": {"rows": 3}}
    asked = api.post("/v1/exports", json=spec).json()

    def stop_behind_the_second_file() -> bool:
        return len(list(given.storage.list("exports"))) > 1

    export.run_next(given.engine, given.storage, "w", 60, stop_behind_the_second_file)
    assert api.get(f"/v1/exports/{asked['id']}").json()["files"] != []
    api.post(f"/v1/policy/overrides/{override['id']}/revoke", json={"why": "not ours"})
    assert export.run_next(given.engine, given.storage, "w", 60, lambda: False)
    found = api.get(f"/v1/exports/{asked['id']}").json()
    assert (found["status"], found["files"]) == ("failed", [])
    assert list(given.storage.list("exports")) == []


def test_what_is_asked_wrongly_is_told(api: TestClient, made: Made) -> None:
    set_id = made.prompt_set(["a"])["id"]
    said = {"who": "x", "why": "y"}
    wrong: list[dict[str, Any]] = [
        {**said},
        {**said, "source": "a", "teacher": "b"},
        {**said, "source": "a", "prompts": [1]},
        {**said, "prompt_set": set_id, "prompts": [1]},
        {**said, "prompt_set": set_id, "prompts": [-1]},
        {"source": "a"},
        {"source": "a", "who": "", "why": "y"},
    ]
    for body in wrong:
        assert api.post("/v1/takedowns", json=body).status_code == 422, body
    for body in ({**said, "teacher": "nobody"}, {**said, "prompt_set": "ps_0"}):
        assert api.post("/v1/takedowns", json=body).status_code == 404
    writer = {"Authorization": f"Bearer {made.key('writer')}"}
    assert api.post("/v1/takedowns", json={**said, "source": "a"}, headers=writer).status_code == 403


def test_the_order_of_a_stranger_finds_nothing(app: FastAPI, api: TestClient, made: Made) -> None:
    made.teacher("small")
    set_id = made.prompt_set(prompts(3))["id"]
    stranger = api.post("/v1/projects", json={"name": "o"}).json()["admin_key"]["secret"]
    body = {"source": BOOK, "who": "x", "why": "y"}
    ordered = api.post("/v1/takedowns", json=body, headers={"Authorization": f"Bearer {stranger}"}).json()
    carry_out(app)
    assert api.get(f"/v1/takedowns/{ordered['id']}").status_code == 404
    assert api.get(f"/v1/prompt-sets/{set_id}").json()["n_removed"] == 0
    with transaction(app.state.resources.engine) as connection:
        assert connection.execute(text("SELECT n_prompts FROM takedown")).scalar() == 0
