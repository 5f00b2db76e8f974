"""A job's progress for a person: a bar on a terminal, a line now and then elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from app.client import RetortClient

ENDED = ("completed", "failed", "cancelled")


def watch(api: RetortClient, job_id: str, console: Console, every: float = 0.5) -> dict[str, Any]:
    """Show progress until the job has ended. Returns the job. Ctrl-C goes through; the job goes on without us."""
    job = api.job(job_id)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rest]}"),
        console=console,
        transient=False,
    )
    if console.is_terminal:
        with bar:
            task = bar.add_task(job["status"], total=job["counts"]["expected"], rest="")
            while True:
                counts = job["counts"]
                bar.update(
                    task,
                    total=counts["expected"],
                    completed=counts["completed"] + counts["failed"],
                    description=job["status"],
                    rest=rest_of(job),
                )
                if job["status"] in ENDED:
                    return job
                time.sleep(every)
                job = api.job(job_id)
    told = 0.0
    while True:
        ended = job["status"] in ENDED
        if ended or time.monotonic() - told > 5:
            told = time.monotonic()
            counts = job["counts"]
            console.print(
                f"{job['status']}: {counts['completed'] + counts['failed']}/{counts['expected']}  {rest_of(job)}"
            )
        if ended:
            return job
        time.sleep(every)
        job = api.job(job_id)


def rest_of(job: dict[str, Any]) -> str:
    """Done, failed, tokens per second, time left; or what the job waits for."""
    counts, pace = job["counts"], job["pace"]
    parts = [f"{counts['completed']} done", f"{counts['failed']} failed"]
    if pace is not None:
        parts.append(f"{pace['tokens_per_second']:,.0f} tokens/s")
        if pace["eta_seconds"] is not None:
            parts.append(f"{duration(pace['eta_seconds'])} left")
    if job.get("waits_for"):
        parts.append(str(job["waits_for"]))
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
