"""A teacher's key, at a server that repeats it wherever it can: in no row, no file, no log."""

import logging
from pathlib import Path

import pytest
from aiohttp import web
from sqlalchemy import select, update

from app.db.models import Completion, Teacher
from app.db.session import connect, reading, transaction
from tests.fixtures.jobs import JobSetup, job_row, make_job
from tests.fixtures.loopback import serving

from .test_faulty_teachers import running, until

KEY = "sk-4f9c1e7a2b6d8035-this-is-the-key"


def repeating() -> web.Application:
    """Answers prompts by number: an answer, a refusal, a fault, and something that is no JSON, each with the key."""

    async def chat(request: web.Request) -> web.StreamResponse:
        told = request.headers["Authorization"]
        assert told == f"Bearer {KEY}"
        words = str((await request.json())["messages"][-1]["content"])
        if "prompt 1" in words:
            return web.json_response({"error": {"message": f"bad key {told}"}}, status=400)
        if "prompt 2" in words:
            return web.Response(text=f"<html>{told}</html>", status=500)
        if "prompt 3" in words:
            return web.Response(text=told, content_type="application/json")
        message = {"role": "assistant", "content": f"you sent {told}", "reasoning": KEY}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response(
            {"id": KEY, "model": "null", "choices": [choice], "usage": {"prompt_tokens": 1, "key": told}}
        )

    made = web.Application()
    made.router.add_post("/v1/chat/completions", chat)
    return made


@pytest.mark.parametrize("provider", ["generic", "openai"])
def test_a_key_that_a_server_repeats_is_kept_nowhere(
    sqlite_url: str, tmp_path: Path, provider: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    place = tmp_path / "a key"
    place.write_text(KEY)
    database = connect(sqlite_url)
    with serving(repeating) as url:
        job = make_job(database, JobSetup(base_url=f"{url}/v1", driver="openai", prompts=4))
        with transaction(database) as connection:
            connection.execute(
                update(Teacher).values(options={"provider": provider}, secret_ref=f"file:{place}")
            )
        with running(database, tmp_path):
            until(lambda: job_row(database, job).status in ("completed", "failed"))
    with reading(database) as connection:
        rows = {row.prompt_number: row for row in connection.execute(select(Completion.__table__))}
    database.dispose()
    assert rows[0].answer == "you sent Bearer ***"
    assert [rows[number].status for number in range(4)] == ["completed", "failed", "failed", "failed"]
    assert "bad key Bearer ***" in rows[1].error_detail
    kept = [file for file in tmp_path.rglob("*") if file.is_file() and file != place]
    kept += list(Path(sqlite_url.removeprefix("sqlite:///")).parent.glob("*.db*"))
    assert len(kept) >= 1
    assert [file for file in kept if KEY.encode() in file.read_bytes()] == []
    assert KEY not in caplog.text
