"""A job's progress, on a terminal and in a log."""

from collections.abc import Sequence
from io import StringIO

import httpx
import pytest
from rich.console import Console

from app.cli.progress import Speed, duration, rest_of, watch
from app.client import RetortClient
from app.services.job_views import JobView
from tests.fixtures.views import job_view


def answering(jobs: Sequence[JobView]) -> httpx.MockTransport:
    """The service, which tells of these states of a job in turn, the last one for ever."""
    waiting = list(jobs)

    def answer(request: httpx.Request) -> httpx.Response:
        job = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        return httpx.Response(200, text=job.model_dump_json())

    return httpx.MockTransport(answer)


STATES = (
    job_view("ready"),
    job_view("running", 4, pace={
        "window_seconds": 5, "rows_per_second": 1, "tokens_per_second": 1234,
        "eta_seconds": 125, "eta_low_seconds": 1, "eta_high_seconds": None,
    }),
    job_view("completed", 9, failed=1, started_at="2026-11-01T12:00:00Z", ended_at="2026-11-01T12:03:05Z"),
)  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_to_the_end(terminal: bool) -> None:
    shown = StringIO()
    console = Console(file=shown, width=100, force_terminal=terminal)
    with RetortClient("http://retort", None, transport=answering(STATES)) as api:
        ended = watch(api, "job_1", console)
    assert ended.status == "completed"
    text = shown.getvalue()
    assert "10/10" in text
    assert "1 failed, 90 tokens, in 3 min 5 s" in text
    assert ("\x1b[" in text) is terminal
    if terminal:
        assert "4/10" in text
        assert "1,234 tokens/s, 2 min 5 s left" in text
    else:
        assert text.splitlines()[0].startswith("ready: 0/10")
        assert len(text.splitlines()) == 2, "a log is told at the beginning, at the end, and now and then"


def test_an_empty_job_that_follows_its_set_can_be_watched() -> None:
    shown = StringIO()
    states = [job_view("ready", expected=0), job_view("cancelled", expected=0)]
    with RetortClient("http://retort", None, transport=answering(states)) as api:
        watch(api, "job_1", Console(file=shown, width=100, force_terminal=True))
    assert "0/0" in shown.getvalue()


def test_what_a_parked_job_waits_for_is_said() -> None:
    assert rest_of(job_view("parked", 3, waits_for="teacher small does not answer")) == (
        "0 failed, waits for teacher small does not answer"
    )


def test_speed_is_seen_over_the_last_seconds() -> None:
    speed = Speed()
    moments = iter([0.0, 1.0, 2.5])
    for moment, rows in zip(moments, (0, 0, 5), strict=True):
        speed.look(rows, rows * 100, now=moment)
        if moment < 2:
            assert speed.per_second() is None
    assert speed.per_second() == (2.0, 200.0)
    for moment in range(10, 40):
        speed.look(5, 500, now=float(moment))
    assert speed.per_second() is None, "nothing came for so long that no speed can be told"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (7800, "2 h 10 min"),
        (86400 * 3 + 3600 * 4, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told
