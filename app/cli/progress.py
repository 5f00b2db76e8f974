"""A job's progress for a person: a bar on a terminal, a line now and then elsewhere."""

import time
from collections import deque
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from app.domain.lifecycle import ENDED, JobStatus

if TYPE_CHECKING:
    from app.client import RetortClient
    from app.services.job_views import JobView

_EVERY = 0.5  # seconds between two looks
_LINE_EVERY = 5.0  # seconds between two lines, where there is no terminal
_WINDOW = 20.0  # seconds


class Speed:
    """Throughput as it is seen from here, over the last seconds: the service's own is a mean over two minutes."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()  # moment, rows, tokens

    def look(self, rows: int, tokens: int, now: float | None = None) -> None:
        now = time.monotonic() if now is None else now
        self._seen.append((now, rows, tokens))
        while len(self._seen) > 2 and now - self._seen[1][0] > _WINDOW:
            self._seen.popleft()

    def per_second(self) -> tuple[float, float] | None:
        """(rows, tokens) per second; None while there is too little to tell."""
        (began, rows, tokens), (now, more_rows, more_tokens) = self._seen[0], self._seen[-1]
        seconds = now - began
        if seconds < 2 or more_rows == rows:
            return None
        return (more_rows - rows) / seconds, (more_tokens - tokens) / seconds


def watch(api: "RetortClient", job_id: str, console: Console) -> "JobView":
    """Show progress until the job has ended, and return it. Ctrl-C goes through; the job goes on without us."""
    job = api.job(job_id)
    speed = Speed()
    with Progress(
        SpinnerColumn(finished_text=" "),
        TextColumn("[bold]{task.description}[/]"),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("{task.fields[rest]}"),
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bar:
        task = bar.add_task(job.status, total=job.counts.expected, rest="")
        told, last = float("-inf"), ""
        while True:
            counts = job.counts
            speed.look(counts.completed + counts.failed, counts.completion_tokens)
            rest, ended = rest_of(job, speed), job.status in ENDED
            bar.update(
                task,
                total=counts.expected,
                completed=counts.completed + counts.failed,
                description=job.status,
                rest=rest,
            )
            line = f"{job.status}: {counts.completed + counts.failed:,}/{counts.expected:,}, {rest}"
            if not console.is_terminal and line != last and (ended or time.monotonic() - told > _LINE_EVERY):
                console.print(line, markup=False, soft_wrap=True)
                told, last = time.monotonic(), line
            if ended:
                return job
            time.sleep(_EVERY)
            job = api.job(job_id)


def rest_of(job: "JobView", speed: Speed | None = None) -> str:
    """Failed, tokens per second, time left; or what the job waits for."""
    counts = job.counts
    parts = [f"{counts.failed:,} failed"]
    if job.status in ENDED:
        if job.started_at is not None and job.ended_at is not None:
            seconds = (job.ended_at - job.started_at).total_seconds()
            parts += [f"{counts.completion_tokens:,} tokens", f"in {duration(seconds)}"]
        return ", ".join(parts)
    seen = None if speed is None else speed.per_second()
    if seen is not None and job.status == JobStatus.RUNNING:
        parts.append(f"{seen[1]:,.0f} tokens/s")
    elif job.pace is not None:
        parts.append(f"{job.pace.tokens_per_second:,.0f} tokens/s")
    if job.pace is not None and job.pace.eta_seconds is not None:
        parts.append(f"{duration(job.pace.eta_seconds)} left")
    elif seen is not None and job.status == JobStatus.RUNNING:
        parts.append(f"{duration(counts.remaining / seen[0])} left")
    if job.waits_for:
        parts.append(f"waits for {job.waits_for}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
