"""What a checkpoint does when the database's answer is lost, and when the database refuses an answer."""

import random
from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Engine, make_url, select

from app.db.models import Completion
from app.db.session import connect, reading
from app.storage.places import Storage
from app.teachers.base import Generation, Usage
from tests.fixtures.jobs import JobSetup, check_whole, make_job
from tests.fixtures.proxy import Proxy
from tests.integration.engine.running import Teacher, finish, running


def some_of(share: float, seed: int) -> Callable[[bytes], bool]:
    """Cut at this share of all COMMITs."""
    drawn = random.Random(seed)
    return lambda data: b"COMMIT" in data and drawn.random() < share


def test_commits_whose_answer_is_lost_double_and_lose_nothing(postgres_url: str, storage: Storage) -> None:
    """The server commits, the connection is cut before it says so: claims, checkpoints, segments, releases."""
    direct = connect(postgres_url)
    job = make_job(direct, JobSetup(prompts=30, n=2, top_logprobs=3))
    url = make_url(postgres_url)
    assert url.port is not None
    with Proxy(url.port, some_of(0.3, 7)) as proxy:
        cut = connect(url.set(port=proxy.port).render_as_string(hide_password=False))
        teacher = Teacher(delay=0.01)
        with running(cut, storage, teacher, poll_seconds=0.1):
            finish(direct, job, 90)
        cut.dispose()
        assert proxy.cuts > 5
    assert check_whole(direct, storage, job)["completed"] == 60
    assert sum(teacher.calls.values()) == 60
    direct.dispose()


class Odd(Teacher):
    """Answers of some prompts are nothing that a database takes."""

    def sample(self, prompt: str, index: int, k: int) -> Generation:
        made = super().sample(prompt, index, k)
        match prompt:
            case "prompt 3":
                return replace(made, usage=Usage(10**20, 8))
            case "prompt 4":
                return replace(made, provider_extra={"x": object()})  # type: ignore[dict-item]
            case "prompt 5":
                return replace(made, answer="a\x00b\ud800c")
        return made


def test_an_answer_that_the_database_refuses_is_a_failed_row_and_no_more(
    engine: Engine, storage: Storage
) -> None:
    job = make_job(engine, JobSetup(prompts=20, top_logprobs=2))
    with running(engine, storage, Odd()):
        finish(engine, job)
    assert check_whole(engine, storage, job) == {"completed": 18, "failed": 2, "segments": 3}
    with reading(engine) as connection:
        rows = connection.execute(
            select(Completion.prompt_number, Completion.error_kind, Completion.answer).order_by(
                Completion.prompt_number
            )
        ).all()
    assert [(r.prompt_number, r.error_kind) for r in rows if r.error_kind] == [
        (3, "unrecordable"),
        (4, "unrecordable"),
    ]
    assert rows[5].answer == "a\ufffdb?c"
